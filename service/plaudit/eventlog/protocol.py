"""What an event log promises, whichever program keeps it.

Enters: encoded records with a key. Leaves: the same bytes with topic, partition and offset, in order per partition.
A log never decodes a record and never keeps a reader's place: offsets belong to the evidence store, which commits
them together with what was made of the records.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from plaudit.errors import MessageTooLarge

# 4 MiB of request, and eight candidates with their prompt, tokens and log-probs, leave half of this free.
MAX_RECORD_BYTES = 16 * 1024 * 1024
# A rejected record carries the whole record that it is about, a key and two sentences.
REJECTED_OVERHEAD_BYTES = 64 * 1024


class Topic(enum.StrEnum):
    """The four topics."""

    INTERACTIONS = "plaudit.interactions"
    FEEDBACK = "plaudit.feedback"
    RELEASES = "plaudit.releases"
    REJECTED = "plaudit.rejected"


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it lies in the log; `timestamp` is when the log took it."""

    topic: Topic
    partition: int
    offset: int
    key: bytes
    value: bytes
    timestamp: dt.datetime


# Next offset to read of each partition; a partition that is missing is read from its earliest record.
Positions: TypeAlias = Mapping[tuple[Topic, int], int]


class Consumer(Protocol):
    """Reads the partitions it is assigned, from the positions it is given. For one thread."""

    def poll(self, timeout_seconds: float, max_records: int) -> list[Record]:
        """Records in order per partition; empty where none came in time. Raises LogUnavailable."""

    def assigned(self) -> frozenset[tuple[Topic, int]]:
        """Partitions that this consumer reads at the moment; they change only within `poll`."""

    def end_positions(self) -> dict[tuple[Topic, int], int]:
        """Offset that the next record of each assigned partition will get. Raises LogUnavailable."""

    def acknowledge(self, positions: Positions) -> None:
        """Tells the log how far the store has come, so that its lag tools can show it; never read back."""

    def close(self) -> None:
        """Gives the partitions back."""


class EventLog(Protocol):
    """A durable log of four topics. Its methods may be called from any thread."""

    def append(self, topic: Topic, key: str, value: bytes) -> tuple[int, int]:
        """Partition and offset of the record, once it is durable.

        Raises LogUnavailable where durability is unknown or refused (the record may still appear: every record has
        an id of its own, so sending it again is right), MessageTooLarge where no retry can help.
        """

    def append_many(self, topic: Topic, items: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """As `append`, for several records in order; returns once all are durable, raises where any is not."""

    def find(self, topic: Topic, key: str, most: int) -> list[bytes] | None:
        """The first `most` records under a key, oldest first; None if this log cannot look them up (Kafka)."""

    def consumer(self, topics: Sequence[Topic], group: str, positions: Callable[[], Positions]) -> Consumer:
        """A reader of these topics. `positions` is asked whenever partitions are assigned to it."""

    def close(self) -> None:
        """Lets go of files and connections; later calls raise LogUnavailable."""


def record_limit(topic: Topic) -> int:
    """Largest value, in bytes, that the topic takes."""
    return MAX_RECORD_BYTES + (REJECTED_OVERHEAD_BYTES if topic is Topic.REJECTED else 0)


def check_size(topic: Topic, value: bytes) -> None:
    """Refuses a value that is too large for the topic, alike in every log; raises MessageTooLarge."""
    limit = record_limit(topic)
    if len(value) > limit:
        raise MessageTooLarge(
            f"a record of {len(value)} bytes exceeds the {limit} bytes that {topic} takes; send less text",
            limit=limit,
        )
