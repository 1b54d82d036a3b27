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

from plaudit.errors import MessageTooLarge, Misconfigured

# 4 MiB of request, and eight candidates with their prompt, tokens and log-probs, leave half of this free.
MAX_RECORD_BYTES = 16 * 1024 * 1024
# A rejected record carries the whole record that it is about, a key and two sentences.
REJECTED_OVERHEAD_BYTES = 64 * 1024
HOW_TO_DECIDE = (
    "Restore the topic as it was, or decide: `plaudit join reset --from earliest` reads all that is there now (what "
    "was read before counts once), `--from latest` leaves it out"
)


# Names and values, in order.
Headers: TypeAlias = tuple[tuple[str, bytes], ...]


class Topic(enum.StrEnum):
    """The four topics."""

    INTERACTIONS = "plaudit.interactions"
    FEEDBACK = "plaudit.feedback"
    RELEASES = "plaudit.releases"
    REJECTED = "plaudit.rejected"


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it lies in the log; `timestamp` is when the log took it.

    `headers` are those of Kafka; Plaudit writes none and reads none.
    """

    topic: Topic
    partition: int
    offset: int
    key: bytes
    value: bytes
    timestamp: dt.datetime
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on in one partition, within one life of its topic.

    A topic that was deleted and made again, or a file that was replaced, has another `topic_id` under the same name;
    one that lost records, or was restored, holds another record before `next` than the one that `before` names
    (`codec.record_mark`). Either is empty if it is not known.
    """

    next: int
    topic_id: str = ""
    before: str = ""


# A partition that is missing is read from its earliest record.
Positions: TypeAlias = Mapping[tuple[Topic, int], Place]


class Consumer(Protocol):
    """Reads the partitions it is assigned, from the positions it is given. For one thread.

    A partition whose place names the record before it begins with that record, so that the reader can tell whether it
    still is the same one. Raises Misconfigured for a place in another life of its topic, or behind its end.
    """

    def poll(self, timeout_seconds: float, max_records: int) -> list[Record]:
        """Records in order per partition; empty if none came in time. Raises LogUnavailable."""

    def assigned(self) -> frozenset[tuple[Topic, int]]:
        """Partitions that this consumer reads at the moment; they change only within `poll`."""

    def topic_ids(self) -> Mapping[Topic, str]:
        """Identity of each topic that is read: it changes if a topic, or the embedded log's file, is made anew."""

    def end_positions(self) -> dict[tuple[Topic, int], int]:
        """Offset that the next record of each assigned partition will get. Raises LogUnavailable."""

    def first_positions(self) -> dict[tuple[Topic, int], int]:
        """Offset of the first record that each assigned partition holds; of its next one if it holds none.

        Raises LogUnavailable.
        """

    def at_end(self) -> bool:
        """Whether all that its partitions hold was handed out; False without partitions. Raises LogUnavailable."""

    def acknowledge(self, offsets: Mapping[tuple[Topic, int], int]) -> None:
        """Tells the log how far the store has come, so that its lag tools can show it; never read back."""

    def close(self) -> None:
        """Gives the partitions back."""


class EventLog(Protocol):
    """A durable log of four topics. Its methods may be called from any thread."""

    def append(self, topic: Topic, key: str, value: bytes) -> tuple[int, int]:
        """Partition and offset of the record, once it is durable.

        Raises LogUnavailable if durability is unknown or refused (the record may still appear: every record has
        an id of its own, so sending it again is right), MessageTooLarge if no retry can help.
        """

    def append_many(self, topic: Topic, items: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """As `append`, for several records in order; returns once all are durable, raises if any is not."""

    def find(self, topic: Topic, key: str, most: int) -> list[bytes] | None:
        """The first `most` records under a key, oldest first; None if this log cannot look them up (Kafka)."""

    def consumer(self, topics: Sequence[Topic], group: str, positions: Callable[[], Positions]) -> Consumer:
        """A reader of these topics. `positions` is asked whenever partitions are assigned to it."""

    def close(self) -> None:
        """Lets go of files and connections; later calls raise LogUnavailable."""


def check_life(place: str, wanted: Place, topic_id: str, end: int) -> None:
    """Raises Misconfigured if a place cannot be in this life of the topic, alike in every log.

    `place` names the partition, `topic_id` is its topic's identity now, `end` the offset that its next record gets.
    """
    if wanted.topic_id and topic_id and wanted.topic_id != topic_id:
        raise Misconfigured(
            f"{place} is another topic than the one that was read: its identity is {topic_id}, and the evidence store "
            f"has read up to offset {wanted.next} of {wanted.topic_id}, so the topic was made anew. {HOW_TO_DECIDE}",
            setting="log.kind",
        )
    if wanted.next > end:
        raise Misconfigured(
            f"{place} (identity {topic_id or 'unknown'}) ends at offset {end}, and the evidence store has read up to "
            f"offset {wanted.next} of it: the topic lost records, was replaced or was restored from an older copy. "
            f"{HOW_TO_DECIDE}",
            setting="log.kind",
        )


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
