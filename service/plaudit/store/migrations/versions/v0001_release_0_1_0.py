"""The tables of release 0.1.0, which made them without a migration: whatever is there already stays.

A 0.1.0 store may hold only some of them: each process made its own.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates what is missing."""
    _interactions()
    _feedback()
    _evidence()
    _registry()


def _table(name: str, *columns: sa.schema.SchemaItem) -> None:
    op.create_table(name, *columns, if_not_exists=True)


def _index(name: str, table: str, *columns: str) -> None:
    op.create_index(name, table, list(columns), if_not_exists=True)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=False)


def _interactions() -> None:
    _table(
        "interactions",
        sa.Column("interaction_id", sa.String, primary_key=True),
        *map(_text, ("domain", "tenant", "purpose", "action", "session_id", "end_user", "rater")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("messages", "passages", "prompt_group")),
        *map(_text, ("plugin_version", "base_digest")),
        sa.Column("completed_at", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
    )
    _index("interactions_by_channel", "interactions", "domain", "tenant", "purpose")
    _table(
        "candidates",
        sa.Column("interaction_id", sa.String, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        _text("candidate_id"),
        sa.Column("release_version", sa.BigInteger, nullable=False),
        _text("release_digest"),
        *(
            sa.Column(name, sa.LargeBinary, nullable=False)
            for name in ("prompt_tokens", "tokens", "logprobs_raw", "logprobs_sampled")
        ),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("displayed_text", sa.Text, nullable=False),
        _text("finish_reason"),
        sa.Column("sampling", sa.Text, nullable=False),
        _text("seed"),
        sa.Column("width", sa.BigInteger, nullable=False),
        sa.Column("propensity", sa.Float(53), nullable=False),
        sa.Column("redacted", sa.Boolean, nullable=False),
        sa.Column("valid", sa.Boolean, nullable=False),
        _text("option_id"),
    )


def _feedback() -> None:
    _table(
        "feedback",
        sa.Column("interaction_id", sa.String, primary_key=True),
        sa.Column("feedback_id", sa.String, primary_key=True),
        sa.Column("retraction", sa.Boolean, primary_key=True),
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        *map(_text, ("domain", "tenant", "who")),
        sa.Column("accepted_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        *map(_text, ("status", "reason", "topic")),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    _index("feedback_by_channel", "feedback", "domain", "tenant", "status")
    _index("feedback_by_status", "feedback", "status", "seen_at")


def _evidence() -> None:
    _table(
        "evidence",
        sa.Column("interaction_id", sa.String, primary_key=True),
        sa.Column("feedback_id", sa.String, primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
        *map(_text, ("domain", "tenant")),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    _index("evidence_by_channel", "evidence", "domain", "tenant")
    _table(
        "offsets",
        sa.Column("topic", sa.String, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("next", sa.BigInteger, nullable=False),
    )
    _table(
        "rejections",
        sa.Column("identity", sa.String, primary_key=True),
        _text("topic"),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        _text("reason"),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("rejected_at", sa.BigInteger, nullable=False),
        sa.Column("published", sa.Boolean, nullable=False),
    )
    _index("rejections_by_published", "rejections", "published")


def _registry() -> None:
    _table(
        "release",
        sa.Column("channel", sa.String(200), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("draft", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("skipped", sa.String(64), nullable=False),
        sa.UniqueConstraint("channel", "draft"),
    )
    _table(
        "channel_state",
        sa.Column("channel", sa.String(200), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("live", sa.Integer, nullable=False),
        sa.Column("canary", sa.Integer),
        sa.Column("pinned", sa.Boolean, nullable=False),
    )
    _table(
        "channel_change",
        sa.Column("channel", sa.String(200), primary_key=True),
        sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("live", sa.Integer, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("move", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
