"""The outbox: the embedded log in front of Kafka, for records that the brokers do not take in time.

Enters: encoded records. Leaves: the same records in Kafka, in order per key. An append is durable when it returns: in
Kafka, or in the file of the outbox, which survives the process. While the outbox holds records, new ones are put behind
them. One thread moves them to the brokers, oldest first. Appends go to Kafka again once the records are moved that were
there before or that this process put there. If several processes share the folder, one at a time moves records, those
of a process that died included.

The protocol (the same numbers stand in docs/join.md; `outbox.N` is the fail point after step N):

1. Keep: the record is on disk, and its caller gets its answer.
2. Read the oldest records of a topic.
3. Send them, until all in-sync replicas hold them.
4. Delete them from the file.

A crash between 3 and 4 sends them again: the same bytes under the same event id, which the join knows. A record that
the brokers were given and did not acknowledge in time may be there twice for the same reason.

While the last few records are moved, new callers wait for that, at most `patience_seconds` from its beginning:
otherwise callers who never pause would keep the outbox in use, one record behind another.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from plaudit import __version__
from plaudit.errors import LogUnavailable, MessageTooLarge, Misconfigured, OutboxFull
from plaudit.eventlog.codec import Rejected, encode_rejected, without_bytes
from plaudit.eventlog.protocol import Consumer, EventLog, Positions, Record, Topic, check_size
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.failpoints import fail_point
from plaudit.settings import OutboxSettings
from plaudit.store.files import is_full

OUTBOX_FILE = "outbox.sqlite"
# Partition of a record in the outbox: which one of Kafka's it gets is not known yet.
PARTITION_UNKNOWN = -1
BATCH_RECORDS = 256
LAST_RECORDS = 64  # so few are moved while new ones wait
BATCH_BYTES = 4 * 1024 * 1024
RETRY_SECONDS = 1.0
CLOSING_SECONDS = 5.0  # a batch may be under way; it is sent again after the next start
LINE_SECONDS = 60.0
# What a record costs in the file beside its bytes: pages of the table and of its index.
RECORD_OVERHEAD_BYTES = 8192

_log = structlog.get_logger(__name__)


class PatientLog(EventLog, Protocol):
    """A log that can be told how long to wait for the brokers."""

    def append_within(self, topic: Topic, items: Sequence[tuple[str, bytes]], seconds: float) -> list[tuple[int, int]]:
        """As `append_many`; raises LogUnavailable if the brokers have not acknowledged after so many seconds."""


@dataclass(frozen=True, slots=True)
class OutboxState:
    """What lies in the outbox: records, bytes of the file that are in use, age of the oldest record (seconds)."""

    records: int
    size: int
    oldest_seconds: float


class OutboxLog:
    """Kafka with the outbox before it. Its methods may be called from any thread.

    `connect` opens Kafka, and raises LogUnavailable while no broker answers. `kept` and `drained` are told a topic and
    how many records of it went into the outbox or out of it.
    """

    def __init__(
        self,
        folder: Path,
        connect: Callable[[], PatientLog],
        settings: OutboxSettings,
        *,
        kept: Callable[[Topic, int], None] = lambda topic, records: None,
        drained: Callable[[Topic, int], None] = lambda topic, records: None,
    ) -> None:
        self._connect = connect
        self._settings = settings
        self._kept, self._drained = kept, drained
        self._folder = folder
        self._box = SqliteEventLog(folder / OUTBOX_FILE)
        self._lock = threading.Lock()
        self._way = threading.Condition(self._lock)
        self._held_until = 0.0  # whoever comes waits while the last records are moved, and never longer
        self._closed = False
        self._entering = 0  # appends that are on their way into the outbox
        self._reserved = 0
        self._kafka: PatientLog | None = None
        try:
            self._kafka = connect()
        except LogUnavailable as error:
            _log.warning("outbox.starts_without_kafka", why=error.message)
        # Up to which offset of each topic records are moved before this process appends to Kafka again.
        self._own = {topic: self._box.span(topic)[1] for topic in Topic}
        self._sent = dict.fromkeys(Topic, 0)  # up to which offset this process has sent them
        self._direct = self._kafka is not None and not self._left()
        self._wake = threading.Event()
        self._next_line = 0.0
        # Several processes may share the folder: one of them moves records, the others wait for it.
        self._guard = os.open(folder / f"{OUTBOX_FILE}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        self._thread = threading.Thread(target=self._run, name="plaudit-outbox", daemon=True)
        self._thread.start()

    def append(self, topic: Topic, key: str, value: bytes) -> tuple[int, int]:
        """Partition and offset in Kafka, or PARTITION_UNKNOWN and the offset in the outbox; durable in either."""
        return self.append_many(topic, [(key, value)])[0]

    def append_many(self, topic: Topic, items: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """As `append`, for several records in order. Raises OutboxFull if neither takes them."""
        for _, value in items:
            check_size(topic, value)
        with self._way:
            if (held := self._held_until - time.monotonic()) > 0:
                self._way.wait_for(lambda: not self._held_until or self._closed, held)
            if self._closed:
                raise LogUnavailable("the event log is closed", topic=topic)
            kafka = self._kafka if self._direct else None
            self._entering += kafka is None
        if kafka is not None:
            try:
                return kafka.append_within(topic, items, self._settings.patience_seconds)
            except (LogUnavailable, Misconfigured) as error:  # the outbox keeps the act, whatever the reason
                with self._lock:
                    self._direct = False
                    self._entering += 1
                self._say("outbox.takes_over", why=error.message)
        try:
            return self._keep(topic, items)
        finally:
            with self._lock:
                self._entering -= 1
            self._wake.set()

    def find(self, topic: Topic, key: str, most: int) -> list[bytes] | None:
        """None: Kafka cannot be asked for a key."""
        return None

    def consumer(self, topics: Sequence[Topic], group: str, positions: Callable[[], Positions]) -> Consumer:
        """A member of a group of Kafka's. Raises LogUnavailable until the brokers were reached once."""
        with self._lock:
            kafka = self._kafka
        if kafka is None:
            raise LogUnavailable("no broker has answered since the start; it is asked again")
        return kafka.consumer(topics, group, positions)

    def state(self) -> OutboxState:
        """What lies in the outbox now; zeros once it is closed."""
        try:
            found = self._box.pending()
        except LogUnavailable:
            return OutboxState(0, 0, 0.0)
        now = dt.datetime.now(dt.UTC)
        oldest = 0.0 if found.oldest is None else max(0.0, (now - found.oldest).total_seconds())
        return OutboxState(found.records, found.size, oldest)

    def close(self) -> None:
        """Stops moving records; what is left is moved after the next start."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._way.notify_all()
        self._wake.set()
        self._thread.join(CLOSING_SECONDS)
        left = self.state().records
        if left:
            _log.warning("outbox.keeps_records", records=left, file=str(self._folder / OUTBOX_FILE))
        if self._kafka is not None:
            self._kafka.close()
        self._box.close()
        os.close(self._guard)

    def _keep(self, topic: Topic, items: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """Step 1."""
        limit = self._settings.max_mb * 1024 * 1024
        size = sum(len(key) + len(value) + RECORD_OVERHEAD_BYTES for key, value in items)
        with self._lock:
            self._reserved += size  # so that many callers at once do not pass the limit together
            reserved = self._reserved
        try:
            used = self._box.pending().size
            if used + reserved > limit:
                raise OutboxFull(
                    f"Kafka does not take records, and the outbox in {self._folder} holds {used >> 20} MiB of "
                    f"{self._settings.max_mb} MiB; retry once the brokers are back, or raise log.outbox.max_mb",
                    topic=topic,
                )
            try:
                places = self._box.append_many(topic, items)
            except LogUnavailable as error:
                if is_full(self._folder) or "full" in error.message:
                    raise OutboxFull(
                        f"Kafka does not take records, and the disk of the outbox in {self._folder} is full; free "
                        "space, or retry once the brokers are back",
                        topic=topic,
                    ) from error
                raise
        finally:
            with self._lock:
                self._reserved -= size
        with self._lock:
            self._own[topic] = max(self._own[topic], places[-1][1] + 1)
        fail_point("outbox.1")
        self._kept(topic, len(items))
        return [(PARTITION_UNKNOWN, offset) for _, offset in places]

    def _run(self) -> None:
        """Moves what there is, for as long as the log is open."""
        while not self._closed:
            try:
                if self._direct:
                    self._wake.wait(RETRY_SECONDS)
                    self._wake.clear()
                    self._move_for_others()
                    continue
                self._move()
                if self._left() <= LAST_RECORDS:
                    self._open_the_way()
            except (LogUnavailable, Misconfigured, MessageTooLarge) as error:
                self._say("outbox.waits", why=error.message, records=self.state().records)
                self._pause()
                continue
            except Exception as error:  # the outermost loop of a thread that must not die: records wait behind it
                _log.exception("outbox.broke", error=type(error).__name__)
                self._pause()

    def _pause(self) -> None:
        deadline = time.monotonic() + RETRY_SECONDS
        while not self._closed and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _open_the_way(self) -> None:
        """Appends go to Kafka again, once the last records are moved and nobody is on the way into the outbox.

        Gives up after the patience of whoever waits meanwhile. Nobody waits for records that another process moves.
        """
        deadline = time.monotonic() + self._settings.patience_seconds
        with self._way:
            self._held_until = deadline if self._may_move() else 0.0
        try:
            while not self._direct and not self._closed and time.monotonic() < deadline:
                with self._lock:
                    self._direct = self._entering == 0 and not self._left()
                if not self._direct and not self._move():
                    self._wake.wait(0.05)
                    self._wake.clear()
        finally:
            with self._way:
                self._held_until = 0.0
                self._way.notify_all()
        if self._direct:
            fcntl.flock(self._guard, fcntl.LOCK_UN)  # another process may have records here, and moves them itself
            _log.info("outbox.is_empty")

    def _left(self) -> int:
        """How many records, at most, are to be moved before this process appends to Kafka again."""
        return sum(max(0, own - max(self._box.span(topic)[0], self._sent[topic])) for topic, own in self._own.items())

    def _move_for_others(self) -> None:
        """Moves what a process left that died, while this one needs no outbox."""
        if not self._closed and self._box.pending().records and self._may_move():
            try:
                self._move()
            finally:
                fcntl.flock(self._guard, fcntl.LOCK_UN)

    def _move(self) -> int:
        """Steps 2 to 4 for some records of each topic; returns how many were moved."""
        kafka = self._reached()
        if not self._may_move():
            self._pause()
            return 0
        moved = 0
        for topic in Topic:
            records = self._box.oldest(topic, BATCH_RECORDS, BATCH_BYTES, self._sent[topic])
            if records:
                fail_point("outbox.2")
                self._send(kafka, topic, records)
                self._sent[topic] = records[-1].offset + 1
                fail_point("outbox.3")
            elif self._box.span(topic)[0] >= self._sent[topic]:
                continue
            try:
                self._box.trim(topic, self._sent[topic])
            except LogUnavailable as error:  # as of a full disk; at a later look, and it is not sent again meanwhile
                self._say("outbox.cannot_delete", why=error.message)
            fail_point("outbox.4")
            self._drained(topic, len(records))
            moved += len(records)
        return moved

    def _send(self, kafka: PatientLog, topic: Topic, records: Sequence[Record]) -> None:
        """Step 3. A record that the brokers find too large goes to plaudit.rejected: it was acknowledged."""
        try:
            kafka.append_many(topic, [(record.key.decode(), record.value) for record in records])
        except MessageTooLarge as error:
            if len(records) > 1:
                for record in records:
                    self._send(kafka, topic, [record])
                return
            (record,) = records
            if topic is Topic.REJECTED:
                raise
            rejected = Rejected(
                reason=error.reason,
                message=error.message,
                topic=topic.value,
                partition=0,
                offset=record.offset,
                key=record.key,
                value=record.value,
                rejected_at=dt.datetime.now(dt.UTC),
            )
            self._reject(kafka, rejected)

    def _reject(self, kafka: PatientLog, rejected: Rejected) -> None:
        """Sends what the brokers do not take to plaudit.rejected; without its bytes, if that takes no such record."""
        producer, key = f"plaudit-serve/{__version__}", rejected.key.decode()
        facts = {"topic": rejected.topic, "size": len(rejected.value), "why": rejected.message}
        try:
            kafka.append(Topic.REJECTED, key, encode_rejected(rejected, producer=producer))
        except MessageTooLarge:
            # It was acknowledged: its bytes are never let go of.
            file = self._folder / f"{OUTBOX_FILE}.{rejected.topic}-{rejected.offset}"
            file.touch(0o600)
            with file.open("wb") as written:
                written.write(rejected.value)
                written.flush()
                os.fsync(written.fileno())
            short = without_bytes(rejected, f"the data directory has them, in {file.name}")
            kafka.append(Topic.REJECTED, key, encode_rejected(short, producer=producer))
            facts["file"] = str(file)
        _log.error("outbox.record_rejected", **facts)

    def _reached(self) -> PatientLog:
        if self._kafka is None:
            kafka = self._connect()
            with self._lock:
                self._kafka = kafka
        return self._kafka

    def _may_move(self) -> bool:
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _say(self, event: str, **facts: object) -> None:
        """At most one line per minute: an outage is one piece of news, however many records it meets."""
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            _log.warning(event, **facts)
