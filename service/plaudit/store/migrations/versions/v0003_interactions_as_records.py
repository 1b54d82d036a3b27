"""Interactions are kept as the bytes of their log record; evidence has columns to count by.

An interaction is only ever read whole, so its text, tokens and candidates need no columns. Those of 0.1.0 become
records of schema 1, which is what the log held: records of every schema decode for ever.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from plaudit.eventlog.codec import decode, request_digest
from plaudit.types import NAMELESS, Interaction
from plaudit.v1 import assistant_pb2, events_pb2, evidence_pb2

revision = "0003"
down_revision = "0002"

PRODUCER = "plaudit-migration/0003"
ROWS = 500  # converted at once, so that memory stays bounded

NEW = sa.table(
    "interactions_new",
    *map(
        sa.column,
        ("interaction_id", "domain", "tenant", "purpose", "prompt_group", "completed_at", "digest", "record"),
    ),
)
OLD = sa.table(
    "interactions",
    *map(sa.column, ("interaction_id", "domain", "tenant", "purpose", "action", "session_id", "end_user", "rater")),
    *map(sa.column, ("messages", "passages", "prompt_group", "plugin_version", "base_digest", "completed_at")),
)
CANDIDATES = sa.table(
    "candidates",
    *map(sa.column, ("interaction_id", "position", "candidate_id", "release_version", "release_digest")),
    *map(sa.column, ("prompt_tokens", "tokens", "logprobs_raw", "logprobs_sampled", "text", "displayed_text")),
    *map(sa.column, ("finish_reason", "sampling", "seed", "width", "propensity", "redacted", "valid", "option_id")),
)
EVIDENCE = sa.table(
    "evidence",
    *map(sa.column, ("interaction_id", "feedback_id", "index", "payload", "kind", "who", "accepted_at")),
)


def upgrade() -> None:
    """Rewrites the interactions and fills the new columns of evidence."""
    connection = op.get_bind()
    _interactions(connection)
    _evidence(connection)


def _interactions(connection: sa.Connection) -> None:
    op.create_table(
        "interactions_new",
        sa.Column("interaction_id", sa.String, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("domain", "tenant", "purpose")),
        sa.Column("prompt_group", sa.Text, nullable=False),
        sa.Column("completed_at", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("interaction_id", name="interactions_by_id"),
    )
    last = ""
    while True:
        query = sa.select(OLD).where(OLD.c.interaction_id > last).order_by(OLD.c.interaction_id).limit(ROWS)
        if not (rows := connection.execute(query).mappings().all()):
            break
        ids = [row["interaction_id"] for row in rows]
        last = ids[-1]
        found = sa.select(CANDIDATES).where(CANDIDATES.c.interaction_id.in_(ids)).order_by(CANDIDATES.c.position)
        candidates: dict[str, list[sa.RowMapping]] = {}
        for row in connection.execute(found).mappings():
            candidates.setdefault(row["interaction_id"], []).append(row)
        connection.execute(sa.insert(NEW), [_converted(row, candidates.get(row["interaction_id"], [])) for row in rows])
    op.drop_table("candidates")
    op.drop_table("interactions")
    op.rename_table("interactions_new", "interactions")
    op.create_index("interactions_by_channel", "interactions", ["domain", "tenant", "purpose"])


def _converted(row: sa.RowMapping, candidates: Sequence[sa.RowMapping]) -> dict[str, object]:
    record = events_pb2.Envelope(event_id=row["interaction_id"], producer=PRODUCER, schema=1)
    record.occurred_at.FromMicroseconds(row["completed_at"])
    record.interaction.CopyFrom(
        events_pb2.InteractionRecorded(
            interaction_id=row["interaction_id"],
            domain=row["domain"],
            tenant=row["tenant"],
            session_id=row["session_id"],
            end_user=row["end_user"],
            rater=row["rater"],
            purpose=f"PURPOSE_{row['purpose'].upper()}",
            action=f"ACTION_{row['action'].upper()}",
            messages=[assistant_pb2.Message(role=role, content=text) for role, text in json.loads(row["messages"])],
            passages=[
                assistant_pb2.Passage(passage_id=passage_id, text=text, source=source)
                for passage_id, text, source in json.loads(row["passages"])
            ],
            prompt_group=row["prompt_group"],
            candidates=[_candidate(each) for each in candidates],
            plugin_version=row["plugin_version"],
            base_digest=row["base_digest"],
        )
    )
    record.interaction.completed_at.FromMicroseconds(row["completed_at"])
    value = record.SerializeToString(deterministic=True)
    interaction = decode(value)
    assert isinstance(interaction, Interaction), "it was made as one"
    kept = ("interaction_id", "domain", "tenant", "purpose", "prompt_group", "completed_at")
    return {name: row[name] for name in kept} | {"digest": request_digest(interaction), "record": value}


def _candidate(row: sa.RowMapping) -> events_pb2.Candidate:
    same = ("candidate_id", "release_version", "release_digest", "text", "displayed_text", "width", "propensity")
    fields: dict[str, Any] = {name: row[name] for name in (*same, "redacted", "valid", "option_id")}
    fields |= {name: _numbers("I", row[name]) for name in ("prompt_tokens", "tokens")}
    fields |= {name: _numbers("f", row[name]) for name in ("logprobs_raw", "logprobs_sampled")}
    fields["finish_reason"] = f"FINISH_REASON_{(row['finish_reason'] or 'unspecified').upper()}"
    fields["sampling"] = assistant_pb2.Sampling(**json.loads(row["sampling"]))
    return events_pb2.Candidate(**fields, seed=int(row["seed"]))


def _numbers(code: str, data: bytes) -> tuple[Any, ...]:
    return struct.unpack(f"<{len(data) // 4}{code}", data)


def _evidence(connection: sa.Connection) -> None:
    for name in ("kind", "who"):
        op.add_column("evidence", sa.Column(name, sa.String, nullable=False, server_default=""))
    op.add_column("evidence", sa.Column("accepted_at", sa.BigInteger, nullable=False, server_default="0"))
    for name in ("rater_unit", "group_unit"):
        op.add_column("evidence", sa.Column(name, sa.Float(53)))
    key = (EVIDENCE.c.interaction_id, EVIDENCE.c.feedback_id, EVIDENCE.c.index)
    update = (
        sa.update(EVIDENCE)
        .where(*(column == sa.bindparam(f"at_{column.name}") for column in key))
        .values({name: sa.bindparam(f"to_{name}") for name in ("payload", "kind", "who", "accepted_at")})
    )
    while True:
        query = sa.select(*key, EVIDENCE.c.payload).where(EVIDENCE.c.kind == "").limit(ROWS)
        if not (rows := connection.execute(query).all()):
            break
        connection.execute(update, [_counted_by(*row) for row in rows])
    op.drop_index("evidence_by_channel", "evidence")
    op.create_index("evidence_to_count", "evidence", ["domain", "tenant", "accepted_at"])
    op.create_index("evidence_without_units", "evidence", ["domain", "tenant", "rater_unit"])


def _counted_by(interaction_id: str, feedback_id: str, index: int, payload: bytes) -> dict[str, object]:
    message = evidence_pb2.EvidenceRow.FromString(payload)
    # In 0.1.0 every interaction whose act named nobody was a rater of its own.
    if message.who.startswith("interaction:"):
        message.who = NAMELESS
    return {
        "at_interaction_id": interaction_id,
        "at_feedback_id": feedback_id,
        "at_index": index,
        "to_payload": message.SerializeToString(deterministic=True),
        "to_kind": message.kind,
        "to_who": message.who,
        "to_accepted_at": message.accepted_at.ToMicroseconds(),
    }
