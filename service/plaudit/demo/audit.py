"""What the log holds, and whether anything that was acknowledged is lost or counted twice.

Enters: the event log, the evidence store and what the simulated people wrote down themselves. Leaves: counts. Reads
the log from its first record under a group of its own and commits nothing.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from plaudit import ids
from plaudit.errors import Undecodable
from plaudit.eventlog import EventLog, Topic
from plaudit.eventlog.codec import Decoded, decode
from plaudit.evidence.store import FrozenDataSet, JoinCounts
from plaudit.types import Candidate, Channel, Feedback, Interaction, Purpose

Act = tuple[str, str]
"""Interaction id and feedback id: a feedback id counts within its interaction."""

_BATCH = 500
_LONGEST_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A recorded interaction. `started` is in its id (UUIDv7)."""

    interaction: Interaction
    started: dt.datetime

    @property
    def completed(self) -> dt.datetime:
        """When the reply was complete."""
        return self.interaction.completed_at

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Its completions."""
        return self.interaction.candidates

    @property
    def evaluation(self) -> bool:
        """Whether an evaluation asked."""
        return self.interaction.purpose is Purpose.EVALUATE

    def spans(self, moment: dt.datetime) -> bool:
        """Whether it began before `moment` and ended after it."""
        return self.started < moment < self.completed


@dataclass(frozen=True, slots=True)
class LogContents:
    """Records of one channel."""

    replies: tuple[Reply, ...]
    acts: Counter[Act]


def read_log(log: EventLog, channel: Channel) -> LogContents:
    """All interactions and acts of a channel that the log holds, in order of their completion."""
    replies: dict[str, Reply] = {}
    acts: Counter[Act] = Counter()
    for record in _records(log, (Topic.INTERACTIONS, Topic.FEEDBACK)):
        if isinstance(record, Interaction) and record.channel == channel:
            replies.setdefault(record.interaction_id, Reply(record, moment_of(record.interaction_id)))
        elif isinstance(record, Feedback) and record.channel == channel:
            acts[record.interaction_id, record.feedback_id] += 1
    return LogContents(tuple(sorted(replies.values(), key=lambda reply: reply.completed)), acts)


def moment_of(identifier: str) -> dt.datetime:
    """The time in a UUIDv7 (RFC 9562, section 5.7: the first 48 bits are milliseconds since 1970)."""
    return dt.datetime.fromtimestamp((uuid.UUID(identifier).int >> 80) / 1000, dt.UTC)


def feedback_counts(
    acknowledged: Iterable[Act], contents: LogContents, counts: JoinCounts, frozen: FrozenDataSet
) -> dict[str, int]:
    """Counts of report.json under "feedback".

    lost: acknowledged to a person and not in the log, or in the log and unknown to the join. doubled: evidence rows
    that say one thing of one act twice, or acts that the join counts and nobody sent.
    """
    told = list(acknowledged)
    acts = set(contents.acts)
    rows = Counter((row.interaction_id, row.feedback_id, row.index) for row in frozen.rows)
    return {
        "acknowledged": len(told),
        "joined": counts.joined,
        "rejected": counts.rejected,
        "lost": len(set(told) - acts) + max(0, len(acts) - counts.acknowledged),
        "doubled": sum(times - 1 for times in rows.values()) + max(0, counts.acknowledged - len(acts)),
        "waiting": counts.waiting,
        "superseded": counts.superseded,
        "retracted": counts.retracted,
        "withheld": counts.withheld,
    }


def _records(log: EventLog, topics: tuple[Topic, ...]) -> Iterator[Decoded]:
    consumer = log.consumer(topics, f"plaudit-audit-{ids.new_id()}", dict)
    deadline = time.monotonic() + _LONGEST_SECONDS
    at: dict[tuple[Topic, int], int] = {}
    try:
        while time.monotonic() < deadline:
            batch = consumer.poll(0.5, _BATCH)
            for record in batch:
                at[record.topic, record.partition] = record.offset + 1
                try:
                    yield decode(record.value)
                except Undecodable:
                    # The join has put it on plaudit.rejected with its reason; an audit counts what can be read.
                    continue
            ends = consumer.end_positions()
            if not batch and ends and all(at.get(place, 0) >= end for place, end in ends.items() if end):
                return
    finally:
        consumer.close()
