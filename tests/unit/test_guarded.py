"""A guarded plugin: what it raises, how long it takes and what it returns never hurts its caller."""

import dataclasses
import sys
import threading

import pytest
from plaudit.domain import DecodeSpec, DomainPlugin, GateProbe, Mode
from plaudit.errors import EmptyPrompt, InvalidField, PluginFailed, UndeclaredKind
from plaudit.plugins import guard
from plaudit.plugins.guarded import GuardedPlugin, Why
from plaudit.testing.evidence import make_feedback, make_interaction
from plaudit.types import (
    Binary,
    Demo,
    Label,
    Message,
    Option,
    Outcome,
    Pair,
    PairOutcome,
    Prompt,
    RankingEvidence,
    Request,
    RewardTerms,
    Sampling,
    Scalar,
    Thumbs,
)
from plaudit_echo.plugin import Echo, EchoChoice

REQUEST = Request(messages=(Message("user", "tea?"),))
PROMPT = Prompt(messages=REQUEST.messages, group="tea?")
OUTCOME = Outcome(displayed="x")
INTERACTION = make_interaction("i")
ACT = make_feedback("f", "i", Thumbs("a", True))
PROBE = GateProbe(probe_id="p", request=REQUEST, forbidden=("no",))
NAN = float("nan")
ENORMOUS = 10**400  # a whole number that no float can hold


class Raises(str):
    """A text that cannot be read."""

    def encode(self, *given):
        raise ZeroDivisionError


CALLS = {
    "render": lambda plugin: plugin.render(REQUEST),
    "parse": lambda plugin: plugin.parse(PROMPT, "x"),
    "to_evidence": lambda plugin: plugin.to_evidence(INTERACTION, ACT),
    "decode_spec": lambda plugin: plugin.decode_spec(PROMPT, Mode.SERVE),
    "reward": lambda plugin: plugin.reward(PROMPT, OUTCOME, 0.5),
    "gates": lambda plugin: plugin.gates(),
    "slices": lambda plugin: plugin.slices(INTERACTION),
}


def plugin_of(member, does, base=Echo, **guarding):
    """A guarded plugin whose `member` is `does`, and the failures that it reports."""
    (plugin,) = guard([type("Broken", (base,), {member: lambda self, *given: does()})()], **guarding).values()
    told = []
    plugin.report = lambda *failure: told.append(failure)
    return plugin, told


def failure(member, does, base=Echo, **guarding):
    plugin, told = plugin_of(member, does, base, **guarding)
    with pytest.raises(PluginFailed) as caught:
        CALLS[member](plugin)
    metadata = caught.value.metadata
    domain = plugin.declaration.name
    assert metadata == {"domain": domain, "member": member, "why": metadata["why"]}
    assert told == [(domain, member, metadata["why"])]
    assert caught.value.message.startswith(f"plugin Broken: {member} ")
    return caught.value


def boom():
    raise ZeroDivisionError("a text that somebody wrote")


def test_the_guard_has_every_member_of_the_contract():
    members = {name for name in vars(DomainPlugin) if not name.startswith("_")}
    assert members <= set(vars(GuardedPlugin))
    assert set(CALLS) == members - {"declaration"}


@pytest.mark.parametrize("member", CALLS)
def test_what_a_member_raises_is_told_once_without_its_words(member):
    error = failure(member, boom)
    assert error.metadata["why"] == Why.RAISED
    assert "ZeroDivisionError at test_guarded.py" in error.message
    assert "somebody wrote" not in error.message
    assert isinstance(error.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("member", CALLS)
def test_a_member_that_exits_ends_nothing(member):
    assert failure(member, lambda: sys.exit(1)).metadata["why"] == Why.RAISED


@pytest.mark.parametrize("member", CALLS)
def test_a_member_that_hangs_is_late_and_then_no_longer_called(member):
    gate = threading.Event()
    try:
        plugin, told = plugin_of(member, gate.wait, budget_seconds=0.02)
        for _ in range(9):
            with pytest.raises(PluginFailed):
                CALLS[member](plugin)
        assert [why for *_, why in told] == [Why.LATE] * 8 + [Why.HANGS]
        others = [other for other in CALLS if other not in (member, "decode_spec", "reward", "gates", "slices")]
        for other in others:  # one budget a plugin: which member hung does not matter
            with pytest.raises(PluginFailed):
                CALLS[other](plugin)
    finally:
        gate.set()


@pytest.mark.parametrize("member", sorted(CALLS.keys() - {"render"}))
def test_only_render_may_refuse(member):
    def refuse():
        raise UndeclaredKind("a text that somebody wrote")

    error = failure(member, refuse)
    assert error.metadata["why"] == Why.REFUSED
    assert "somebody wrote" not in error.message


def test_a_refusal_of_a_request_passes_as_it_is():
    def refuse():
        raise InvalidField("no passages, please", field="passages")

    plugin, told = plugin_of("render", refuse)
    with pytest.raises(InvalidField, match="no passages, please"):
        plugin.render(REQUEST)
    with pytest.raises(EmptyPrompt):
        guard([Echo()])["echo"].render(Request(messages=()))
    assert told == []


def test_a_guard_within_a_guard_tells_once():
    inner, told = plugin_of("render", boom)
    outer = GuardedPlugin(inner, "outer")
    outer.report = lambda *failure: told.append(failure)
    with pytest.raises(PluginFailed, match="plugin Broken"):
        outer.render(REQUEST)
    assert len(told) == 1


def options(*texts):
    return tuple(Option(text[:1] or "-", text) for text in texts)


def prompt(**changes):
    return dataclasses.replace(PROMPT, **changes)


def spec(**changes):
    return DecodeSpec(sampling=Sampling(**changes))


UNUSABLE = {
    "render": [
        (None, "a NoneType, not a Prompt"),
        (prompt(messages=[Message("user", "x")]), "not a tuple"),
        (prompt(messages=(Message("oracle", "x"),)), "one of the roles"),
        (prompt(messages=(Message("user", 3),)), "a int where a text belongs"),
        (prompt(messages=(Message("user", "\ud800"),)), "lone surrogate"),
        (prompt(messages=(Message("user", "x" * 5_000_000),)), "4194304 are allowed"),
        (prompt(messages=(Message("user", " "),)), "without text"),
        (prompt(group=""), "group is empty"),
        (prompt(group="a\0"), "NUL"),
        (prompt(options=options("a", "b")), "the domain declares completions"),
    ],
    "parse": [
        ("x", "a str, not an Outcome"),
        (Outcome(displayed=None), "a NoneType where a text belongs"),
        (Outcome(displayed="x" * 70_000), "65536 are allowed"),
        (Outcome(displayed="\udfff"), "lone surrogate"),
        (Outcome(displayed="x", valid=1), "not a bool"),
        (Outcome(displayed="x", valid=False), "does not say why"),
    ],
    "to_evidence": [
        ([3], "a int, which is not a kind of evidence"),
        ([Binary(candidate="z", positive=True)], "evidence on what is not a candidate"),
        ([Binary(candidate="a", positive=1)], "neither good nor bad"),
        ([Pair(first="a", second="a", outcome=PairOutcome.TIE)], "names a candidate twice"),
        ([Pair(first="a", second="b", outcome="first")], "the outcome type str"),
        ([Pair(first="a", second="b", outcome=PairOutcome.TIE, tie_offered=1)], "tie offered 1"),
        ([Binary(candidate=[], positive=True)], "wrong types (TypeError)"),
        ([Binary(candidate="a", positive=True, source=3)], "a source with a int"),
        ([Scalar(candidate="a", value=0.5, source="x" * 200)], "a source of 200 bytes"),
        ([RankingEvidence(order=("a", "b"), observed=3)], "of which 3 are in order"),
        ([Pair(first="a", second="b", outcome=PairOutcome.TIE, margin=NAN)], "a margin of nan"),
        ([RankingEvidence(order=("a", "b", "a"))], "names a candidate twice"),
        ([RankingEvidence(order=("a",))], "fewer than two"),
        ([Scalar(candidate="a", value=NAN)], "a scalar of nan"),
        ([Scalar(candidate="a", value=1.5)], "a scalar of 1.5"),
        ([Demo(candidate="a", text="x", margin=-1)], "a margin of -1"),
        ([Demo(candidate="a", text="x", margin=1e39)], "a margin of 1e+39; it must be 0 to 10"),
        ([Pair(first="a", second="b", outcome=PairOutcome.FIRST, margin=ENORMOUS)], "a margin of 1000"),
        ([Binary(candidate="a", positive=True, source=Raises("x"))], "wrong types (ZeroDivisionError)"),
        ([Demo(candidate="a", text="x" * 70_000, margin=1)], "65536 are allowed"),
        ([Label(candidate="a", value="yes")], "a label that the domain does not declare"),
    ],
    "decode_spec": [
        (None, "not a DecodeSpec"),
        (DecodeSpec(n=9), "n 9"),
        (DecodeSpec(n=True), "n True"),
        (DecodeSpec(temperature=NAN), "temperature nan"),
        (spec(max_tokens=0), "max_tokens 0"),
        (spec(max_tokens=ENORMOUS), "max_tokens 1000"),
        (spec(top_p=0.0), "top_p 0.0"),
        (spec(top_k=-1), "top_k -1"),
        (spec(stop=("",)), "a stop that is not a text"),
        (spec(stop=("a",) * 9), "9 stops; 8 are allowed"),
        (spec(stop=("a" * 65,)), "a stop of 65 bytes"),
        (spec(top_k=2000), "top_k 2000"),
    ],
    "reward": [
        (0.5, "a float, not RewardTerms"),
        (RewardTerms(terms=None), "wrong types (TypeError)"),
        (RewardTerms(terms=(("score", NAN),)), "a term of nan"),
        (RewardTerms(terms=(("score", float("inf")),)), "a term of inf"),
        (RewardTerms(terms=(("score", ENORMOUS),)), "which is not a finite number"),
        (RewardTerms(terms=(("a", 1.5), ("b", 1.5))), "a total of 3.0; rewards lie within -2 to 2"),
        (RewardTerms(terms=(("a", 1.0), ("a", 0.5))), "share a name"),
        (RewardTerms(terms=(0.5,)), "not a pair of a name and a number"),
    ],
    "gates": [
        ([3], "not a GateProbe"),
        ([PROBE, PROBE], "two probes with one id"),
        ([dataclasses.replace(PROBE, forbidden=())], "forbids nothing"),
        ([dataclasses.replace(PROBE, forbidden=(" ",))], "forbids an empty text"),
        ([dataclasses.replace(PROBE, harm="Bad Harm")], "harm 'Bad Harm'"),
        ([dataclasses.replace(PROBE, probe_id="")], "without an id"),
        ([dataclasses.replace(PROBE, forbidden_pattern="(")], "not a regular expression"),
        ([dataclasses.replace(PROBE, practice="yes")], "practice is a str"),
    ],
    "slices": [([3], "a int or empty"), ([""], "a str or empty"), (["x" * 200], "is not 1 to 40 of")],
}


@pytest.mark.parametrize(
    ("member", "given", "words"),
    [(member, given, words) for member, cases in UNUSABLE.items() for given, words in cases],
)
def test_what_cannot_be_used_is_refused_with_what_is_wrong(member, given, words):
    error = failure(member, lambda: given)
    assert error.metadata["why"] == Why.UNUSABLE
    assert words in error.message


@pytest.mark.parametrize(
    ("member", "given"),
    [
        ("decode_spec", DecodeSpec(n="my secret")),
        ("decode_spec", DecodeSpec(temperature="my secret")),
        ("reward", RewardTerms(terms=(("score", "my secret"),))),
        ("reward", RewardTerms(terms=(("my secret", 0.1), ("my secret", 0.1)))),
        ("to_evidence", [Binary(candidate="my secret", positive=True)]),
        ("to_evidence", [Scalar(candidate="a", value="my secret")]),
        ("to_evidence", [Pair(first="a", second="b", outcome="my secret")]),
        ("to_evidence", [Label(candidate="a", value="my secret")]),
    ],
)
def test_what_is_wrong_is_told_without_texts_of_people(member, given):
    assert "secret" not in failure(member, lambda: given).message


def test_a_number_of_any_length_is_told_in_few_words():
    given = [Pair(first="a", second="b", outcome=PairOutcome.FIRST, margin=ENORMOUS)]
    assert len(failure("to_evidence", lambda: given).message) < 200


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (options("a"), "1 options; a choice has 2 to 50"),
        (tuple(Option(str(n), str(n)) for n in range(51)), "51 options"),
        (options("a", "a"), "two options with one id"),
        ((Option("a", "x"), Option("b", "x")), "two options with one text"),
        (options("a", ""), "option 1 without an id or a text"),
        (options("a", "b\0"), "option 1 with a NUL"),
        (options("a", "b" * 5000), "option 1 of 5000 bytes"),
        (("a", "b"), "a str as option 0"),
    ],
)
def test_a_domain_of_choices_makes_options_that_can_be_ranked(given, words):
    assert words in failure("render", lambda: prompt(options=given), EchoChoice).message


@pytest.mark.parametrize("member", ["to_evidence", "gates", "slices"])
def test_a_generator_without_end_is_unusable(member):
    def forever():
        while True:
            yield Binary(candidate="a", positive=True)

    assert failure(member, forever).metadata["why"] == Why.UNUSABLE


def test_a_generator_runs_within_the_guard():
    def broken():
        yield 1 / 0

    assert failure("to_evidence", broken).metadata["why"] == Why.RAISED


def test_a_sound_plugin_gives_what_it_gives_unguarded():
    plugin, inner = guard([Echo()])["echo"], Echo()
    for member, call in CALLS.items():
        given = call(inner)
        assert call(plugin) == (tuple(given) if member in ("to_evidence", "gates", "slices") else given), member
