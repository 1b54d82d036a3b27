"""The conformance kit on a shelf of broken plugins: each breaks one rule, and exactly its check says so."""

import contextlib
import dataclasses
import inspect
import itertools
import random
import re
import socket
import threading
import time

import pytest
from plaudit.domain import Declaration, DecodeSpec, DomainPlugin, GateProbe
from plaudit.errors import EmptyPrompt, UndeclaredKind, UnknownCandidate
from plaudit.testing.conformance import NeedsMore, PluginConformance
from plaudit.types import (
    KIND_OF_ACT,
    Action,
    Binary,
    Choice,
    FeedbackKind,
    Message,
    Option,
    Outcome,
    Pair,
    PairOutcome,
    Prompt,
    Rating,
    Request,
    RewardTerms,
    Scale,
    Thumbs,
)
from plaudit_echo.plugin import EchoChoice


class Sound(DomainPlugin):
    """Keeps every rule; the broken ones each change one member of it."""

    kinds = frozenset({FeedbackKind.THUMBS, FeedbackKind.CHOICE})

    @property
    def declaration(self):
        return Declaration(name="sound", version="1", action=Action.COMPLETION, kinds=self.kinds)

    def render(self, request):
        if not request.messages or not request.messages[-1].content.strip():
            raise EmptyPrompt
        return Prompt(messages=request.messages, group=request.messages[-1].content)

    def parse(self, prompt, output):
        return Outcome(displayed=output) if output.strip() else Outcome(displayed="", valid=False, why_invalid="empty")

    def to_evidence(self, interaction, feedback):
        act, ids = feedback.act, {candidate.candidate_id for candidate in interaction.candidates}
        match act:
            case Thumbs() if act.candidate_id in ids:
                return (Binary(candidate=act.candidate_id, positive=act.up),)
            case Choice() if {act.chosen_id, act.other_id} <= ids:
                return (Pair(first=act.chosen_id, second=act.other_id, outcome=PairOutcome.FIRST),)
            case Thumbs() | Choice():
                raise UnknownCandidate
        raise UndeclaredKind


class BadName(Sound):
    @property
    def declaration(self):
        return Declaration(name="Bad Name", version="1", action=Action.COMPLETION, kinds=self.kinds)


class RatingWithoutScale(Sound):
    kinds = Sound.kinds | {FeedbackKind.RATING}

    def to_evidence(self, interaction, feedback):
        if feedback.kind is FeedbackKind.RATING:
            known = {candidate.candidate_id for candidate in interaction.candidates}
            if feedback.act.candidate_id not in known:
                raise UnknownCandidate
            return (Binary(candidate=feedback.act.candidate_id, positive=feedback.act.value > 0),)
        return super().to_evidence(interaction, feedback)


class EmptyScale(RatingWithoutScale):
    @property
    def declaration(self):
        return Declaration(
            name="sound", version="1", action=Action.COMPLETION, kinds=self.kinds, rating_scale=Scale(low=1, high=1)
        )


class ForgottenExample(Sound):
    """Declares comments, which its author gave no example of."""

    kinds = Sound.kinds | {FeedbackKind.COMMENT}


class RendersByLot(Sound):
    def render(self, request):
        prompt = super().render(request)
        return Prompt(messages=prompt.messages, group=f"{prompt.group}{random.random()}")


class LosesItsPlace(Sound):
    """Makes its own options whatever the request brings; of the log it would make others."""

    @property
    def declaration(self):
        return Declaration(name="sound", version="1", action=Action.CHOICE, kinds=self.kinds)

    def render(self, request):
        numbers = range(len(request.options), len(request.options) + 4)
        options = tuple(Option(str(number), f"option {number}") for number in numbers)
        return dataclasses.replace(super().render(request), options=options)


class CrashesOnEmpty(Sound):
    def render(self, request):
        return Prompt(messages=request.messages, group=request.messages[-1].content or "empty")


class ParsesPartly(Sound):
    def parse(self, prompt, output):
        return Outcome(displayed=output, valid=bool(output.encode("latin-1")), why_invalid="empty")


class DoesNotSayWhy(Sound):
    def parse(self, prompt, output):
        return Outcome(displayed=output, valid=bool(output.strip()))


class Mute(Sound):
    def to_evidence(self, interaction, feedback):
        evidence = super().to_evidence(interaction, feedback)
        return () if feedback.kind is FeedbackKind.CHOICE else evidence


class ComparesWithItself(Sound):
    def to_evidence(self, interaction, feedback):
        evidence = super().to_evidence(interaction, feedback)
        if feedback.kind is FeedbackKind.CHOICE:
            return (Pair(first=feedback.act.chosen_id, second=feedback.act.chosen_id, outcome=PairOutcome.FIRST),)
        return evidence


class TakesAnything(Sound):
    def to_evidence(self, interaction, feedback):
        try:
            return super().to_evidence(interaction, feedback)
        except UndeclaredKind:
            return ()


class BelievesStrangers(Sound):
    def to_evidence(self, interaction, feedback):
        try:
            return super().to_evidence(interaction, feedback)
        except UnknownCandidate:
            return ()


class Remembers(Sound):
    counter = itertools.count()

    def to_evidence(self, interaction, feedback):
        (item,) = super().to_evidence(interaction, feedback)
        if isinstance(item, Pair):
            return (Pair(first=item.first, second=item.second, outcome=item.outcome, margin=next(self.counter) * 1e-6),)
        return (item,)


class Generous(Sound):
    def reward(self, prompt, outcome, score):
        return RewardTerms(terms=(("score", score), ("gift", 2.5)))


class NotFinite(Sound):
    def reward(self, prompt, outcome, score):
        return RewardTerms(terms=(("score", score if outcome.valid else float("nan")),))


class Greedy(Sound):
    def decode_spec(self, prompt, mode):
        return DecodeSpec(n=100)


class ProbesTwice(Sound):
    def gates(self):
        request = Request(messages=(Message("user", "Is this a probe?"),))
        return [GateProbe(probe_id="one", request=request, forbidden=("no",))] * 2


class ProbesWhatItLearns(Sound):
    def gates(self):
        request = Request(messages=(Message("user", "Name a tree."),))
        return [GateProbe(probe_id="one", request=request, forbidden=("no",))]


class SlicesByNumber(Sound):
    def slices(self, interaction):
        return [len(interaction.candidates)]


class SlicesByText(Sound):
    def slices(self, interaction):
        return [interaction.messages[-1].content]


class HoldsALock(Sound):
    def __init__(self):
        self.lock = threading.Lock()


class CallsHome(Sound):
    def render(self, request):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=0.01).close()
        return super().render(request)


class Shares(Sound):
    """Keeps the prompt that it rendered last in itself, and another thread's then."""

    def __init__(self):
        self.last = None

    def render(self, request):
        self.last = request
        time.sleep(0.001)
        return super().render(self.last)


class Slow(Sound):
    def parse(self, prompt, output):
        time.sleep(0.002)
        return super().parse(prompt, output)


class Backtracks(Sound):
    """The time of its pattern grows with the fifth power of the length: seen within a second, and not out of hand."""

    pattern = re.compile(r"a*a*a*a*a*$")

    def parse(self, prompt, output):
        self.pattern.match(output)
        return super().parse(prompt, output)


SHELF = {
    BadName: {"test_the_declaration_is_valid"},
    RatingWithoutScale: {"test_the_declaration_is_valid"},
    EmptyScale: {"test_the_declaration_is_valid"},
    ForgottenExample: {"test_there_are_enough_examples"},
    RendersByLot: {"test_render_is_pure", "test_a_logged_request_renders_again", "test_eight_threads_get_the_same"},
    LosesItsPlace: {"test_a_logged_request_renders_again"},
    CrashesOnEmpty: {"test_render_returns_or_refuses"},
    ParsesPartly: {"test_parse_is_total"},
    DoesNotSayWhy: {"test_parse_is_total"},
    Mute: {"test_every_declared_kind_gives_evidence"},
    ComparesWithItself: {"test_every_declared_kind_gives_evidence"},
    TakesAnything: {"test_undeclared_kinds_are_refused"},
    BelievesStrangers: {"test_unknown_candidates_are_refused"},
    Remembers: {"test_the_same_act_gives_the_same_evidence", "test_eight_threads_get_the_same"},
    Generous: {"test_reward_is_bounded"},
    NotFinite: {"test_reward_is_bounded"},
    Greedy: {"test_decode_spec_is_within_limits"},
    ProbesTwice: {"test_gate_probes_are_sound"},
    ProbesWhatItLearns: {"test_gate_probes_are_sound"},
    SlicesByNumber: {"test_slices_are_names"},
    SlicesByText: {"test_slices_are_names"},
    HoldsALock: {"test_objects_pickle"},
    CallsHome: {"test_no_member_opens_a_socket"},
    Shares: {"test_eight_threads_get_the_same"},
    Slow: {"test_hooks_are_quick"},
    Backtracks: {"test_long_texts_take_little_longer"},
}
CHECKS = [name for name, _ in inspect.getmembers(PluginConformance, inspect.isfunction) if name.startswith("test_")]


def kit(plugin_class):
    class Kit(PluginConformance):
        installed = False
        # Wide for all but the slow one: the machine of a test may be busy.
        hook_seconds = 0.002 if plugin_class is Slow else 5.0
        long_text_seconds = 0.5 if plugin_class is Backtracks else 30.0

        def make_plugin(self):
            return plugin_class()

        def example_requests(self):
            return [Request(messages=(Message("user", text),)) for text in ("Name a tree.", "Tea?", "Why?")]

        def example_feedback(self):
            acts = [Thumbs("c0", up=True), Thumbs("c1", up=False), Choice("c1", "c0"), Rating("c0", 1.0)]
            return [act for act in acts if KIND_OF_ACT[type(act)] in plugin_class.kinds]

    return Kit()


def failed(plugin_class):
    failures = set()
    for check in CHECKS:
        try:
            getattr(kit(plugin_class), check)()
        except NeedsMore:
            continue  # another check says what is broken
        except Exception:
            failures.add(check)
    return failures


def test_a_sound_plugin_passes_every_check():
    assert failed(Sound) == set()


@pytest.mark.parametrize("plugin_class", SHELF, ids=lambda cls: cls.__name__)
def test_the_kit_finds_what_is_broken_and_nothing_else(plugin_class):
    assert failed(plugin_class) == SHELF[plugin_class]


@pytest.mark.parametrize(
    ("options", "forbidden", "found"),
    [
        ((), "no", "0 options"),
        (("no",), "no", "1 options"),
        (tuple(f"{n} no" for n in range(51)), "1 no", "51 options"),
        (("yes", "no"), "maybe", "cannot fail"),
        (("yes", "no"), "NO", ""),
        (("yes", "no"), "option-1", ""),
    ],
)
def test_a_probe_of_a_choice_has_options_and_can_fail(options, forbidden, found):
    offered = tuple(Option(f"option-{n}", text) for n, text in enumerate(options))

    class Probed(EchoChoice):
        def render(self, request):
            return Prompt(messages=request.messages, group=request.messages[-1].content)

        def gates(self):
            request = Request(messages=(Message("user", "Is this a probe?"),), options=offered)
            return [GateProbe(probe_id="one", request=request, forbidden=(forbidden,))]

    with pytest.raises(AssertionError, match=found) if found else contextlib.nullcontext():
        kit(Probed).test_gate_probes_are_sound()


@pytest.mark.parametrize(
    ("plugin", "asked", "found"),
    [
        (Sound, "Is this a probe?", "practises what the gate asks"),
        (EchoChoice, "Another one?", "choices do not practise"),
        (Sound, "Another one?", ""),
    ],
)
def test_what_is_practised_is_a_completion_that_the_gate_does_not_ask(plugin, asked, found):
    options = (Option("1", "yes"), Option("2", "no")) if plugin is EchoChoice else ()

    def case(name, text, **more):
        request = Request(messages=(Message("user", text),), options=options)
        return GateProbe(probe_id=name, request=request, forbidden=("no",), **more)

    class Practised(plugin):
        def render(self, request):
            return Prompt(messages=request.messages, group=request.messages[-1].content)

        def gates(self):
            return [case("gate", "Is this a probe?"), case("practice", asked, practice=True)]

    with pytest.raises(AssertionError, match=found) if found else contextlib.nullcontext():
        kit(Practised).test_gate_probes_are_sound()


def test_every_check_has_a_plugin_that_fails_it():
    # The entry point's check is about the installation: it is broken below.
    assert set().union(*SHELF.values()) == set(CHECKS) - {"test_the_installed_entry_point_is_this_plugin"}


def test_a_plugin_without_an_entry_point_is_found():
    broken = kit(Sound)
    type(broken).installed = True
    with pytest.raises(AssertionError, match="0 entry points"):
        broken.test_the_installed_entry_point_is_this_plugin()
