"""The conformance kit: what every domain plugin must keep, as tests that its author inherits.

    class TestChess(PluginConformance):
        def make_plugin(self): return Chess()
        def example_requests(self): return [...]      # at least three
        def example_feedback(self): return [...]      # one act of each declared kind

A plugin and examples enter, failed assertions leave. The acts name candidates "c0", "c1" and so on: the kit makes an
interaction of the first example request, with `example_outputs` as its completions (or the request's options).
Needs the extra `testing`. Nothing here runs a model: a plugin that passes can be served, not yet trusted to teach.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib.metadata
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, TypeVar
from unittest import mock

from hypothesis import given, settings, strategies

from plaudit.domain import CONTRACT_VERSION, ENTRY_POINT_GROUP, Declaration, DomainPlugin, Mode
from plaudit.errors import RequestRefused
from plaudit.plugins import returned
from plaudit.testing import examples
from plaudit.types import (
    KIND_OF_ACT,
    Act,
    Action,
    Feedback,
    FeedbackKind,
    Interaction,
    Message,
    Outcome,
    Prompt,
    Request,
)

THREADS = 8
# Kinds that give no evidence by their nature.
# Free text, and behaviour that a domain may keep without taking it for evidence.
SILENT_KINDS = frozenset({FeedbackKind.COMMENT, FeedbackKind.SIGNAL})


_Check = TypeVar("_Check", bound=Callable[..., None])


def _remedy(text: str) -> Callable[[_Check], _Check]:
    """Says beside a check what an author does if it fails."""

    def told(check: _Check) -> _Check:
        check.__dict__["remedy"] = text
        return check

    return told


class PluginConformance:
    """Inherit in a class `Test...`, give `make_plugin` and the examples, and run pytest."""

    installed: ClassVar[bool] = True
    """False for a plugin without an entry point (one that a test defines)."""
    hook_seconds: ClassVar[float] = 0.05
    """The 99th percentile of `render`, `parse` and `to_evidence` must take less."""
    long_text_seconds: ClassVar[float] = 1.0
    """`render` and `parse` of a text of up to 15,000 characters must together take less."""

    def make_plugin(self) -> DomainPlugin:
        """A new plugin."""
        raise NotImplementedError

    def example_requests(self) -> Sequence[Request]:
        """Requests of ordinary traffic; at least three."""
        raise NotImplementedError

    def example_feedback(self) -> Sequence[Act]:
        """Acts about the interaction that the kit makes; at least one of each declared kind."""
        raise NotImplementedError

    def example_outputs(self) -> Sequence[str]:
        """Completions of the interaction that the kit makes; four that differ."""
        return examples.OUTPUTS

    @_remedy("correct the Declaration; its fields are described in plaudit.domain")
    def test_the_declaration_is_valid(self) -> None:
        """Name, version, kinds with their scales, signals and labels."""
        declared = self.make_plugin().declaration
        assert isinstance(declared, Declaration), f"declaration is a {type(declared).__name__}"
        assert declared.contract_version == CONTRACT_VERSION, f"contract version {declared.contract_version}"
        assert not (faults := declared.faults()), "; ".join(faults)
        assert declared == self.make_plugin().declaration, "two instances declare different facts"

    @_remedy("name the class under the group plaudit.domains in pyproject.toml, install it again, import no torch")
    def test_the_installed_entry_point_is_this_plugin(self) -> None:
        """The entry point under the declared name loads the plugin's class, and importing it loads no torch."""
        if not self.installed:
            return
        plugin = self.make_plugin()
        name = plugin.declaration.name
        points = tuple(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name))
        assert len(points) == 1, f"{len(points)} entry points in {ENTRY_POINT_GROUP} are called {name!r}"
        assert points[0].load() is type(plugin), f"{points[0].value} is not {type(plugin)}"
        program = f"import sys, {type(plugin).__module__}; sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"importing {type(plugin).__module__} loads torch, or fails: {done.stderr}"

    @_remedy("give three requests or more, and an act of each declared kind and of no other")
    def test_there_are_enough_examples(self) -> None:
        """Three requests, and an act of each declared kind: less would leave checks with nothing to check."""
        declared = self.make_plugin().declaration
        assert len(self.example_requests()) >= 3, "example_requests gives fewer than three"
        kinds = {KIND_OF_ACT[type(act)] for act in self.example_feedback()}
        assert kinds == set(declared.kinds), f"example_feedback has {sorted(kinds)}; declared: {sorted(declared.kinds)}"

    @_remedy("let render depend on the request alone: no clock, no random numbers, nothing kept or changed")
    def test_render_is_pure(self) -> None:
        """Equal requests give equal prompts with messages and a group; the request stays as it was."""
        for request in self.example_requests():
            before = copy.deepcopy(request)
            prompt = self.make_plugin().render(request)
            _usable("render", returned.prompt_fault(prompt, self.make_plugin().declaration.action))
            assert prompt == self.make_plugin().render(copy.deepcopy(request)), "render gave two prompts of one request"
            assert request == before, "render changed the request"

    @_remedy("take the options that render made when a request brings them, and give the same prompt")
    def test_a_logged_request_renders_again(self) -> None:
        """Training renders from the log: messages, passages, and the options that were scored, which come back."""
        plugin = self.make_plugin()
        for request in self.example_requests():
            prompt = _rendered(plugin, request)
            again = plugin.render(dataclasses.replace(request, options=prompt.options or request.options))
            assert again == prompt, "render gives another prompt if the request brings the options that it made"

    @_remedy("raise EmptyPrompt or InvalidField for a request that the domain cannot take")
    def test_render_returns_or_refuses(self) -> None:
        """Empty, very long and non-Latin requests give a prompt or a RequestRefused, and nothing else."""
        plugin = self.make_plugin()
        options = self.example_requests()[0].options
        for request in examples.strange_requests(options):
            with contextlib.suppress(RequestRefused):
                _usable("render", returned.prompt_fault(plugin.render(request), plugin.declaration.action))

    @_remedy("give every text one Outcome; valid=False, and why_invalid, if people cannot be shown it")
    def test_parse_is_total(self) -> None:
        """Any text has an outcome, the same each time; an invalid one says why."""
        plugin = self.make_plugin()
        prompt = _rendered(plugin, self.example_requests()[0])

        @settings(max_examples=150, deadline=None, database=None, derandomize=True)
        @given(strategies.text(max_size=400))
        def parses(output: str) -> None:
            outcome = plugin.parse(prompt, output)
            _usable(f"parse of {output!r}", returned.outcome_fault(outcome, output))
            assert outcome == plugin.parse(prompt, output), f"parse gave two outcomes of {output!r}"

        parses()

    @_remedy("turn each declared kind into Pair, RankingEvidence, Binary, Scalar, Demo or Label, or do not declare it")
    def test_every_declared_kind_gives_evidence(self) -> None:
        """An act of each declared kind (but comments and signals) gives at least one item of evidence about it."""
        plugin, interaction = self.make_plugin(), self.interaction()
        ids = {candidate.candidate_id for candidate in interaction.candidates}
        silent = set(plugin.declaration.kinds) - SILENT_KINDS
        for act in self.example_feedback():
            evidence = plugin.to_evidence(interaction, examples.feedback(interaction, act))
            if evidence:
                silent.discard(KIND_OF_ACT[type(act)])
            _usable("to_evidence", returned.evidence_fault(tuple(evidence), ids, plugin.declaration))
        assert not silent, f"no evidence came of the declared kinds {sorted(silent)}"

    @_remedy("raise UndeclaredKind for every other kind of act")
    def test_undeclared_kinds_are_refused(self) -> None:
        """An act of a kind that is not declared raises RequestRefused (UndeclaredKind)."""
        plugin, interaction = self.make_plugin(), self.interaction()
        for act in examples.acts(interaction):
            if KIND_OF_ACT[type(act)] not in plugin.declaration.kinds:
                _refuses(plugin, interaction, act)

    @_remedy("raise UnknownCandidate for a candidate that the interaction does not have")
    def test_unknown_candidates_are_refused(self) -> None:
        """An act about a candidate that the interaction does not have raises RequestRefused."""
        plugin, interaction = self.make_plugin(), self.interaction()
        for act in examples.acts_on_strangers():
            kind = KIND_OF_ACT[type(act)]
            if kind in plugin.declaration.kinds - SILENT_KINDS:
                _refuses(plugin, interaction, act)

    @_remedy("let to_evidence depend on its two arguments alone: the log is replayed")
    def test_the_same_act_gives_the_same_evidence(self) -> None:
        """Evidence is replayed from the log: equal records give equal evidence, in any process and order."""
        interaction = self.interaction()
        first, second = self.make_plugin(), self.make_plugin()
        acts = [examples.feedback(interaction, act) for act in self.example_feedback()]
        once = [tuple(first.to_evidence(interaction, act)) for act in acts]
        copied = copy.deepcopy(interaction)
        again = [tuple(second.to_evidence(copied, copy.deepcopy(act))) for act in reversed(acts)]
        assert once == again[::-1], "to_evidence gave different evidence of the same records"

    @_remedy("name each term, and keep their sum within -2 to 2 for every outcome and score")
    def test_reward_is_bounded(self) -> None:
        """Terms have names and finite values, and together at most 2 in size, for valid and invalid outcomes."""
        plugin = self.make_plugin()
        prompt = _rendered(plugin, self.example_requests()[0])
        outcomes = [_parsed(plugin, prompt, output) for output in (*self.example_outputs(), "", "\x00", "?" * 2000)]
        outcomes.append(Outcome(displayed="", valid=False, why_invalid="made by the conformance kit"))
        for outcome in outcomes:
            for score in (1e-9, 0.25, 0.5, 0.75, 1 - 1e-9):
                _usable("reward", returned.terms_fault(plugin.reward(prompt, outcome, score)))

    @_remedy("ask for 1 to 8 completions and sampling that the service takes, the same for the same prompt")
    def test_decode_spec_is_within_limits(self) -> None:
        """Every mode asks for 1 to 8 completions, with sampling that the service takes."""
        plugin = self.make_plugin()
        for request in self.example_requests():
            prompt = _rendered(plugin, request)
            for mode in Mode:
                spec = plugin.decode_spec(prompt, mode)
                _usable(f"decode_spec for {mode}", returned.spec_fault(spec))
                assert spec == plugin.decode_spec(prompt, mode), f"{mode}: two specs of one prompt"

    @_remedy(
        "give each probe an id of its own, texts that it forbids, and a request that no example makes; if the domain "
        "chooses, with 2 to 50 options, a forbidden one among them, and none of practice"
    )
    def test_gate_probes_are_sound(self) -> None:
        """Probes have ids of their own, render, forbid something, and are no example that training may see.

        Those of a choice have options, of which one is forbidden: by its text or its id. Those of practice, which
        completions alone have, ask what no case of the gate asks.
        """
        plugin = self.make_plugin()
        probes = plugin.gates()
        _usable("gates", returned.probes_fault(probes))
        known = {_rendered(plugin, request).group for request in self.example_requests()}
        at_the_gate = {plugin.render(probe.request).group for probe in probes if not probe.practice}
        for probe in probes:
            prompt = plugin.render(probe.request)
            _usable("render", returned.prompt_fault(prompt, plugin.declaration.action))
            if probe.practice:
                assert plugin.declaration.action is Action.COMPLETION, f"choices do not practise {probe.probe_id!r}"
                assert prompt.group not in at_the_gate, f"probe {probe.probe_id!r} practises what the gate asks"
                continue
            assert prompt.group not in known, f"probe {probe.probe_id!r} asks what an example request asks"
            if plugin.declaration.action is Action.CHOICE:
                options = prompt.options or probe.request.options
                few = f"{len(options)} options; a choice has {returned.MIN_OPTIONS} to {returned.MAX_OPTIONS}"
                fault = returned.options_fault(options, Action.CHOICE) or ("" if options else few)
                assert not fault, f"probe {probe.probe_id!r} has {fault}"
                offered = {text.casefold() for option in options for text in (option.text, option.option_id)}
                forbidden = {text.casefold() for text in probe.forbidden}
                assert offered & forbidden, f"probe {probe.probe_id!r} forbids none of its options: it cannot fail"

    @_remedy("give names (texts), the same each time")
    def test_slices_are_names(self) -> None:
        """Slices are names, the same each time."""
        plugin, interaction = self.make_plugin(), self.interaction()
        slices = list(plugin.slices(interaction))
        _usable("slices", returned.slices_fault(slices))
        assert slices == list(plugin.slices(interaction)), "slices changed between two calls"

    @_remedy("keep what cannot be pickled (locks, files, lambdas) out of the plugin and of what it returns")
    def test_objects_pickle(self) -> None:
        """Plugin, prompts and evidence survive pickling: processes hand them on."""
        plugin, interaction = self.make_plugin(), self.interaction()
        again = pickle.loads(pickle.dumps(plugin))  # noqa: S301, own bytes
        assert again.declaration == plugin.declaration
        prompt = _rendered(plugin, self.example_requests()[0])
        evidence = [
            tuple(plugin.to_evidence(interaction, examples.feedback(interaction, act)))
            for act in self.example_feedback()
        ]
        assert pickle.loads(pickle.dumps((prompt, evidence))) == (prompt, evidence)  # noqa: S301, own bytes

    @_remedy("let the request bring what the plugin needs; a plugin has no input or output")
    def test_no_member_opens_a_socket(self) -> None:
        """A plugin has no input or output: it runs in every replica, and when the log is replayed."""
        with _no_sockets():
            self._everything(self.make_plugin())

    @_remedy("keep nothing in the instance between calls: threads share it")
    def test_eight_threads_get_the_same(self) -> None:
        """One instance shared by eight threads gives what a fresh one gives alone."""
        alone = self._everything(self.make_plugin())
        shared = self.make_plugin()
        with ThreadPoolExecutor(THREADS) as pool:
            together = list(pool.map(lambda _: self._everything(shared), range(THREADS * 4)))
        assert all(result == alone for result in together), "threads that share the plugin got other results"

    @_remedy("move work out of render, parse and to_evidence; they run for every request and act")
    def test_hooks_are_quick(self) -> None:
        """The 99th percentile of 200 calls of each pure member is below `hook_seconds`."""
        plugin, interaction = self.make_plugin(), self.interaction()
        request, output = self.example_requests()[0], self.example_outputs()[0]
        prompt, act = _rendered(plugin, request), examples.feedback(interaction, self.example_feedback()[0])
        calls: dict[str, Callable[[], object]] = {
            "render": lambda: plugin.render(request),
            "parse": lambda: plugin.parse(prompt, output),
            "to_evidence": lambda: plugin.to_evidence(interaction, act),
        }
        for member, call in calls.items():
            # The best of three rounds: another process may have had the processor during one.
            slow = min(sorted(_timed(call) for _ in range(200))[197] for _ in range(3))
            assert slow < self.hook_seconds, f"{member}: 99th percentile {slow:.4f} s"

    @_remedy("look for a regular expression that backtracks, such as (a+)+, or a loop in a loop")
    def test_long_texts_take_little_longer(self) -> None:
        """No text that repeats itself makes `render` or `parse` slow: one that does stops the whole process."""
        plugin = self.make_plugin()
        request = self.example_requests()[0]
        prompt = _rendered(plugin, request)
        for piece in examples.PIECES:
            # Lengths rise slowly: a time that doubles with each character is seen before it is out of hand.
            for length in (round(8 * 1.25**step) for step in range(34)):
                text = (piece * length)[:length] + "!"
                said = dataclasses.replace(request, messages=(*request.messages[:-1], Message("user", text)))
                # The best of three tries: another process may have had the processor during one.
                tries = (_timed(functools.partial(_read, plugin, prompt, said, text)) for _ in range(3))
                if (seconds := next(tries)) > self.long_text_seconds:
                    seconds = min(seconds, *tries)
                slow = f"{seconds:.1f} s for {len(text)} characters of {piece!r}"
                assert seconds <= self.long_text_seconds, f"render and parse take {slow}"

    def interaction(self) -> Interaction:
        """The interaction that the example acts are about."""
        plugin = self.make_plugin()
        request = self.example_requests()[0]
        prompt = _rendered(plugin, request)
        texts = [option.text for option in prompt.options or request.options] or list(self.example_outputs())
        shown = [_parsed(plugin, prompt, text) for text in texts]
        return examples.interaction(plugin.declaration, request, prompt, texts, shown)

    def _everything(self, plugin: DomainPlugin) -> list[object]:
        """What every member gives for the examples."""
        interaction = self.interaction()
        given: list[object] = []
        for request in self.example_requests():
            prompt = _rendered(plugin, request)
            outcomes = [_parsed(plugin, prompt, output) for output in self.example_outputs()]
            given += [prompt, outcomes, [plugin.decode_spec(prompt, mode) for mode in Mode]]
            given += [plugin.reward(prompt, outcome, 0.5) for outcome in outcomes]
        acts: list[Feedback] = [examples.feedback(interaction, act) for act in self.example_feedback()]
        given += [tuple(plugin.to_evidence(interaction, act)) for act in acts]
        return [*given, tuple(plugin.gates()), tuple(plugin.slices(interaction))]


class NeedsMore(AssertionError):
    """A check could not run: what it needs of another member is broken, and that member's own check says how."""


def _rendered(plugin: DomainPlugin, request: Request) -> Prompt:
    """The prompt of an example; raises NeedsMore if it is unusable."""
    prompt = plugin.render(request)
    if fault := returned.prompt_fault(prompt, plugin.declaration.action):
        raise NeedsMore(f"not checked, since render returned {fault}")
    return prompt


def _parsed(plugin: DomainPlugin, prompt: Prompt, output: str) -> Outcome:
    """The outcome of an output; raises NeedsMore if it is unusable."""
    outcome = plugin.parse(prompt, output)
    if fault := returned.outcome_fault(outcome, output):
        raise NeedsMore(f"not checked, since parse returned {fault}")
    return outcome


def checks() -> dict[str, str]:
    """Names of the kit's checks, in order, each with what to do if it fails."""
    return {name: check.remedy for name, check in vars(PluginConformance).items() if name.startswith("test_")}


def _usable(member: str, fault: str) -> None:
    assert not fault, f"{member} returned {fault}"


def _refuses(plugin: DomainPlugin, interaction: Interaction, act: Act) -> None:
    try:
        plugin.to_evidence(interaction, examples.feedback(interaction, act))
    except RequestRefused:
        return
    raise AssertionError(f"{act!r} was not refused with a RequestRefused")


def _read(plugin: DomainPlugin, prompt: Prompt, request: Request, output: str) -> None:
    plugin.parse(prompt, output)
    with contextlib.suppress(RequestRefused):
        plugin.render(request)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextlib.contextmanager
def _no_sockets() -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the plugin opened a socket")

    with (
        mock.patch.object(socket, "create_connection", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
        mock.patch.object(socket.socket, "connect", refuse),
    ):
        yield
