"""A plugin as the core calls it: whatever it does, a call ends in time with something usable or with `PluginFailed`.

Enters: a plugin, which is foreign code. Leaves: a plugin of the same members. What a member raises, a call that takes
longer than its budget, and a result that breaks the rules of `returned` become PluginFailed(domain, member, why), once.
`plugins` makes the guard while loading, so that every caller has it: a request, a record of the join or a turn of the
learner fails by itself, and other domains go on.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias, TypeVar

from plaudit.domain import Declaration, DecodeSpec, DomainPlugin, GateProbe, Mode
from plaudit.errors import PluginFailed, RequestRefused
from plaudit.plugins import returned
from plaudit.plugins.bounded import BoundedCalls, Exits, Overdue, Overrun
from plaudit.types import Evidence, Feedback, Interaction, Outcome, Prompt, Request, RewardTerms

BUDGET_SECONDS = 5.0

T = TypeVar("T")
Said: TypeAlias = tuple[Interaction, Feedback]


class Why(StrEnum):
    """What went wrong in a call of a plugin."""

    RAISED = "raised"
    REFUSED = "refused"
    """It refused what it may not refuse: only `render` may, a bad request."""
    LATE = "late"
    """It took longer than plugins.budget_seconds."""
    HANGS = "hangs"
    """It was not called: too many earlier calls have not come back."""
    UNUSABLE = "unusable"
    """It returned what breaks the contract."""


class GuardedPlugin(DomainPlugin):
    """A plugin that cannot hurt its caller. `report` is told of each failure: domain, member, why."""

    def __init__(
        self,
        inner: DomainPlugin,
        source: str,
        *,
        declaration: Declaration | None = None,
        budget_seconds: float = BUDGET_SECONDS,
    ) -> None:
        self.inner = inner
        self.source = source
        self.report: Callable[[str, str, str], None] = lambda domain, member, why: None
        self._declaration = declaration or inner.declaration
        self._calls = BoundedCalls(f"plaudit-{self._declaration.name}", budget_seconds)
        # What a plugin leaves to the contract's own default needs no guard.
        self._own = {
            member
            for member in ("decode_spec", "reward", "gates", "slices")
            if getattr(type(inner), member) is not getattr(DomainPlugin, member)
        }

    @property
    def declaration(self) -> Declaration:
        """The plugin's frozen facts, read once."""
        return self._declaration

    @property
    def hanging(self) -> int:
        """Calls that have not come back."""
        return self._calls.left

    def render(self, request: Request) -> Prompt:
        """See DomainPlugin."""
        action = self._declaration.action
        return self._guarded(
            "render", lambda: self.inner.render(request), lambda prompt: returned.prompt_fault(prompt, action)
        )

    def parse(self, prompt: Prompt, output: str) -> Outcome:
        """See DomainPlugin."""
        return self._guarded(
            "parse", lambda: self.inner.parse(prompt, output), lambda outcome: returned.outcome_fault(outcome, output)
        )

    def to_evidence(self, interaction: Interaction, feedback: Feedback) -> Sequence[Evidence]:
        """See DomainPlugin."""
        (found,) = self.evidence_of([(interaction, feedback)])
        if isinstance(found, PluginFailed):
            raise found
        return found

    def _evidence_fault(self, interaction: Interaction) -> Callable[[Sequence[Evidence]], str]:
        known = [candidate.candidate_id for candidate in interaction.candidates]
        return lambda items: returned.evidence_fault(items, known, self._declaration)

    def evidence_of(self, acts: Sequence[Said]) -> list[Sequence[Evidence] | PluginFailed]:
        """What `to_evidence` gives for each, or how it failed there; one hand-over to a thread for all in time."""
        ended = self._calls.each(lambda said: _some(self.inner.to_evidence(*said), returned.MAX_EVIDENCE), acts)
        found: list[Sequence[Evidence] | PluginFailed] = []
        for (interaction, _), one in zip(acts, ended, strict=True):
            try:
                found.append(self._judged("to_evidence", one.get, self._evidence_fault(interaction)))
            except PluginFailed as error:
                found.append(error)
        return found

    def decode_spec(self, prompt: Prompt, mode: Mode) -> DecodeSpec:
        """See DomainPlugin."""
        return self._guarded("decode_spec", lambda: self.inner.decode_spec(prompt, mode), returned.spec_fault)

    def reward(self, prompt: Prompt, outcome: Outcome, score: float) -> RewardTerms:
        """See DomainPlugin."""
        return self._guarded("reward", lambda: self.inner.reward(prompt, outcome, score), returned.terms_fault)

    def gates(self) -> Sequence[GateProbe]:
        """See DomainPlugin."""
        return self._guarded("gates", lambda: _some(self.inner.gates(), returned.MAX_PROBES), returned.probes_fault)

    def slices(self, interaction: Interaction) -> Sequence[str]:
        """See DomainPlugin."""
        return self._guarded(
            "slices", lambda: _some(self.inner.slices(interaction), returned.MAX_SLICES), returned.slices_fault
        )

    def _guarded(self, member: str, call: Callable[[], T], fault_of: Callable[[T], str]) -> T:
        alone = member in _DEFAULTS and member not in self._own
        return self._judged(member, call if alone else lambda: self._calls(call), fault_of)

    def _judged(self, member: str, get: Callable[[], T], fault_of: Callable[[T], str]) -> T:
        """What a call gives, if it is usable; raises PluginFailed otherwise."""
        try:
            result = get()
        except PluginFailed:  # of a guard within: it was told and counted there
            raise
        except Overdue as late:
            raise self._failed(member, Why.LATE, f"has not returned within {late.args[0]:.3g} s") from None
        except Overrun as many:
            raise self._failed(
                member, Why.HANGS, f"was not called: {many.args[0]} earlier calls have not come back"
            ) from None
        except RequestRefused as error:
            if member == "render":
                raise
            raise self._failed(member, Why.REFUSED, f"refused with {place_of(error)}") from error
        except Exits as exits:
            raise self._failed(member, Why.RAISED, f"raised {exits}, which ends a process") from exits
        # A plugin is foreign code: whatever it raises is its failure, and the caller's own trouble alone.
        except Exception as error:
            raise self._failed(member, Why.RAISED, f"raised {place_of(error)}") from error
        try:
            fault = fault_of(result)
        # Fields may hold anything, such as None in place of a tuple, or an object that raises if it is compared: then
        # asking is what fails.
        except Exception as error:
            fault = f"a {type(result).__name__} whose fields have wrong types ({type(error).__name__})"
        if fault:
            raise self._failed(member, Why.UNUSABLE, f"returned {fault}")
        return result

    def _failed(self, member: str, why: Why, what: str) -> PluginFailed:
        domain = self._declaration.name
        self.report(domain, member, why)
        return PluginFailed(
            f"plugin {self.source}: {member} {what}; fix or disallow the plugin", domain=domain, member=member, why=why
        )


_DEFAULTS = frozenset({"decode_spec", "reward", "gates", "slices"})


def _some(items: Iterable[T], most: int) -> Sequence[T]:
    """The items, and one more than `most` at most: a generator may have no end."""
    return tuple(itertools.islice(items, most + 1))


def place_of(error: BaseException) -> str:
    """An exception of a plugin without its message, which may quote what people wrote: its type and its place."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
