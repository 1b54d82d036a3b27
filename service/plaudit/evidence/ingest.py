"""The writes of one join transaction: interactions, feedback, and the evidence that follows. Places are in `places`.

Enters: decoded records and an open transaction. Leaves: rows. Every function is idempotent, and none commits: offsets
and everything that was made of the records become durable together or not at all (docs/join.md, steps 3 to 6).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import Connection, RowMapping, Table, bindparam, delete, exists, insert, select, update

from plaudit import __version__
from plaudit.domain import DomainPlugin
from plaudit.errors import IdConflict, NoInteraction, PlauditError
from plaudit.eventlog import Record
from plaudit.eventlog.codec import Retraction, body_digest, decode, encode_interaction, request_digest
from plaudit.evidence import rows
from plaudit.evidence.derive import About, Derived, Key, StoredAct, StoredRetraction, derive
from plaudit.evidence.rejections import Rejection, write_rejections
from plaudit.evidence.tables import (
    EvidenceTable,
    FeedbackRow,
    InteractionRow,
    Status,
    chunks,
    from_micros,
    to_micros,
    where_in,
)
from plaudit.types import Channel, Feedback, FeedbackKind, Interaction, Purpose, without_text

SWEEP_LIMIT = 1000  # interactions that one sweep takes up, so that a transaction stays short

Row: TypeAlias = RowMapping | dict[str, Any]

_INTERACTIONS: Table = InteractionRow.metadata.tables["interactions"]
_FEEDBACK: Table = FeedbackRow.metadata.tables["feedback"]
_EVIDENCE: Table = EvidenceTable.metadata.tables["evidence"]


@dataclass(slots=True)
class _Arrived:
    """An act or a retraction that the store does not have yet, and the row that it gets."""

    row: dict[str, Any]
    item: Feedback | Retraction


@dataclass(slots=True)
class Taken:
    """Ids of the interactions whose feedback changed, and by id what has to be written of it."""

    touched: set[str]
    arrived: dict[str, list[_Arrived]] = field(default_factory=lambda: defaultdict(list))


@dataclass(slots=True)
class Outcome:
    """What a derivation changed, for metrics."""

    joined: Counter[Channel] = field(default_factory=Counter)
    evidence: Counter[tuple[Channel, FeedbackKind]] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    forgotten: Counter[str] = field(default_factory=Counter)


def write_interactions(
    connection: Connection, arrived: Sequence[tuple[Record, Interaction]]
) -> tuple[dict[str, Interaction], list[Rejection]]:
    """Adds interactions that are not there yet; of two under one id the first in the log counts."""
    ids = {interaction.interaction_id for _, interaction in arrived}
    digests: dict[str, bytes] = {
        row["interaction_id"]: row["digest"]
        for row in where_in(connection, _INTERACTIONS, "interaction_id", ids, ("interaction_id", "digest"))
    }
    fresh: dict[str, Interaction] = {}
    heads: list[dict[str, Any]] = []
    rejections: list[Rejection] = []
    for record, interaction in arrived:
        head = _interaction_row(record, interaction)
        known = digests.get(interaction.interaction_id)
        if known is None:
            digests[interaction.interaction_id] = head["digest"]
            fresh[interaction.interaction_id] = interaction
            heads.append(head)
        elif known != head["digest"]:
            message = f"interaction {interaction.interaction_id} is in the log with another content, which counts"
            rejections.append(Rejection.of(record, IdConflict(message)))
    if heads:
        connection.execute(insert(_INTERACTIONS), heads)
    return fresh, rejections


def take_feedback(
    connection: Connection, arrived: Sequence[tuple[Record, Feedback | Retraction]], now: dt.datetime
) -> Taken:
    """Acts and retractions that are not there yet, to be written once it is known what becomes of them (`rederive`).

    A repeat at most moves an act's acceptance to an earlier time.
    """
    ids = {item.interaction_id for _, item in arrived}
    columns = ("interaction_id", "feedback_id", "retraction", "digest", "accepted_at")
    accepted: dict[tuple[Any, ...], int] = {
        (row["interaction_id"], row["feedback_id"], row["retraction"], row["digest"]): row["accepted_at"]
        for row in where_in(connection, _FEEDBACK, "interaction_id", ids, columns)
    }
    fresh: dict[tuple[Any, ...], _Arrived] = {}
    earlier: dict[tuple[Any, ...], int] = {}
    for record, item in arrived:
        row = _feedback_row(record, item, now)
        key = (row["interaction_id"], row["feedback_id"], row["retraction"], row["digest"])
        if key not in accepted:
            fresh[key] = _Arrived(row, item)
        elif row["accepted_at"] < accepted[key]:
            if key in fresh:
                fresh[key].row["accepted_at"] = row["accepted_at"]
            else:
                earlier[key] = row["accepted_at"]
        else:
            continue
        accepted[key] = row["accepted_at"]
    _update_feedback(connection, [(key, {"accepted_at": moment}) for key, moment in earlier.items()])
    taken = Taken({key[0] for key in (*fresh, *earlier)})
    for each in fresh.values():
        taken.arrived[each.row["interaction_id"]].append(each)
    return taken


def rederive(
    connection: Connection,
    touched: Iterable[str],
    fresh: Mapping[str, Interaction],
    plugins: Mapping[str, DomainPlugin],
    now: dt.datetime,
    taken: Taken | None = None,
) -> Outcome:
    """Builds the evidence of these interactions anew from all their feedback, and writes what was `taken` of it.

    Feedback whose interaction is not there yet waits. `fresh`: interactions of this transaction, by id.
    """
    outcome = Outcome()
    for ids in chunks(sorted(touched)):
        interactions = _lock_and_load(connection, ids, fresh)
        stored: dict[str, list[RowMapping]] = defaultdict(list)
        for known in where_in(connection, _FEEDBACK, "interaction_id", interactions):
            stored[known["interaction_id"]].append(known)
        arrived = {each: taken.arrived[each] for each in ids if each in taken.arrived} if taken else {}
        said = [each for each in interactions if each in stored or each in arrived]
        evidence: list[dict[str, Any]] = []
        changes: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        rejections: list[Rejection] = []
        about = [_about(interactions[each], stored.get(each, ()), arrived.get(each, ())) for each in said]
        for interaction_id, derived in zip(said, derive(about, plugins), strict=True):
            interaction = interactions[interaction_id]
            evidence += [_evidence_row(row, interaction) for row in derived.evidence]
            outcome.evidence.update((interaction.channel, row.kind) for row in derived.evidence)
            new = [each.row for each in arrived.get(interaction_id, ())]
            for row, status, error in _changed([*stored.get(interaction_id, ()), *new], derived):
                change = {"status": status.value, "reason": error.reason if error else ""}
                if isinstance(row, dict):  # of those that arrived: not written yet
                    row.update(change)
                else:
                    changes.append(((interaction_id, *_key(row)), change))
                if error:
                    rejections.append(Rejection.of_row(row, error))
                    outcome.rejected[error.reason] += 1
                outcome.joined[interaction.channel] += status is Status.JOINED
        if stored:
            connection.execute(delete(_EVIDENCE).where(_EVIDENCE.c.interaction_id.in_(list(stored))))
        if evidence:
            connection.execute(insert(_EVIDENCE), evidence)
        _update_feedback(connection, changes)
        if arrived:
            connection.execute(insert(_FEEDBACK), [each.row for some in arrived.values() for each in some])
        write_rejections(connection, rejections, now)
    return outcome


def joinable(connection: Connection) -> set[str]:
    """Some interactions that are here while feedback on them waits.

    Two workers that read an interaction and its feedback at the same moment do not see each other's rows; whoever
    looks next finds both.
    """
    present = exists().where(_INTERACTIONS.c.interaction_id == _FEEDBACK.c.interaction_id)
    query = (
        select(_FEEDBACK.c.interaction_id)
        .where(_FEEDBACK.c.status == Status.WAITING.value, present)
        .distinct()
        .limit(SWEEP_LIMIT)
    )
    return set(connection.execute(query).scalars())


def expire(connection: Connection, seen_before: dt.datetime, now: dt.datetime) -> int:
    """Rejects feedback that was seen before a time and whose interaction has not come; returns how many."""
    present = exists().where(_INTERACTIONS.c.interaction_id == _FEEDBACK.c.interaction_id)
    query = (
        select(_FEEDBACK)
        .where(_FEEDBACK.c.status == Status.WAITING.value, _FEEDBACK.c.seen_at < to_micros(seen_before), ~present)
        .limit(SWEEP_LIMIT)
    )
    late = connection.execute(query).mappings().all()
    changes, rejections = [], []
    for row in late:
        error = NoInteraction(
            f"interaction {row['interaction_id']} has not arrived since {from_micros(row['seen_at']).isoformat()}"
        )
        change = {"status": Status.REJECTED.value, "reason": error.reason}
        changes.append(((row["interaction_id"], *_key(row)), change))
        rejections.append(Rejection.of_row(row, error))
    _update_feedback(connection, changes)
    write_rejections(connection, rejections, now)
    return len(late)


def take_up_again(connection: Connection, domains: Iterable[str], reasons: Iterable[str]) -> None:
    """Lets feedback of these domains wait again that was rejected for a reason that a restart may have fixed."""
    connection.execute(
        update(_FEEDBACK)
        .where(
            _FEEDBACK.c.status == Status.REJECTED.value,
            _FEEDBACK.c.domain.in_(sorted(domains)),
            _FEEDBACK.c.reason.in_(sorted(reasons)),
        )
        .values(status=Status.WAITING.value, reason="")
    )


def load_interactions(heads: Iterable[Row]) -> dict[str, Interaction]:
    """The interactions of these rows by id, in order of it: nothing depends on the order in which they arrived."""
    return {row["interaction_id"]: interaction_of(row["record"]) for row in sorted(heads, key=_by_id)}


def interaction_of(record: bytes) -> Interaction:
    """The interaction that the store keeps as this record."""
    interaction = decode(record)
    assert isinstance(interaction, Interaction), "the join stores interactions only"
    return interaction


def _lock_and_load(
    connection: Connection, ids: Sequence[str], fresh: Mapping[str, Interaction]
) -> dict[str, Interaction]:
    # The lock keeps two workers from deriving one interaction at once, each blind to the other's feedback. SQLite has
    # no row locks and one writer.
    query = select(_INTERACTIONS).where(_INTERACTIONS.c.interaction_id.in_(ids)).order_by("interaction_id")
    heads = connection.execute(query.with_for_update()).mappings().all()
    stored = load_interactions([row for row in heads if row["interaction_id"] not in fresh])
    return stored | {
        row["interaction_id"]: fresh[row["interaction_id"]] for row in heads if row["interaction_id"] in fresh
    }


def _about(interaction: Interaction, stored: Iterable[Row], arrived: Iterable[_Arrived]) -> About:
    said: list[tuple[Row, Feedback | None]] = [(row, None if row["retraction"] else _act_of(row)) for row in stored]
    said += [(each.row, each.item if isinstance(each.item, Feedback) else None) for each in arrived]
    acts, retractions = [], []
    for row, feedback in said:
        if feedback is None:
            channel = Channel(row["domain"], row["tenant"])
            retractions.append(
                StoredRetraction(feedback_id=row["feedback_id"], channel=channel, who=row["who"], digest=row["digest"])
            )
        else:
            accepted_at = from_micros(row["accepted_at"])
            if feedback.accepted_at != accepted_at:
                feedback = dataclasses.replace(feedback, accepted_at=accepted_at)
            acts.append(StoredAct(feedback=feedback, digest=row["digest"]))
    return About(interaction, acts, retractions)


def _act_of(row: Row) -> Feedback:
    feedback = decode(row["value"])
    assert isinstance(feedback, Feedback), "the join stores acts of feedback only"
    return feedback


def _changed(stored: Iterable[Row], derived: Derived) -> Iterator[tuple[Row, Status, PlauditError | None]]:
    for row in stored:
        status = derived.statuses[_key(row)]
        error = derived.errors.get(_key(row))
        if (row["status"], row["reason"]) != (status.value, error.reason if error else ""):
            yield row, status, error


def _interaction_row(record: Record, interaction: Interaction) -> dict[str, Any]:
    learnt_from = interaction.purpose is not Purpose.EVALUATE and interaction.consent.train
    return {
        "interaction_id": interaction.interaction_id,
        "domain": interaction.channel.domain,
        "tenant": interaction.channel.tenant,
        "purpose": interaction.purpose.value,
        "prompt_group": interaction.prompt_group if learnt_from else "",
        "completed_at": to_micros(interaction.completed_at),
        "digest": request_digest(interaction),
        "record": record.value if learnt_from else _without_text(interaction),
        "may_train": interaction.consent.train,
        "end_user": interaction.end_user,
        "rater": interaction.rater,
    }


def _without_text(interaction: Interaction) -> bytes:
    """An interaction that nothing may learn from: what tells that it was seen, and nothing that anybody wrote."""
    producer = f"plaudit-join/{__version__}"
    return encode_interaction(without_text(interaction), producer=producer, event_id=interaction.interaction_id)


def _feedback_row(record: Record, item: Feedback | Retraction, now: dt.datetime) -> dict[str, Any]:
    if isinstance(item, Retraction):
        digest = hashlib.sha256(f"{item.channel}\0{item.who}".encode()).digest()
    else:
        digest = body_digest(item)
    return {
        "interaction_id": item.interaction_id,
        "feedback_id": item.feedback_id,
        "retraction": isinstance(item, Retraction),
        "digest": digest,
        "domain": item.channel.domain,
        "tenant": item.channel.tenant,
        "who": item.who,
        "accepted_at": to_micros(item.accepted_at),
        "seen_at": to_micros(now),
        "status": Status.WAITING.value,
        "reason": "",
        "topic": record.topic.value,
        "partition": record.partition,
        "offset": record.offset,
        "key": record.key,
        "value": record.value,
    }


def _evidence_row(row: rows.StoredEvidence, interaction: Interaction) -> dict[str, Any]:
    return {
        "interaction_id": row.interaction_id,
        "feedback_id": row.feedback_id,
        "index": row.index,
        "domain": row.channel.domain,
        "tenant": row.channel.tenant,
        "payload": rows.evidence_to_bytes(row),
        "kind": row.kind.value,
        "who": row.who,
        "accepted_at": to_micros(row.accepted_at),
        "policy_version": interaction.policy_version,
    }


def _by_id(row: Row) -> str:
    return str(row["interaction_id"])


def _key(row: Row) -> Key:
    return (row["feedback_id"], row["retraction"], row["digest"])


def _update_feedback(connection: Connection, changes: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> None:
    """Sets the same columns of many rows, each named by its primary key, in one statement."""
    if not changes:
        return
    names = ("interaction_id", "feedback_id", "retraction", "digest")
    statement = (
        update(_FEEDBACK)
        .where(*(_FEEDBACK.c[name] == bindparam(f"at_{name}") for name in names))
        .values({name: bindparam(f"to_{name}") for name in changes[0][1]})
    )
    connection.execute(
        statement,
        [
            {f"at_{name}": part for name, part in zip(names, key, strict=True)}
            | {f"to_{name}": value for name, value in values.items()}
            for key, values in changes
        ],
    )
