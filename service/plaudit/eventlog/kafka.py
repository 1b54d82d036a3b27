"""Kafka as the event log.

Enters: encoded records. Leaves: records with Kafka's partitions and offsets. A record is acknowledged once all in-sync
replicas hold it. Places are never kept in Kafka: at every assignment a consumer asks the evidence store where to go on,
and what it commits to Kafka afterwards is for lag tools only.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from kafka import (
    ConsumerRebalanceListener,
    KafkaAdminClient,
    KafkaConsumer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.structs import MemberState

from plaudit.errors import LogUnavailable
from plaudit.eventlog.kafka_clients import connected, keep_finished_joins, unreachable
from plaudit.eventlog.kafka_producer import SharedProducer
from plaudit.eventlog.kafka_topics import ensure_topics
from plaudit.eventlog.protocol import Place, Positions, Record, Topic, check_life, check_size
from plaudit.settings import KafkaSettings

_log = structlog.get_logger(__name__)

# A consumer that was killed is noticed after this time, and its partitions go to another.
SESSION_SECONDS = 10
METADATA_SECONDS = 10  # after so long a partition that was added is read
HANGING_SECONDS = 1.0
# kafka-python may stop fetching when its partitions change while it waits at their end; then it is made anew.
# Both are of polls in a row that brought nothing: a worker that was busy meanwhile could hear nothing, and neither can
# one whose group forms, but no group forms for ever.
SILENT_SECONDS = 5.0
FORMING_SECONDS = 30.0
# No place, or one that the partition does not hold: the store is asked again, and what it says is checked again.
PLACELESS = (kafka_errors.NoOffsetForPartitionError, kafka_errors.OffsetOutOfRangeError)


class KafkaEventLog:
    """The event log on Kafka brokers; makes missing topics and checks the others when it opens."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        ensure_topics(settings)
        self._producer = SharedProducer(settings)

    def append(self, topic: Topic, key: str, value: bytes) -> tuple[int, int]:
        """Partition and offset of the record, once all in-sync replicas hold it."""
        return self.append_many(topic, [(key, value)])[0]

    def append_many(self, topic: Topic, items: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """As `append`, for several records; if it raises, any of them may be in the log."""
        return self.append_within(topic, items, self._settings.timeout_seconds + HANGING_SECONDS)

    def append_within(self, topic: Topic, items: Sequence[tuple[str, bytes]], seconds: float) -> list[tuple[int, int]]:
        """As `append_many`; raises LogUnavailable if the brokers have not acknowledged after so many seconds."""
        for _, value in items:
            check_size(topic, value)
        return self._producer.send(topic, items, seconds) if items else []

    def consumer(self, topics: Sequence[Topic], group: str, positions: Callable[[], Positions]) -> KafkaLogConsumer:
        """A member of the group; Kafka shares the partitions among the members."""
        return KafkaLogConsumer(self._settings, topics, group, positions)

    def find(self, topic: Topic, key: str, most: int) -> list[bytes] | None:
        """None: a topic can only be read from end to end."""
        return None

    def close(self) -> None:
        """Sends what is under way, waits for it at most the timeout, and disconnects."""
        self._producer.close()


class _Assignments(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Notes that partitions changed. It runs on the client's own thread, which must not wait for a database."""

    def __init__(self) -> None:
        self.changed = threading.Event()

    def on_partitions_revoked(self, revoked: object) -> None:
        self.changed.set()

    def on_partitions_assigned(self, assigned: object) -> None:
        self.changed.set()


class KafkaLogConsumer:
    """A group member that reads from where the evidence store stands."""

    def __init__(
        self, settings: KafkaSettings, topics: Sequence[Topic], group: str, positions: Callable[[], Positions]
    ) -> None:
        self._settings = settings
        self._positions = positions
        self._topic_of = {settings.topic_prefix + topic: topic for topic in topics}
        self._assignments = _Assignments()
        self._assigned: frozenset[tuple[Topic, int]] = frozenset()
        self._admin: Any = None
        self._topic_ids: dict[Topic, str] = {}  # empty until somebody asks for them
        self._group = settings.topic_prefix + group
        self._silent = 0.0  # seconds of polls in a row that brought nothing
        self._consumer = self._subscribed()

    def _subscribed(self) -> Any:
        settings = self._settings
        milliseconds = int(settings.timeout_seconds * 1000)
        consumer = connected(
            KafkaConsumer,
            settings,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",  # from the middle of another life of the topic, nothing is ever read
            # By ranges: partition i of interactions and of feedback go to one member.
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=SESSION_SECONDS * 1000,
            heartbeat_interval_ms=SESSION_SECONDS * 1000 // 4,
            request_timeout_ms=max(milliseconds, SESSION_SECONDS * 1000 + 1),
            allow_auto_create_topics=False,
            metadata_max_age_ms=METADATA_SECONDS * 1000,
        )
        keep_finished_joins(consumer)
        with unreachable(settings):
            # Known before the group forms: a leader that knows no partitions would share out none, and wait.
            for name in sorted(self._topic_of):
                consumer.partitions_for_topic(name)
            consumer.subscribe(sorted(self._topic_of), listener=self._assignments)
        return consumer

    def poll(self, timeout_seconds: float, max_records: int) -> list[Record]:
        """Records in order per partition; joins the group, and finds its place, on the way."""
        began = time.monotonic()
        with self._failing("polled"):
            try:
                batches = self._consumer.poll(timeout_ms=int(timeout_seconds * 1000), max_records=max_records)
            except PLACELESS:
                batches = {}
                self._assignments.changed.set()
            if self._assignments.changed.is_set() or self._current() != self._assigned:
                # These records were fetched before the store said where to begin.
                self._take_places()
                return []
            if batches and self._topic_ids and self._ask_topic_ids() != self._topic_ids:
                # A topic was made anew meanwhile, and these records may be of either life of it.
                self._topic_ids = {}
                self._take_places()
                return []
            self._silent = 0.0 if batches else self._silent + time.monotonic() - began
            if self._silent > SILENT_SECONDS:
                forms = self._consumer.group_metadata().state is not MemberState.STABLE
                if not forms or self._silent > FORMING_SECONDS:
                    self._listen_again(forms)
        return [
            Record(
                self._topic_of[partition.topic],
                partition.partition,
                message.offset,
                message.key or b"",
                message.value or b"",
                dt.datetime.fromtimestamp(message.timestamp / 1000, dt.UTC),
                tuple((name, value or b"") for name, value in message.headers),
            )
            for partition, messages in batches.items()
            for message in messages
        ]

    def _listen_again(self, forms: bool) -> None:
        """A new client instead of one whose group `forms` for too long, or that fetches nothing though records wait."""
        self._silent = 0.0
        if not forms:
            partitions = [self._partition(*place) for place in self._assigned]
            ends = self._consumer.end_offsets(partitions) if partitions else {}
            if all(self._consumer.position(each) >= ends[each] for each in partitions):
                return
        _log.warning("event_log_consumer_made_anew", group_forms=forms)
        self._assigned = frozenset()
        # The broker reads that it leaves after it has answered that it joins, and that is what does not come.
        seconds = HANGING_SECONDS if forms else self._settings.timeout_seconds
        self._consumer.close(autocommit=False, timeout_ms=int(seconds * 1000))
        self._consumer = self._subscribed()

    def assigned(self) -> frozenset[tuple[Topic, int]]:
        """Partitions that the group gave to this member."""
        return self._assigned

    def topic_ids(self) -> Mapping[Topic, str]:
        """Kafka's own identities of the topics; once asked for, they are checked before records are handed out."""
        with self._failing("asked for its topics"):
            self._topic_ids = self._topic_ids or self._ask_topic_ids()
        return dict(self._topic_ids)

    def end_positions(self) -> dict[tuple[Topic, int], int]:
        """Offset that the next record of each assigned partition will get."""
        return self._offsets("end_offsets")

    def first_positions(self) -> dict[tuple[Topic, int], int]:
        """Offset of the first record that each assigned partition still holds."""
        return self._offsets("beginning_offsets")

    def _offsets(self, which: str) -> dict[tuple[Topic, int], int]:
        with self._failing("asked for its offsets"):
            found = getattr(self._consumer, which)([self._partition(*place) for place in self._assigned])
        return {(self._topic_of[partition.topic], partition.partition): offset for partition, offset in found.items()}

    def at_end(self) -> bool:
        """Whether all that its partitions hold was handed out."""
        partitions = [self._partition(*place) for place in self._assigned]
        with self._failing("asked for its end"):
            ends = self._consumer.end_offsets(partitions) if partitions else {}
            return bool(partitions) and all(self._consumer.position(each) >= ends[each] for each in partitions)

    def acknowledge(self, offsets: Mapping[tuple[Topic, int], int]) -> None:
        """Commits the places to Kafka, without waiting: a commit that fails is made good by the next one."""
        commits = {
            self._partition(*place): OffsetAndMetadata(offset, "", -1)
            for place, offset in offsets.items()
            if place in self._assigned
        }
        if commits:
            with self._failing("told the places"):
                self._consumer.commit_async(commits)

    def close(self) -> None:
        """Leaves the group, so that the others take over at once."""
        self._assigned = frozenset()
        self._consumer.close(autocommit=False, timeout_ms=int(self._settings.timeout_seconds * 1000))
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def _take_places(self) -> None:
        """Goes to the store's place in every assigned partition.

        The note is torn up first: an assignment that comes meanwhile is written anew and seen at the next poll. It is
        put back if this fails, so that no record is ever handed out from a place that the store did not name.
        """
        self._assignments.changed.clear()
        self._silent = 0.0
        try:
            self._assigned = self._current()
            partitions = [self._partition(*place) for place in sorted(self._assigned)]
            if not partitions:
                return
            places = self._positions()
            if any(place.topic_id for place in places.values()):
                self._topic_ids = self._ask_topic_ids()
                self._check_lives(places)
            firsts = self._consumer.beginning_offsets(partitions)
            ends = self._consumer.end_offsets(partitions)
            for each in partitions:
                wanted = places.get((self._topic_of[each.topic], each.partition))
                topic_id = self._topic_ids.get(self._topic_of[each.topic], "")
                if each in self._consumer.assignment():
                    self._consumer.seek(each, _start(each, wanted, topic_id, firsts[each], ends[each]))
        except BaseException:
            self._assignments.changed.set()
            raise

    def _check_lives(self, places: Positions) -> None:
        """Of all partitions of these topics, not only the assigned ones: a life is the topic's."""
        for (topic, partition), place in sorted(places.items()):
            if topic in self._topic_of.values():
                name = f"{self._settings.topic_prefix}{topic}-{partition}"
                check_life(name, place, self._topic_ids.get(topic, ""), place.next)

    def _ask_topic_ids(self) -> dict[Topic, str]:
        """A few milliseconds. Raises LogUnavailable for a topic that is not there now."""
        if self._admin is None:
            milliseconds = int(self._settings.timeout_seconds * 1000)
            self._admin = connected(KafkaAdminClient, self._settings, request_timeout_ms=milliseconds)
        found = {}
        for each in self._admin.describe_topics(sorted(self._topic_of)):
            if each["error_code"]:
                raise LogUnavailable(
                    f"the topic {each['name']} at {self._settings.bootstrap} is not there now; it is asked again"
                )
            found[self._topic_of[each["name"]]] = str(each["topic_id"])
        return found

    def _current(self) -> frozenset[tuple[Topic, int]]:
        return frozenset((self._topic_of[each.topic], each.partition) for each in self._consumer.assignment())

    def _partition(self, topic: Topic, partition: int) -> Any:
        return TopicPartition(self._settings.topic_prefix + topic, partition)

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except kafka_errors.KafkaError as error:
            raise LogUnavailable(
                f"the event log at {self._settings.bootstrap} could not be {what} ({error!r}); check the brokers"
            ) from error


def _start(partition: Any, wanted: Place | None, topic_id: str, first: int, end: int) -> int:
    """Where to read on, given the store's place and what the broker still holds."""
    name = f"{partition.topic}-{partition.partition}"
    if wanted is None:
        return first
    check_life(name, wanted, topic_id, end)
    if wanted.next < first:
        # The join counts them, in the transaction that moves the place past them.
        _log.error("event_log_records_expired_unread", partition=name, wanted=wanted.next, first=first)
    return max(wanted.next - 1 if wanted.before and wanted.next else wanted.next, first)
