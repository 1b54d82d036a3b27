"""Interactions, acts and a plain domain for tests of the join and of what reads its evidence; the way onto a log.

`PlainDomain` turns thumbs into Binary, choices into Pair, rankings into RankingEvidence and corrections into Demo.
A correction to "boom" makes it raise, and one to "stranger" makes it name a candidate that does not exist: two ways
in which a plugin fails.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plaudit.domain import Declaration, DomainPlugin
from plaudit.eventlog import EventLog, Topic
from plaudit.eventlog.codec import Retraction, encode_feedback, encode_interaction, encode_retraction
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.settings import JoinSettings
from plaudit.types import (
    Act,
    Action,
    Binary,
    Candidate,
    Channel,
    Choice,
    Correction,
    Demo,
    Evidence,
    Feedback,
    FeedbackKind,
    FinishReason,
    Interaction,
    Message,
    Outcome,
    Pair,
    PairOutcome,
    Prompt,
    Purpose,
    Ranking,
    RankingEvidence,
    Request,
    Sampling,
    Thumbs,
)

CHANNEL = Channel("plain", "acme")
START = dt.datetime(2027, 1, 4, 9, 0, tzinfo=dt.UTC)


class PlainDomain(DomainPlugin):
    """Completions with thumbs, choices, rankings, corrections and comments."""

    @property
    def declaration(self) -> Declaration:
        """Facts of the domain."""
        kinds = (FeedbackKind.THUMBS, FeedbackKind.CHOICE, FeedbackKind.RANKING, FeedbackKind.CORRECTION)
        return Declaration(
            name=CHANNEL.domain,
            version="1",
            action=Action.COMPLETION,
            kinds=frozenset((*kinds, FeedbackKind.COMMENT)),
        )

    def render(self, request: Request) -> Prompt:
        """The messages as they are, grouped by the last one's text."""
        return Prompt(messages=request.messages, group=request.messages[-1].content)

    def parse(self, prompt: Prompt, output: str) -> Outcome:
        """All of the output."""
        return Outcome(displayed=output)

    def to_evidence(self, interaction: Interaction, feedback: Feedback) -> Sequence[Evidence]:
        """One piece of evidence an act, none of a comment."""
        match feedback.act:
            case Thumbs(candidate_id=candidate, up=up):
                return [Binary(candidate=candidate, positive=up)]
            case Choice(chosen_id=chosen, other_id=other, tie=tie, tie_offered=offered):
                outcome = PairOutcome.TIE if tie else PairOutcome.FIRST
                return [Pair(first=chosen, second=other, outcome=outcome, tie_offered=offered)]
            case Ranking(candidate_ids=order):
                return [RankingEvidence(order=order)]
            case Correction(text="boom"):
                raise RuntimeError("boom")
            case Correction(text="stranger"):
                return [Binary(candidate="stranger", positive=True)]
            case Correction(candidate_id=candidate, text=text):
                return [Demo(candidate=candidate, text=text, margin=0.5)]
            case _:
                return []


def make_interaction(
    interaction_id: str,
    *,
    group: str = "",
    candidates: int = 2,
    purpose: Purpose = Purpose.SERVE,
    channel: Channel = CHANNEL,
    completed_at: dt.datetime = START,
) -> Interaction:
    """An interaction with candidates "a", "b", ...; its prompt group is its own unless one is named."""
    group = group or f"group of {interaction_id}"
    return Interaction(
        interaction_id=interaction_id,
        channel=channel,
        purpose=purpose,
        action=Action.COMPLETION,
        messages=(Message("user", group),),
        prompt_group=group,
        candidates=tuple(make_candidate(chr(ord("a") + index)) for index in range(candidates)),
        completed_at=completed_at,
        prompt_tokens=(1, 2, 3),
        session_id="session",
        plugin_version="1",
        base_digest="00" * 32,
    )


def make_candidate(candidate_id: str) -> Candidate:
    """A short completion of the base, with log-probs that a 32-bit float holds exactly."""
    return Candidate(
        candidate_id=candidate_id,
        release_version=0,
        release_digest="",
        tokens=(7, 8, 2),
        logprobs_raw=(-0.5, -1.25, -0.125),
        logprobs_sampled=(-0.25, -1.0, -0.0625),
        text=f"text {candidate_id}",
        displayed_text=f"text {candidate_id}",
        finish_reason=FinishReason.EOS,
        sampling=Sampling(temperature=0.75, stop=("\n",)),
        seed=2**64 - 1,
        width=4,
    )


def make_feedback(
    feedback_id: str,
    interaction_id: str,
    act: Act,
    *,
    rater: str = "ann",
    session_id: str = "",
    seconds: float = 0.0,
    channel: Channel = CHANNEL,
) -> Feedback:
    """An act that was accepted so many seconds after START."""
    return Feedback(
        feedback_id=feedback_id,
        interaction_id=interaction_id,
        channel=channel,
        act=act,
        accepted_at=START + dt.timedelta(seconds=seconds),
        rater=rater,
        session_id=session_id,
    )


def append(log: EventLog, *items: Interaction | Feedback | Retraction) -> None:
    """Put records on a log in this order, each under its interaction's id, as serving does."""
    for item in items:
        match item:
            case Interaction():
                log.append(Topic.INTERACTIONS, item.interaction_id, encode_interaction(item, producer="test"))
            case Feedback():
                log.append(Topic.FEEDBACK, item.interaction_id, encode_feedback(item, producer="test"))
            case Retraction():
                log.append(Topic.FEEDBACK, item.interaction_id, encode_retraction(item, producer="test"))


def join_all(join: Join) -> None:
    """Join until the log has nothing more."""
    while join.run_once(0):
        pass


class JoinedStore:
    """An embedded log, a store, and a join of `PlainDomain` between them, in one folder."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder, self.url = folder, url or f"sqlite:///{folder / 'evidence.sqlite'}"
        self.log = SqliteEventLog(folder / "log.sqlite")
        self.store = EvidenceStore(self.url)
        self.worker = self.new_worker()

    def new_worker(self, **options: Any) -> Join:
        """A join with these options."""
        return Join(self.log, self.store, {CHANNEL.domain: PlainDomain()}, JoinSettings(), **options)

    def append(self, *items: Interaction | Feedback | Retraction) -> None:
        """Put records on the log, and do not join them yet."""
        append(self.log, *items)

    def join(self, *items: Interaction | Feedback | Retraction) -> None:
        """Put records on the log, and join all that it has."""
        self.append(*items)
        join_all(self.worker)

    def close(self) -> None:
        """Close the three."""
        self.worker.close()
        self.store.close()
        self.log.close()
