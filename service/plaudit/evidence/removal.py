"""Deletes from the evidence store what retention or an erasure ends, within the caller's transaction.

Enters: interactions, by age or id. Leaves: the store without them and without all that was said about them or made of
it. It does not come back: the join leaves out what is too old or erased (`plaudit.privacy.forgotten`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Table, bindparam, delete, exists, func, select, union, update
from sqlalchemy.sql.elements import ColumnElement

from plaudit.evidence import ingest
from plaudit.evidence.tables import EvidenceTable, FeedbackRow, InteractionRow, RejectionRow, Status, chunks
from plaudit.types import Channel, Purpose

_INTERACTIONS: Table = InteractionRow.metadata.tables["interactions"]
_FEEDBACK: Table = FeedbackRow.metadata.tables["feedback"]
_EVIDENCE: Table = EvidenceTable.metadata.tables["evidence"]
_REJECTIONS: Table = RejectionRow.metadata.tables["rejections"]
TABLES = ("interactions", "feedback", "evidence", "rejections")


def channels(connection: Connection) -> list[Channel]:
    """Channels of which anything is kept."""
    either = union(*(select(table.c.domain, table.c.tenant) for table in (_INTERACTIONS, _FEEDBACK)))
    return sorted(Channel(domain, tenant) for domain, tenant in connection.execute(either))


def count_older(connection: Connection, channel: Channel, before: int) -> Counter[str]:
    """What `remove_older` would delete in all, by table."""
    old = select(_INTERACTIONS.c.interaction_id).where(_old_interaction(channel, before))
    counts = {
        "interactions": select(func.count()).where(_old_interaction(channel, before)),
        "feedback": select(func.count()).where(
            _FEEDBACK.c.interaction_id.in_(old) | _old_without_interaction(channel, before)
        ),
        "evidence": select(func.count()).where(_EVIDENCE.c.interaction_id.in_(old)),
    }
    return +Counter({table: int(connection.execute(query).scalar_one()) for table, query in counts.items()})


def remove_older(connection: Connection, channel: Channel, before: int, most: int) -> Counter[str]:
    """Deletes what a channel keeps from before a time (microseconds since 1970); counts by table.

    That is at most so many interactions, with all that belongs to them, and feedback whose interaction is not here.
    """
    some = select(_INTERACTIONS.c.interaction_id).where(_old_interaction(channel, before)).limit(most)
    removed = remove_interactions(connection, list(connection.execute(some).scalars()))
    alone = connection.execute(delete(_FEEDBACK).where(_old_without_interaction(channel, before)))
    removed["feedback"] += alone.rowcount
    return +removed


def remove_interactions(connection: Connection, ids: Sequence[str]) -> Counter[str]:
    """Deletes interactions with their feedback and evidence; counts by table."""
    removed: Counter[str] = Counter()
    for some in chunks(sorted(ids)):
        for table in (_EVIDENCE, _FEEDBACK, _INTERACTIONS):
            removed[table.name] += connection.execute(delete(table).where(table.c.interaction_id.in_(some))).rowcount
    return removed


def fill_names(connection: Connection, most: int) -> int:
    """Fills in whom older interactions name, at most so many; returns how many it did."""
    table = _INTERACTIONS.c
    rows = connection.execute(select(table.interaction_id, table.record).where(table.end_user.is_(None)).limit(most))
    names = []
    for interaction_id, record in rows.all():
        said = ingest.interaction_of(record)
        names.append({"at": interaction_id, "user": said.end_user, "rated_by": said.rater})
    if names:
        statement = update(_INTERACTIONS).where(table.interaction_id == bindparam("at"))
        connection.execute(statement.values(end_user=bindparam("user"), rater=bindparam("rated_by")), names)
    return len(names)


@dataclass(frozen=True, slots=True)
class Item:
    """An interaction or an act of somebody; `at` in microseconds since 1970. `taught`: releases may know it.

    `feedback_id` is empty for an interaction.
    """

    interaction_id: str
    channel: Channel
    at: int
    taught: bool
    feedback_id: str = ""


def interactions_of(connection: Connection, tenant: str, person: str, most: int) -> list[Item]:
    """Interactions that name a person, as the end user or as the one rater, at most so many."""
    table = _INTERACTIONS.c
    taught = table.may_train & (table.purpose != Purpose.EVALUATE.value)
    columns = (table.interaction_id, table.domain, table.completed_at, taught)
    mine = (table.tenant == tenant) & ((table.end_user == person) | (table.rater == person))
    rows = connection.execute(select(*columns).where(mine).order_by(table.interaction_id).limit(most))
    return [Item(name, Channel(domain, tenant), at, bool(may)) for name, domain, at, may in rows]


def acts_of(connection: Connection, tenant: str, person: str) -> list[Item]:
    """Acts and retractions that a person gave, of interactions that are here and of those that are not."""
    table = _FEEDBACK.c
    taught = table.status.not_in([Status.WITHHELD.value, Status.WAITING.value])
    columns = (table.interaction_id, table.domain, table.accepted_at, taught, table.feedback_id)
    rows = connection.execute(select(*columns).where(table.tenant == tenant, table.who == person))
    return [Item(name, Channel(domain, tenant), at, bool(may), act) for name, domain, at, may, act in rows]


def remove_acts(connection: Connection, tenant: str, person: str) -> Counter[str]:
    """Deletes a person's acts and retractions with their evidence; counts by table."""
    return Counter(
        {
            table.name: connection.execute(
                delete(table).where(table.c.tenant == tenant, table.c.who == person)
            ).rowcount
            for table in (_EVIDENCE, _FEEDBACK)
        }
    )


@dataclass(frozen=True, slots=True)
class KeptRejection:
    """A rejection that was published; `rejected_at` in microseconds since 1970."""

    identity: str
    rejected_at: int
    value: bytes


def rejections_behind(
    connection: Connection, identity: str, most: int, *, published: bool = True
) -> list[KeptRejection]:
    """Rejections in order of their names, those behind one, at most so many; `published`: only those that were."""
    columns = (_REJECTIONS.c.identity, _REJECTIONS.c.rejected_at, _REJECTIONS.c.value)
    query = select(*columns).where(_REJECTIONS.c.identity > identity)
    query = query.where(_REJECTIONS.c.published) if published else query
    rows = connection.execute(query.order_by(_REJECTIONS.c.identity).limit(most))
    return [KeptRejection(*row) for row in rows]


def remove_rejections(connection: Connection, identities: Sequence[str]) -> int:
    """Deletes rejections by their names; returns how many there were."""
    return sum(
        connection.execute(delete(_REJECTIONS).where(_REJECTIONS.c.identity.in_(some))).rowcount
        for some in chunks(sorted(identities))
    )


def _old_interaction(channel: Channel, before: int) -> ColumnElement[bool]:
    table = _INTERACTIONS.c
    return (table.domain == channel.domain) & (table.tenant == channel.tenant) & (table.completed_at < before)


def _old_without_interaction(channel: Channel, before: int) -> ColumnElement[bool]:
    table = _FEEDBACK.c
    of_channel = (table.domain == channel.domain) & (table.tenant == channel.tenant)
    here = exists().where(_INTERACTIONS.c.interaction_id == table.interaction_id)
    return of_channel & (table.accepted_at < before) & ~here
