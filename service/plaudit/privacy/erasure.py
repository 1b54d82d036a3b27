"""Erasure of a person: from the request to a signed receipt.

Enters: a tenant, a person's pseudonym, the store, the registry and the log. Leaves: all of them without what was the
person's, and a row that says what was found. Steps (the same numbers in docs/privacy.md and as fail points `erase.N`,
behind each step):

1. Request: the row is there. From here on the join leaves out whatever a log brings of the person from before it.
2. Store: interactions, acts, evidence, waiting feedback, rejections and quarantine, with ids noted as erased.
3. Models: releases that learnt from the person are marked; none of them goes live again.
4. Log: the embedded log's records are deleted, once the join has read what was there (Kafka: the join leaves them out),
   and the keys that sealed the person's records are destroyed, if there are any.
5. Files: what was deleted goes from the files' bytes too, and answers to probes from beside the marked releases.
6. Done: `erased_at`. With the last marked release out of service comes `models_retired_at`.

A person's data: interactions that name the person as the end user or as the one rater, with everything said about
them; and acts that the person gave about others' interactions. Every step may be repeated, and counts once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa
import structlog

from plaudit.errors import IdConflict, Undecodable, UnknownErasure
from plaudit.eventlog import LOG_FILE
from plaudit.eventlog.codec import Rejected, Retraction, SealedRecord, decode
from plaudit.eventlog.deleting import EmbeddedRecords
from plaudit.eventlog.protocol import Positions, Topic
from plaudit.evidence import places, removal
from plaudit.evidence.quarantine import RATER_QUARANTINE
from plaudit.evidence.tables import from_micros, to_micros
from plaudit.failpoints import fail_point
from plaudit.privacy import keys, models
from plaudit.privacy.files import scrub
from plaudit.privacy.forgotten import moment_of, names_in
from plaudit.privacy.tables import ERASED_CHANNEL, ERASED_INTERACTION, ERASURE
from plaudit.release import lineage
from plaudit.release.registry import PROBE_ANSWERS, Registry
from plaudit.settings import Settings
from plaudit.store.database import Database
from plaudit.types import Channel, Feedback, Interaction

REQUESTED, STORE, MODELS, LOG, FILES, DONE = range(1, 7)
GRACE = dt.timedelta(minutes=10)  # what the join has to do takes a moment, also if the promise is "at once"
ROWS = 500  # interactions of one transaction, records of one look into the log
TOPICS = (Topic.INTERACTIONS, Topic.FEEDBACK, Topic.REJECTED)

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Found:
    """What an erasure has deleted so far: counts by what it is, and releases as "channel@version".

    `questions`: by channel when the person's first interaction came (microseconds since 1970); `learnt`: releases that
    learnt from the person's acts. `looked`: by topic the offset up to which the embedded log was looked through;
    `deleting`: offsets that were counted and may not be deleted yet.
    """

    counts: Counter[str] = field(default_factory=Counter)
    releases: list[str] = field(default_factory=list)
    retire_by: int | None = None
    questions: dict[str, int] = field(default_factory=dict)
    learnt: list[str] = field(default_factory=list)
    looked: dict[str, int] = field(default_factory=dict)
    deleting: dict[str, list[int]] = field(default_factory=dict)

    def to_json(self) -> str:
        """For the row."""
        return json.dumps({each.name: getattr(self, each.name) for each in fields(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Found:
        """As `to_json` wrote it."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "counts": Counter(values["counts"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """An erasure as it stands; `step` is the last one that is done."""

    erasure_id: str
    tenant: str
    person: str
    requested_at: dt.datetime
    requested_by: str
    step: int
    found: Found
    erased_at: dt.datetime | None
    models_retired_at: dt.datetime | None

    def is_overdue(self, retrain_days: float, now: dt.datetime) -> bool:
        """Whether it has not come to its end in the time that is promised."""
        return self.models_retired_at is None and now > self.requested_at + dt.timedelta(days=retrain_days) + GRACE


def request(database: Database, erasure_id: str, tenant: str, person: str, by: str) -> Erasure:
    """Step 1. The same request again changes nothing; raises IdConflict if the id is another person's erasure."""
    erasure_id = erasure_id or str(uuid.uuid4())
    with database.writing() as connection:
        # Who joins meanwhile is done first, and who comes later sees the row.
        database.fence(connection, alone=True)
        known = _read(connection, ERASURE.c.erasure_id == erasure_id)
        if known:
            if (known[0].tenant, known[0].person) != (tenant, person):
                raise IdConflict(f"the erasure id {erasure_id} was used for another person; make a new id for each")
            return known[0]
        values = {
            "erasure_id": erasure_id,
            "tenant": tenant,
            "person": person,
            "requested_at": to_micros(database.now(connection)),
            "requested_by": by,
            "step": REQUESTED,
            "found": Found().to_json(),
        }
        connection.execute(sa.insert(ERASURE).values(values))
        keys.close_keys(database, connection, tenant, person, erasure_id)
    fail_point("erase.1")
    _log.info("erasure.requested", erasure=erasure_id, by=by)
    return read(database, erasure_id)


def read(database: Database, erasure_id: str) -> Erasure:
    """An erasure; raises UnknownErasure."""
    with database.reading() as connection:
        found = _read(connection, ERASURE.c.erasure_id == erasure_id)
    if not found:
        raise UnknownErasure(f"there is no erasure {erasure_id!r}; the reply to its request named its id")
    return found[0]


def unfinished(database: Database) -> list[Erasure]:
    """Erasures that are not done, or whose releases are not all out of service; oldest first."""
    with database.reading() as connection:
        return _read(connection, ERASURE.c.models_retired_at.is_(None))


def interaction_ids(database: Database, erasure_id: str) -> list[str]:
    """Ids of the interactions that an erasure deleted, in order."""
    table = ERASED_INTERACTION.c
    with database.reading() as connection:
        query = sa.select(table.interaction_id).where(table.erasure_id == erasure_id)
        return sorted(connection.execute(query).scalars())


class Eraser:
    """Brings erasures to their end. For one thread; of several processes one works at a time (lease "privacy")."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._database = registry.database
        self._embedded = None if settings.log.kind == "kafka" else EmbeddedRecords(settings.data_dir / LOG_FILE)
        self._now = now

    def work(self, erasure: Erasure) -> Erasure:
        """Steps 2 to 6, as far as they can be done now. Raises StoreUnavailable or LogUnavailable."""
        steps = {STORE: self._store, MODELS: self._models, LOG: self._records, FILES: self._files, DONE: self._done}
        for number, step in steps.items():
            if erasure.step >= number:
                continue
            if not step(erasure):
                _log.info("erasure.waits", erasure=erasure.erasure_id, step=number)
                return read(self._database, erasure.erasure_id)
            fail_point(f"erase.{number}")
            erasure = read(self._database, erasure.erasure_id)
        return erasure

    def _store(self, erasure: Erasure) -> bool:
        """Step 2, in transactions of bounded size, each with its own counts."""
        tenant, person = erasure.tenant, erasure.person
        while True:
            with self._database.writing() as connection:
                if not removal.fill_names(connection, ROWS):
                    break
        while True:
            with self._database.writing() as connection:
                items = removal.interactions_of(connection, tenant, person, ROWS)
                _note(connection, erasure, items, erased=True)
                for item in items:
                    if item.taught:
                        known = erasure.found.questions.get(str(item.channel), item.at)
                        erasure.found.questions[str(item.channel)] = min(known, item.at)
                removed = removal.remove_interactions(connection, [item.interaction_id for item in items])
                self._count(connection, erasure, removed)
            if len(items) < ROWS:
                break
        with self._database.writing() as connection:
            acts = removal.acts_of(connection, tenant, person)
            _note(connection, erasure, acts, erased=False)
            erasure.found.learnt = _learnt_from(connection, acts)
            removed = removal.remove_acts(connection, tenant, person)
            removed["rejections"] = self._remove_rejections(connection, erasure)
            mine = (RATER_QUARANTINE.c.tenant == tenant) & (RATER_QUARANTINE.c.rater == person)
            removed["quarantine"] = connection.execute(sa.delete(RATER_QUARANTINE).where(mine)).rowcount
            self._count(connection, erasure, removed, step=STORE)
        return True

    def _remove_rejections(self, connection: sa.Connection, erasure: Erasure) -> int:
        erased = self._erased_ids(connection, erasure)
        removed, behind = 0, ""
        while rows := removal.rejections_behind(connection, behind, ROWS, published=False):
            behind = rows[-1].identity
            mine = [row.identity for row in rows if _is_of(erasure, erased, row.value)]
            removed += removal.remove_rejections(connection, mine)
        return removed

    def _models(self, erasure: Erasure) -> bool:
        """Step 3: every release that may have learnt from the person, and whatever was trained on from it."""
        retire_by = erasure.requested_at + dt.timedelta(days=self._settings.privacy.retrain_days)
        with self._database.reading() as connection:
            table = ERASED_CHANNEL.c
            query = sa.select(table.channel, table.since).where(table.erasure_id == erasure.erasure_id)
            since = {Channel.parse(name): from_micros(at) for name, at in connection.execute(query)}
        found = erasure.found
        for channel, first in sorted(since.items()):
            had = _had(found, channel, first)
            versions = models.mark(self._registry, channel, had, erasure.erasure_id, to_micros(retire_by))
            found.releases = sorted({*found.releases, *(f"{channel}@{version}" for version in versions)})
        found.retire_by = to_micros(retire_by) if found.releases else None
        self._save(erasure, found, step=MODELS)
        return True

    def _records(self, erasure: Erasure) -> bool:
        """Step 4; False while the join has not read what the log held when the erasure was asked for.

        Keys are destroyed once no process remembers them as good.
        """
        with self._database.reading() as connection:
            read_up_to = places.read(connection)
            erased = self._erased_ids(connection, erasure) | keys.keys_of(connection, erasure.erasure_id)
        if self._embedded is not None and not self._delete_records(erasure, read_up_to, erased):
            return False
        closed = erasure.requested_at + dt.timedelta(seconds=2 * keys.REMEMBERED_SECONDS)
        with self._database.writing() as connection:
            if keys.keys_of(connection, erasure.erasure_id) and self._now() < closed:
                return False
            destroyed = Counter(keys=keys.destroy_keys(connection, erasure.erasure_id))
            erasure.found.looked, erasure.found.deleting = {}, {}
            self._count(connection, erasure, destroyed, step=LOG)
        return True

    def _delete_records(self, erasure: Erasure, read_up_to: Positions, erased: frozenset[str]) -> bool:
        """Deletes the person's records from the embedded log; False if the join has not read all that is asked for."""
        assert self._embedded is not None
        found, all_read = erasure.found, True
        for topic in TOPICS:
            place = read_up_to.get((topic, 0))
            # A batch that was counted before a crash: deleting it again does nothing.
            self._embedded.delete(topic, found.deleting.get(topic.value, ()))
            while records := self._embedded.read(topic, found.looked.get(topic.value, -1), ROWS):
                known = [r for r in records if topic is Topic.REJECTED or (place and r.offset < place.next)]
                mine = [record.offset for record in known if _is_of(erasure, erased, record.value)]
                if known:
                    found.looked[topic.value] = known[-1].offset
                found.counts["log_records"] += len(mine)
                found.deleting[topic.value] = mine
                self._save(erasure, found)
                self._embedded.delete(topic, mine)
                if len(known) < len(records):
                    # What came after the request is not asked for.
                    all_read = all_read and records[len(known)].timestamp > erasure.requested_at
                    break
        return all_read

    def _files(self, erasure: Erasure) -> bool:
        """Step 5; False while a reader keeps old pages of a file."""
        for name in erasure.found.releases:
            channel, _, version = name.rpartition("@")
            self._registry.remove_beside(Channel.parse(channel), int(version), PROBE_ANSWERS)
        with self._database.reading() as connection:
            mine = ERASED_CHANNEL.c.erasure_id == erasure.erasure_id
            lost = [
                Channel.parse(name)
                for name in connection.execute(sa.select(ERASED_CHANNEL.c.channel).where(mine)).scalars()
            ]
        if not scrub(self._settings, self._database, lost=lost):
            return False
        self._save(erasure, erasure.found, step=FILES)
        return True

    def _done(self, erasure: Erasure) -> bool:
        """Step 6."""
        with self._database.writing() as connection:
            mine = ERASURE.c.erasure_id == erasure.erasure_id
            values = {"step": DONE, "erased_at": to_micros(self._now())}
            connection.execute(sa.update(ERASURE).where(mine).values(values))
        _log.info("erasure.done", erasure=erasure.erasure_id, **dict(sorted(erasure.found.counts.items())))
        return True

    def _erased_ids(self, connection: sa.Connection, erasure: Erasure) -> frozenset[str]:
        table = ERASED_INTERACTION.c
        query = sa.select(table.interaction_id).where(table.erasure_id == erasure.erasure_id)
        return frozenset(connection.execute(query).scalars())

    def _count(
        self, connection: sa.Connection, erasure: Erasure, removed: Counter[str], *, step: int | None = None
    ) -> None:
        erasure.found.counts.update(+removed)
        _write(connection, erasure, erasure.found, step)

    def _save(self, erasure: Erasure, found: Found, *, step: int | None = None) -> None:
        with self._database.writing() as connection:
            _write(connection, erasure, found, step)


def _is_of(erasure: Erasure, erased: Collection[str], value: bytes) -> bool:
    """Whether a record of the log, or one that was rejected, is the person's, from before the request.

    erased: ids of interactions, and of the person's keys.
    """
    with contextlib.suppress(Undecodable):
        said = decode(value)
        if isinstance(said, Rejected):
            return _is_of(erasure, erased, said.value)
        if isinstance(said, SealedRecord):
            return said.key_id in erased or said.interaction_id in erased
        if not isinstance(said, Interaction | Feedback | Retraction):
            return False
        if said.interaction_id in erased:
            return True
        if said.channel.tenant != erasure.tenant or moment_of(said) > erasure.requested_at:
            return False
        return erasure.person in names_in(said)
    return False


def _note(connection: sa.Connection, erasure: Erasure, items: Sequence[removal.Item], *, erased: bool) -> None:
    """Notes ids that must not come back, and the channels that had something of the person."""
    if erased and items:
        rows = [{"interaction_id": item.interaction_id, "erasure_id": erasure.erasure_id} for item in items]
        connection.execute(sa.insert(ERASED_INTERACTION), rows)
    taught = [item for item in items if item.taught]
    for channel in sorted({item.channel for item in taught}):
        first = min(item.at for item in taught if item.channel == channel)
        models.note_channel(connection, erasure.erasure_id, channel, first)


def _learnt_from(connection: sa.Connection, acts: Sequence[removal.Item]) -> list[str]:
    """Releases ("channel@version") that learnt from these acts."""
    of_channel: dict[Channel, list[tuple[str, str]]] = {}
    for act in acts:
        of_channel.setdefault(act.channel, []).append((act.interaction_id, act.feedback_id))
    return [
        f"{channel}@{version}"
        for channel, keys in sorted(of_channel.items())
        for version in sorted(lineage.versions_with(connection, channel, keys))
    ]


def _had(found: Found, channel: Channel, first: dt.datetime) -> models.Learnt:
    """What a channel had of the person."""
    asked = found.questions.get(str(channel))
    names = (name.rpartition("@") for name in found.learnt)
    return models.Learnt(
        first=first,
        first_question=None if asked is None else from_micros(asked),
        versions={int(version) for name, _, version in names if name == str(channel)},
    )


def _write(connection: sa.Connection, erasure: Erasure, found: Found, step: int | None) -> None:
    values: dict[str, Any] = {"found": found.to_json()} | ({} if step is None else {"step": step})
    connection.execute(sa.update(ERASURE).where(ERASURE.c.erasure_id == erasure.erasure_id).values(values))


def _read(connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[Erasure]:
    rows = connection.execute(sa.select(ERASURE).where(which).order_by(ERASURE.c.requested_at, ERASURE.c.erasure_id))
    return [
        Erasure(
            erasure_id=row["erasure_id"],
            tenant=row["tenant"],
            person=row["person"],
            requested_at=from_micros(row["requested_at"]),
            requested_by=row["requested_by"],
            step=row["step"],
            found=Found.from_json(row["found"]),
            erased_at=None if row["erased_at"] is None else from_micros(row["erased_at"]),
            models_retired_at=None if row["models_retired_at"] is None else from_micros(row["models_retired_at"]),
        )
        for row in rows.mappings()
    ]
