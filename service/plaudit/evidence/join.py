"""The join: interactions and feedback from the log become evidence, once.

Enters: records of plaudit.interactions and plaudit.feedback, in any order and any number of times. Leaves: rows of the
evidence store and, for what cannot be used, records of plaudit.rejected. It never trusts the log's order and never
drops a record silently, and all that it writes can be made again from the log.

The protocol (the same numbers stand in docs/join.md; `join.N` is the fail point after step N):

1. Poll records from where the store's offsets stand.
2. Decode each; what cannot be decoded or stored becomes a rejection.
3. Begin a transaction and move the offsets, if the store still has those that this worker read from.
4. Write interactions and rejections that are not there yet, and take in acts and retractions,
   except those that retention or an erasure has deleted.
5. Derive the evidence of every touched interaction again; write the acts and retractions with
   their status; reject what waited too long.
6. Commit: records, evidence and offsets become durable together.
7. Publish the rejections that are not marked as published.
8. Mark them as published.
9. Acknowledge the offsets to the log, for its lag tools.

A crash before 6 leaves nothing and the records are read again; a crash after 6 loses nothing, because rejections wait
in the store. Between 7 and 8 a rejection may be published twice: the same bytes under the same event id.
"""

from __future__ import annotations

import datetime as dt
import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from plaudit import __version__
from plaudit.domain import DomainPlugin
from plaudit.errors import (
    InvalidField,
    InvalidText,
    LogUnavailable,
    MessageTooLarge,
    NoInteraction,
    PlauditError,
    PluginFailed,
    StoreUnavailable,
    Undecodable,
    UnknownDomain,
)
from plaudit.eventlog import Consumer, EventLog, Place, Positions, Record, Topic
from plaudit.eventlog.codec import (
    Rejected,
    Retraction,
    SealedRecord,
    decode,
    encode_rejected,
    headers_from_bytes,
    without_bytes,
)
from plaudit.evidence import ingest, places, rejections
from plaudit.evidence.ingest import Outcome
from plaudit.evidence.places import Overtaken
from plaudit.evidence.rejections import Rejection
from plaudit.evidence.store import EvidenceStore
from plaudit.evidence.tables import from_micros
from plaudit.failpoints import fail_point
from plaudit.privacy.forgotten import Forgotten
from plaudit.settings import JoinSettings
from plaudit.types import Feedback, Interaction
from plaudit.waiting import pause

GROUP = "plaudit-join"
TOPICS = (Topic.INTERACTIONS, Topic.FEEDBACK)
MAX_ID_BYTES = 512  # ids are UUIDs; far longer ones do not fit a database's index
PUBLISH_RECORDS = 100  # rejections published at once; each may carry a record of 16 MiB
CALM_SECONDS = 60.0  # without a failure: then a join goes on, though nothing shows it
# A rejection's event id is made from its identity, so that one that was published twice can be told.
REJECTION_IDS = uuid.UUID("5b0c5f6e-6d0f-5d53-9f0e-2f1f3f9a7a10")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Batch:
    """Decoded records of one poll."""

    records: Sequence[Record]
    interactions: list[tuple[Record, Interaction]] = field(default_factory=list)
    feedback: list[tuple[Record, Feedback | Retraction]] = field(default_factory=list)
    sealed: list[tuple[Record, SealedRecord]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)


class Join:
    """Reads the log into the evidence store. For one thread; several workers may share a log and a store.

    `plugins` are guarded (`plaudit.plugins`): a failing one rejects an act, never a batch. For metrics: `observe` is
    told what each transaction read, changed and took (seconds), `look` is called after each batch of `run`, and `waits`
    is told the reason for which `run` cannot go on, and "" once it can. `forgotten` says which records have ended.
    `now` is the clock of the waiting limit.
    """

    def __init__(
        self,
        log: EventLog,
        store: EvidenceStore,
        plugins: Mapping[str, DomainPlugin],
        settings: JoinSettings,
        *,
        observe: Callable[[Sequence[Record], Outcome, float], None] | None = None,
        look: Callable[[Join], None] | None = None,
        waits: Callable[[str], None] = lambda why: None,
        forgotten: Forgotten | None = None,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._log = log
        self._store = store
        self._plugins = plugins
        self._settings = settings
        self._observe = observe
        self._look = look
        self._waits = waits
        self._forgotten = forgotten or Forgotten()
        self._now = now
        self._consumer: Consumer | None = None
        self._positions: dict[tuple[Topic, int], Place] = {}
        self._topic_ids: Mapping[Topic, str] = {}
        self._begins: Mapping[tuple[Topic, int], int] = {}  # first records of the partitions, when it got them
        self._firsts = self._begins  # the same, until their places are looked at
        self._sweep = True  # feedback of an earlier process may wait
        self._went_on = False  # in the last batch
        self._take_up_again()

    def run(self, stop: threading.Event) -> None:
        """Joins until `stop` is set; waits for a log or a database that is away."""
        try:
            losses, failed_at = 0, time.monotonic()
            while not stop.is_set():
                try:
                    self.run_once(self._settings.poll_seconds)
                    if self._look is not None:
                        self._look(self)
                    # While a group forms, a poll that brings nothing tells nothing of what failed.
                    if self._went_on or time.monotonic() - failed_at > CALM_SECONDS:
                        self._waits("")
                        losses = 0
                except (LogUnavailable, StoreUnavailable, IntegrityError) as error:
                    losses += 1
                    self._waits(error.reason if isinstance(error, PlauditError) else type(error).__name__)
                    pause("join", stop, error, losses)
                    failed_at = time.monotonic()
                except Overtaken as error:
                    _log.warning("join.overtaken", why=str(error))
        finally:
            self.close()

    def run_once(self, timeout_seconds: float) -> int:
        """Joins one batch and returns how many records it had; after an error the same records are read again."""
        self._went_on = False
        try:
            records, caught_up = self._poll(timeout_seconds)
            fail_point("join.1")
            batch = _decode_all(records)
            fail_point("join.2")
            if records or self._sweep or caught_up or self._firsts:
                self._transact(batch, caught_up)
            self._publish()
            if records and self._consumer is not None:
                self._consumer.acknowledge(places.next_offsets(self._positions))  # step 9
            fail_point("join.9")
            self._went_on = bool(records) or caught_up
        except BaseException:
            self.close()  # the consumer stands behind what was lost; a new one begins where the store does
            raise
        return len(records)

    def lag(self) -> dict[tuple[Topic, int], int]:
        """Records of each assigned partition that have not been read. Raises LogUnavailable."""
        if self._consumer is None:
            self._open()
        assert self._consumer is not None, "_open opens it"
        ends = self._consumer.end_positions()
        read = places.next_offsets(self._positions)
        return {at: max(0, end - read.get(at, self._begins.get(at, 0))) for at, end in ends.items()}

    def close(self) -> None:
        """Gives the partitions back; the next run_once takes them again."""
        self._topic_ids, self._firsts = {}, {}  # the next consumer may get other partitions, and has none at first
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _open(self) -> None:
        self._consumer = self._log.consumer(TOPICS, GROUP, self._assigned)

    def _assigned(self) -> Positions:
        """Asked by the consumer at each assignment: the store alone knows how far reading has come."""
        self._positions = dict(self._store.positions())
        self._topic_ids = {}
        return dict(self._positions)

    def _poll(self, timeout_seconds: float) -> tuple[list[Record], bool]:
        """Step 1: the records, and whether these were all that the log had for this worker."""
        if self._consumer is None:
            self._open()
        assert self._consumer is not None, "_open opens it"
        if not self._topic_ids and self._consumer.assigned():
            self._topic_ids = self._consumer.topic_ids()
            self._firsts = self._begins = self._consumer.first_positions()
        records = self._consumer.poll(timeout_seconds, self._settings.batch_records)
        # Who has no partition, or got others within this poll, has not read what there is.
        caught_up = bool(self._topic_ids and self._consumer.assigned()) and len(records) < self._settings.batch_records
        return places.unread(records, self._positions), caught_up

    def _transact(self, batch: _Batch, caught_up: bool) -> None:
        """Steps 3 to 6."""
        now, began = self._now(), time.perf_counter()
        with self._store.database.writing() as connection:
            self._store.database.fence(connection, alone=False)  # from who begins an erasure
            passed = places.skip(connection, self._positions, self._firsts)
            here = {**self._positions, **passed.places}
            moved = places.advance(connection, here, batch.records, self._topic_ids)
            fail_point("join.3")
            left_out = self._leave_out(connection, batch, now)
            fresh, conflicts = ingest.write_interactions(connection, batch.interactions)
            taken = ingest.take_feedback(connection, batch.feedback, now)
            rejections.write_rejections(connection, [*batch.rejections, *conflicts], now)
            fail_point("join.4")
            touched = taken.touched | set(fresh)
            if self._sweep or caught_up:
                swept = ingest.joinable(connection)
                self._sweep = len(swept) >= ingest.SWEEP_LIMIT
                touched |= swept
            outcome = ingest.rederive(connection, touched, fresh, self._plugins, now, taken)
            if caught_up:
                # Only then is it known that an interaction is missing rather than unread.
                waited = dt.timedelta(seconds=self._settings.max_wait_seconds)
                outcome.rejected[NoInteraction.reason] += ingest.expire(connection, now - waited, now)
            fail_point("join.5")
        self._positions = {**here, **moved.places}  # step 6 is done
        self._firsts = {}
        fail_point("join.6")
        if self._observe is not None:
            outcome.expired, outcome.forgotten = passed.expired + moved.expired, left_out
            outcome.rejected.update(each.error.reason for each in (*batch.rejections, *conflicts))
            self._observe(batch.records, outcome, time.perf_counter() - began)

    def _leave_out(self, connection: Connection, batch: _Batch, now: dt.datetime) -> Counter[str]:
        """Takes out of the batch what has ended and must not come back; counts by why."""
        said: list[Interaction | Feedback | Retraction] = [item for _, item in (*batch.interactions, *batch.feedback)]
        ended = self._forgotten.ended(connection, said, now)
        split = len(batch.interactions)
        kept = [not why for why in ended]
        batch.interactions = list(itertools.compress(batch.interactions, kept[:split]))
        batch.feedback = list(itertools.compress(batch.feedback, kept[split:]))
        destroyed = self._forgotten.destroyed(connection, [(record.topic, item) for record, item in batch.sealed])
        for (record, item), why in zip(batch.sealed, destroyed, strict=True):
            if not why:
                unknown = Undecodable(
                    f"the record is sealed, and the key {item.key_id} does not open it or is not there"
                )
                batch.rejections.append(Rejection.of(record, unknown))
        return Counter(filter(None, [*ended, *destroyed]))

    def _publish(self) -> None:
        """Steps 7 and 8. A log that takes nothing now gets the rejections later; the join goes on."""
        while True:
            with self._store.database.reading() as connection:
                pending = rejections.unpublished(connection, PUBLISH_RECORDS)
            if not pending:
                return
            try:
                self._append(pending)
            except LogUnavailable as error:
                _log.warning("join.rejections_wait", why=error.message, rejections=len(pending))
                return
            fail_point("join.7")
            with self._store.database.writing() as connection:
                rejections.mark_published(connection, [row["identity"] for row in pending])
            fail_point("join.8")

    def _append(self, pending: Sequence[RowMapping]) -> None:
        """Step 7. One record that the log finds too large must not stop the join: it goes without its bytes."""
        try:
            self._log.append_many(Topic.REJECTED, [_rejected_record(_rejected(row), row) for row in pending])
        except MessageTooLarge:
            for row in pending:
                rejected = _rejected(row)
                try:
                    self._log.append_many(Topic.REJECTED, [_rejected_record(rejected, row)])
                except MessageTooLarge as error:
                    _log.error("join.rejected_without_bytes", bytes=len(rejected.value), why=error.message)
                    short = without_bytes(rejected, "its topic has them, and the store's table rejections")
                    self._log.append_many(Topic.REJECTED, [_rejected_record(short, row)])

    def _take_up_again(self) -> None:
        """A restart is how a fixed or added plugin comes in: what failed without it is tried again."""
        with self._store.database.writing() as connection:
            ingest.take_up_again(connection, self._plugins, (PluginFailed.reason, UnknownDomain.reason))


def _decode_all(records: Sequence[Record]) -> _Batch:
    """Step 2."""
    batch = _Batch(records)
    for record in records:
        try:
            item = decode(record.value)
            match record.topic, item:
                case Topic.INTERACTIONS, Interaction():
                    _check_interaction(item)
                    batch.interactions.append((record, item))
                case Topic.FEEDBACK, Feedback() | Retraction():
                    _check_ids(item.interaction_id, item.feedback_id, str(item.channel), item.who)
                    batch.feedback.append((record, item))
                case _, SealedRecord():
                    batch.sealed.append((record, item))
                case _:
                    raise Undecodable(f"a {type(item).__name__} does not belong in {record.topic}")
        except PlauditError as error:
            batch.rejections.append(Rejection.of(record, error))
    return batch


def _check_interaction(interaction: Interaction) -> None:
    """Refuses what the tables cannot hold: one such record must not stop its partition."""
    candidate_ids = [candidate.candidate_id for candidate in interaction.candidates]
    _check_ids(interaction.interaction_id, str(interaction.channel), *candidate_ids)
    if len(set(candidate_ids)) != len(candidate_ids):
        raise InvalidField(f"interaction {interaction.interaction_id} names a candidate twice", field="candidates")
    texts = [interaction.prompt_group, interaction.session_id, interaction.end_user, interaction.rater]
    texts += [interaction.plugin_version, interaction.base_digest]
    # What a model wrote may hold any character: it is kept within the record's bytes, in no column of text.
    texts += [text for each in interaction.candidates for text in (each.option_id, each.release_digest)]
    if any("\0" in text for text in texts):
        raise InvalidText(f"interaction {interaction.interaction_id} has a NUL byte in a text", field="interaction")


def _check_ids(*ids: str) -> None:
    for each in ids:
        if not each or "\0" in each or len(each.encode()) > MAX_ID_BYTES:
            raise InvalidField(
                f"the id {each[:40]!r} is empty, has a NUL byte or exceeds {MAX_ID_BYTES} bytes",
                field="id",
                limit=MAX_ID_BYTES,
            )


def _rejected(row: RowMapping) -> Rejected:
    return Rejected(
        reason=row["reason"],
        message=row["message"],
        topic=row["topic"],
        partition=row["partition"],
        offset=row["offset"],
        key=row["key"],
        value=row["value"],
        rejected_at=from_micros(row["rejected_at"]),
        headers=headers_from_bytes(row["headers"]),
    )


def _rejected_record(rejected: Rejected, row: RowMapping) -> tuple[str, bytes]:
    event_id = str(uuid.uuid5(REJECTION_IDS, row["identity"]))
    value = encode_rejected(rejected, producer=f"plaudit-join/{__version__}", event_id=event_id)
    return row["identity"], value
