"""Evidence made anew from the log: all that is retained, or exactly what a release's manifest covers.

Enters: the log, and how far to read each partition. Leaves: a store of its own that holds what the join makes of these
records, and where the log no longer had them; or the differences between that and the store in use, and these put
right. Reads in a consumer group of its own, publishes nothing, and moves no place of the join.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Connection, Table, insert, select

from plaudit.domain import DomainPlugin
from plaudit.eventlog import Consumer, EventLog, Positions, Record, Topic
from plaudit.evidence import ingest
from plaudit.evidence.join import Join
from plaudit.evidence.quarantine import RATER_QUARANTINE
from plaudit.evidence.store import EvidenceStore, OffsetRange, digest_of, read_offsets
from plaudit.evidence.tables import EvidenceTable, FeedbackRow, InteractionRow, Status, chunks, where_in
from plaudit.privacy.forgotten import Forgotten
from plaudit.privacy.tables import ERASED_INTERACTION, ERASURE, PERSON_KEY
from plaudit.settings import JoinSettings
from plaudit.store.database import Database
from plaudit.types import Channel

# A log that hands out nothing for so long has no more of these records.
IDLE_SECONDS = 10.0
_POLL_SECONDS = 0.2
_INTERACTIONS: Table = InteractionRow.metadata.tables["interactions"]
_FEEDBACK: Table = FeedbackRow.metadata.tables["feedback"]
_EVIDENCE: Table = EvidenceTable.metadata.tables["evidence"]

# (interaction id, feedback id, index): names a row of evidence.
_Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Gap:
    """Records of a partition that were to be read and are not in the log. `why`: retention, or another life."""

    topic: str
    partition: int
    first: int
    next: int
    why: str

    def __str__(self) -> str:
        """Return, for example, "plaudit.feedback[0]: 120 records (offsets 0 to 119) are no longer in the log"."""
        where = f"offsets {self.first} to {self.next - 1}"
        return f"{self.topic}[{self.partition}]: {self.next - self.first} records ({where}) {self.why}"


@dataclass(frozen=True, slots=True)
class Read:
    """How many records were read, and which could not be."""

    records: int
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A channel's evidence in the store in use beside that of the log, over what the log retains.

    `beyond`: rows in use whose records the log no longer holds: they are in neither digest. `different`: rows that are
    in one alone, or not the same in both.
    """

    channel: Channel
    rows: int
    beyond: int
    different: int
    digest: str
    rebuilt: str

    @property
    def same(self) -> bool:
        """Whether the log gives what the store holds."""
        return self.digest == self.rebuilt


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a rebuild found. `fixed`: interactions whose evidence was made anew in the store in use."""

    read: Read
    channels: tuple[Compared, ...]
    fixed: int

    @property
    def same(self) -> bool:
        """Whether every channel's digest is the same."""
        return all(each.same for each in self.channels)


@contextmanager
def scratch_store(beside: Database) -> Iterator[EvidenceStore]:
    """A store without evidence that is gone after the block.

    It knows what is in no log: who was erased, keys of people, and who was in quarantine when.
    """
    with TemporaryDirectory(prefix="plaudit-rebuild-") as folder:
        store = EvidenceStore(f"sqlite:///{Path(folder) / 'evidence.sqlite'}")
        try:
            for table in (ERASURE, ERASED_INTERACTION, PERSON_KEY, RATER_QUARANTINE):
                _copy(beside, store.database, table)
            yield store
        finally:
            store.close()


def _copy(source: Database, target: Database, table: Table) -> None:
    with source.reading() as connection:
        rows = [dict(row) for row in connection.execute(select(table)).mappings()]
    if rows:
        with target.writing() as connection:
            connection.execute(insert(table), rows)


def read_log(
    log: EventLog,
    into: EvidenceStore,
    plugins: Mapping[str, DomainPlugin],
    settings: JoinSettings,
    covered: Sequence[OffsetRange],
    *,
    forgotten: Forgotten | None = None,
    idle_seconds: float = IDLE_SECONDS,
    progress: Callable[[int], None] = lambda records: None,
) -> Read:
    """Joins the records of these ranges into a scratch store; tells `progress` how many were read so far.

    `forgotten` says which records have ended, as the join's own does.
    """
    bounded = _BoundedLog(log, covered)
    join = Join(bounded, into, plugins, settings, forgotten=forgotten)
    heard, read = time.monotonic(), 0
    try:
        while not bounded.done() and time.monotonic() - heard < idle_seconds:
            join.run_once(_POLL_SECONDS)
            if bounded.records > read:
                heard, read = time.monotonic(), bounded.records
                progress(read)
        while join.run_once(0):  # feedback that came before its interaction
            pass
    finally:
        join.close()
    return Read(bounded.records, bounded.gaps())


def rebuild(
    log: EventLog,
    store: EvidenceStore,
    plugins: Mapping[str, DomainPlugin],
    settings: JoinSettings,
    *,
    fix: bool,
    forgotten: Forgotten | None = None,
    idle_seconds: float = IDLE_SECONDS,
    progress: Callable[[int], None] = lambda records: None,
) -> Rebuilt:
    """Makes all evidence anew up to where the join stands, and compares; with `fix` puts right what differs.

    The join may run meanwhile: what is compared is the store as it was when this began.
    """
    with store.database.reading() as connection:
        covered = tuple(sorted(read_offsets(connection)))
        before = _evidence(connection)
    with scratch_store(store.database) as fresh:
        read = read_log(
            log,
            fresh,
            plugins,
            settings,
            covered,
            forgotten=forgotten,
            idle_seconds=idle_seconds,
            progress=progress,
        )
        with fresh.database.reading() as connection:
            after = _evidence(connection)
            kept = _retained(connection, before, after)
        compared, differing = [], set()
        for channel in sorted(before.keys() | after.keys()):
            here, there = before.get(channel, {}), after.get(channel, {})
            inside = {key: payload for key, payload in here.items() if key in kept}
            changed = {key for key in inside.keys() | there.keys() if inside.get(key) != there.get(key)}
            differing |= {key[0] for key in changed}
            compared.append(
                Compared(
                    channel=channel,
                    rows=len(inside),
                    beyond=len(here) - len(inside),
                    different=len(changed),
                    digest=digest_of(inside[key] for key in sorted(inside)),
                    rebuilt=digest_of(there[key] for key in sorted(there)),
                )
            )
        if fix:
            _fix(fresh, store, plugins, sorted(differing))
    return Rebuilt(read=read, channels=tuple(compared), fixed=len(differing) if fix else 0)


def _evidence(connection: Connection) -> dict[Channel, dict[_Key, bytes]]:
    found: dict[Channel, dict[_Key, bytes]] = {}
    columns = ("interaction_id", "feedback_id", "index", "domain", "tenant", "payload")
    for interaction, act, index, domain, tenant, payload in connection.execute(
        select(*(_EVIDENCE.c[name] for name in columns))
    ):
        found.setdefault(Channel(domain, tenant), {})[interaction, act, index] = payload
    return found


def _retained(
    fresh: Connection, before: Mapping[Channel, Mapping[_Key, bytes]], after: Mapping[Channel, Mapping[_Key, bytes]]
) -> set[_Key]:
    """Rows in use whose interaction and act the log still holds, as the rebuilt store tells."""
    known = {key for rows in after.values() for key in rows}
    here = {key for rows in before.values() for key in rows}
    asked = here - known
    ids = {interaction for interaction, _, _ in asked}
    columns = ("interaction_id", "feedback_id", "retraction")
    there = {row["interaction_id"] for row in where_in(fresh, _INTERACTIONS, "interaction_id", ids, columns[:1])}
    rows = where_in(fresh, _FEEDBACK, "interaction_id", ids, columns)
    acts = {(row["interaction_id"], row["feedback_id"]) for row in rows if not row["retraction"]}
    return here & known | {key for key in asked if key[0] in there and key[:2] in acts}


def _fix(
    fresh: EvidenceStore, store: EvidenceStore, plugins: Mapping[str, DomainPlugin], differing: Sequence[str]
) -> None:
    """Adds the records that the store lacks and derives these interactions anew, by the join's own steps."""
    now = dt.datetime.now(dt.UTC)
    for ids in chunks(differing):
        with fresh.database.reading() as source, store.database.writing() as target:
            _add_missing(source, target, _INTERACTIONS, ids, ("interaction_id",))
            _add_missing(source, target, _FEEDBACK, ids, ("interaction_id", "feedback_id", "retraction", "digest"))
            ingest.rederive(target, ids, {}, plugins, now)


def _add_missing(
    source: Connection, target: Connection, table: Table, ids: Iterable[str], names: tuple[str, ...]
) -> None:
    there = {tuple(row.values()) for row in where_in(target, table, "interaction_id", ids, names)}
    rows = [dict(row) for row in where_in(source, table, "interaction_id", ids)]
    missing = [row for row in rows if tuple(row[name] for name in names) not in there]
    for row in missing:
        if "status" in row:
            row |= {"status": Status.WAITING.value, "reason": ""}
    if missing:
        target.execute(insert(table), missing)


class _BoundedLog:
    """A log that ends where the ranges do, and takes no record."""

    def __init__(self, log: EventLog, covered: Sequence[OffsetRange]) -> None:
        self._log = log
        self._covered = {(each.topic, each.partition): each for each in covered}
        self._first: dict[tuple[Topic, int], int] = {}
        self._next: dict[tuple[Topic, int], int] = {}
        self._ids: Mapping[Topic, str] = {}
        self.records = 0
        self.at_end = False  # nothing is left to be read, whatever is missing

    def append(self, topic: Topic, key: str, value: bytes) -> tuple[int, int]:
        """Nothing is published twice."""
        return self.append_many(topic, [(key, value)])[0]

    def append_many(self, topic: Topic, items: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """As `append`."""
        return [(0, 0) for _ in items]

    def find(self, topic: Topic, key: str, most: int) -> list[bytes] | None:
        """As the log's own."""
        return self._log.find(topic, key, most)

    def consumer(self, topics: Sequence[Topic], group: str, positions: Callable[[], Positions]) -> Consumer:
        """A reader in a group of its own: it is given every partition, and the join keeps its own."""
        return _BoundedConsumer(self._log.consumer(topics, f"{group}-rebuild-{uuid.uuid4().hex}", positions), self)

    def close(self) -> None:
        """Whoever opened the log closes it."""

    def take(self, records: Sequence[Record], ids: Mapping[Topic, str]) -> list[Record]:
        """The records within the ranges."""
        self._ids = ids or self._ids
        within = []
        for record in records:
            at = (record.topic, record.partition)
            self._first.setdefault(at, record.offset)
            self._next[at] = record.offset + 1
            covered = self._covered.get(at)
            if covered and not self._strange(at) and covered.first <= record.offset < covered.next:
                within.append(record)
        self.records += len(within)
        return within

    def done(self) -> bool:
        """Whether every range was read to its end, or cannot be."""
        return self.at_end or all(
            self._next.get(at, 0) >= each.next or self._strange(at) for at, each in self._covered.items()
        )

    def gaps(self) -> tuple[Gap, ...]:
        """What the ranges hold and the log does not."""
        found = []
        for at, each in sorted(self._covered.items()):
            name, partition = each.topic.value, each.partition
            if each.first >= each.next:
                continue
            if self._strange(at):
                why = f"are of the topic {each.topic_id}, and this one is {self._ids[each.topic]}: it was made anew"
                found.append(Gap(name, partition, each.first, each.next, why))
                continue
            first, following = self._first.get(at, each.next), self._next.get(at, each.next)
            if first > each.first:
                found.append(Gap(name, partition, each.first, min(first, each.next), "are no longer in the log"))
            if following < each.next:
                why = "are no longer in the log" if self.at_end else "were not handed out by the log"
                found.append(Gap(name, partition, following, each.next, why))
        return tuple(found)

    def _strange(self, at: tuple[Topic, int]) -> bool:
        """Whether the topic is another one than the range is of."""
        wanted, found = self._covered[at].topic_id, self._ids.get(at[0], "")
        return bool(wanted and found and wanted != found)


class _BoundedConsumer:
    """A consumer whose records end where the ranges do."""

    def __init__(self, inner: Consumer, log: _BoundedLog) -> None:
        self._inner, self._log = inner, log

    def poll(self, timeout_seconds: float, max_records: int) -> list[Record]:
        """Records within the ranges; reads on until there is one, or nothing more."""
        if self._log.done():
            return []
        while records := self._inner.poll(timeout_seconds, max_records):
            if within := self._log.take(records, self._inner.topic_ids()):
                return within
            if self._log.done():
                break
        else:
            # Records at the end of a range may be gone: deleted by an erasure, or beyond retention.
            self._log.at_end = self._inner.at_end()
        return []

    def assigned(self) -> frozenset[tuple[Topic, int]]:
        """As the inner one's."""
        return self._inner.assigned()

    def topic_ids(self) -> Mapping[Topic, str]:
        """As the inner one's."""
        return self._inner.topic_ids()

    def end_positions(self) -> dict[tuple[Topic, int], int]:
        """As the inner one's."""
        return self._inner.end_positions()

    def first_positions(self) -> dict[tuple[Topic, int], int]:
        """As the inner one's."""
        return self._inner.first_positions()

    def at_end(self) -> bool:
        """As the inner one's."""
        return self._inner.at_end()

    def acknowledge(self, offsets: Mapping[tuple[Topic, int], int]) -> None:
        """Nothing: no lag is measured by this group."""

    def close(self) -> None:
        """Gives the partitions back."""
        self._inner.close()
