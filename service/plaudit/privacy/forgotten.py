"""What the join leaves out because it has ended: records beyond retention and of people who were erased.

Enters: decoded records within the join's transaction. Leaves: why each has ended, if it has, and the ids of erased
interactions that were not known yet. A log is read again after a reset, and Kafka keeps records for as long as its
topics are told to: what was deleted must not come back from there.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import sqlalchemy as sa

from plaudit.errors import Misconfigured
from plaudit.eventlog.codec import Retraction, SealedRecord
from plaudit.eventlog.protocol import Topic
from plaudit.evidence.tables import chunks, from_micros
from plaudit.privacy import keys
from plaudit.privacy.tables import ERASED_INTERACTION, ERASURE
from plaudit.types import Channel, Feedback, Interaction

RETENTION, ERASED = "retention", "erasure"

Said: TypeAlias = Interaction | Feedback | Retraction


class Forgotten:
    """Decides about records. `days`: a channel's retention in days, 0 for ever; `opens`: the log opens sealed ones."""

    def __init__(self, days: Callable[[Channel], float] = lambda _: 0.0, *, opens: bool = False) -> None:
        self._days = days
        self._opens = opens

    def ended(self, connection: sa.Connection, records: Sequence[Said], now: dt.datetime) -> list[str]:
        """Of each record RETENTION, ERASED or "", in order. Notes ids of erased interactions that it sees first."""
        erased = _Erased(connection, records)
        return [ERASED if erased.is_erased(said) else RETENTION if self._too_old(said, now) else "" for said in records]

    def destroyed(self, connection: sa.Connection, records: Sequence[tuple[Topic, SealedRecord]]) -> list[str]:
        """Of each record that nobody opened ERASED if its key was destroyed, in order; else "": it cannot be read.

        Notes ids of erased interactions that it sees first. Raises Misconfigured if the keys were not asked for here.
        """
        if not records:
            return []
        fates = keys.fates(connection, sorted({said.key_id for _, said in records}))
        if not self._opens and any(erasure_id is None for erasure_id in fates.values()):
            raise Misconfigured(
                "the log has records that are sealed with keys of people, and privacy.person_keys is off here; set it "
                "to true wherever it was true before",
                setting="privacy.person_keys",
            )
        gone = {
            said.interaction_id: erasure_id
            for topic, said in records
            if topic is Topic.INTERACTIONS and (erasure_id := fates.get(said.key_id))
        }
        _note_erased(connection, gone)
        return [ERASED if fates.get(said.key_id) else "" for _, said in records]

    def _too_old(self, said: Said, now: dt.datetime) -> bool:
        days = self._days(said.channel)
        return bool(days) and moment_of(said) < now - dt.timedelta(days=days)


class _Erased:
    """Who of a batch was erased, and which of its interactions."""

    def __init__(self, connection: sa.Connection, records: Sequence[Said]) -> None:
        self._people: dict[tuple[str, str], tuple[dt.datetime, str]] = {}
        self._ids = set[str]()
        if not records or connection.execute(sa.select(ERASURE.c.step).limit(1)).first() is None:
            return
        names = sorted({name for said in records for name in names_in(said) if name})
        table = ERASURE.c
        for some in chunks(names):
            query = sa.select(table.tenant, table.person, table.requested_at, table.erasure_id)
            rows = connection.execute(query.where(table.person.in_(some)).order_by(table.requested_at))
            self._people |= {(tenant, person): (from_micros(at), name) for tenant, person, at, name in rows}
        ids = sorted({said.interaction_id for said in records})
        self._ids = _known_erased(connection, ids)
        fresh: dict[str, str] = {}
        for said in records:
            unknown = isinstance(said, Interaction) and said.interaction_id not in self._ids
            if unknown and (erasure_id := self._erasure_of(said)):
                fresh[said.interaction_id] = erasure_id
        _note_erased(connection, fresh)
        self._ids |= set(fresh)

    def is_erased(self, said: Said) -> bool:
        """Whether a record is of an erased interaction, or of somebody from before their erasure."""
        return said.interaction_id in self._ids or bool(self._erasure_of(said))

    def _erasure_of(self, said: Said) -> str:
        for name in names_in(said):
            at, erasure_id = self._people.get((said.channel.tenant, name), (None, ""))
            if at is not None and moment_of(said) <= at:
                return erasure_id
        return ""


def _known_erased(connection: sa.Connection, ids: Sequence[str]) -> set[str]:
    """Which of these interactions are noted as erased."""
    found: set[str] = set()
    for some in chunks(ids):
        known = sa.select(ERASED_INTERACTION.c.interaction_id).where(ERASED_INTERACTION.c.interaction_id.in_(some))
        found |= set(connection.execute(known).scalars())
    return found


def _note_erased(connection: sa.Connection, fresh: Mapping[str, str]) -> None:
    """Notes interactions by id, with their erasure, that are not noted yet."""
    known = _known_erased(connection, sorted(fresh))
    rows = [{"interaction_id": each, "erasure_id": name} for each, name in fresh.items() if each not in known]
    if rows:
        connection.execute(sa.insert(ERASED_INTERACTION), rows)


def names_in(said: Said) -> tuple[str, ...]:
    """Pseudonyms that a record names, empty ones too."""
    return (said.end_user, said.rater) if isinstance(said, Interaction) else (said.rater,)


def moment_of(said: Said) -> dt.datetime:
    """When it was completed, or accepted."""
    return said.completed_at if isinstance(said, Interaction) else said.accepted_at
