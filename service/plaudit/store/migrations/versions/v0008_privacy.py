"""Consent, and what retention and erasure look for and note."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds what is known of people: consent, names of interactions, erasures and what they reached.

    Whoever said nothing of consent, in older records, is taken to have agreed. Whom older interactions name stands in
    their records, and is filled in by the first erasure.
    """
    op.add_column("interactions", sa.Column("may_train", sa.Boolean, nullable=False, server_default=sa.true()))
    op.add_column("interactions", sa.Column("end_user", sa.String))
    op.add_column("interactions", sa.Column("rater", sa.String))
    op.create_index("interactions_by_end_user", "interactions", ["tenant", "end_user"])
    op.create_index("interactions_by_rater", "interactions", ["tenant", "rater"])
    op.create_index("interactions_by_time", "interactions", ["domain", "tenant", "completed_at"])
    op.create_index("feedback_by_who", "feedback", ["tenant", "who"])
    op.create_table(
        "erasure",
        sa.Column("erasure_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("person", sa.String(64), nullable=False),
        sa.Column("requested_at", sa.BigInteger, nullable=False),
        sa.Column("requested_by", sa.String(200), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("found", sa.Text, nullable=False),
        sa.Column("erased_at", sa.BigInteger),
        sa.Column("models_retired_at", sa.BigInteger),
    )
    op.create_index("erasure_by_person", "erasure", ["tenant", "person"])
    op.create_table(
        "person_key",
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("person", sa.String(64), nullable=False),
        sa.Column("key", sa.LargeBinary(32)),
        sa.Column("closed_at", sa.BigInteger),
        sa.Column("erasure_id", sa.String(64)),
    )
    op.create_index("person_key_by_person", "person_key", ["tenant", "person"])
    op.create_index("person_key_by_erasure", "person_key", ["erasure_id"])
    op.create_table(
        "erased_interaction",
        sa.Column("interaction_id", sa.String, primary_key=True),
        sa.Column("erasure_id", sa.String(64), nullable=False),
    )
    op.create_table(
        "erased_channel",
        sa.Column("erasure_id", sa.String(64), primary_key=True),
        sa.Column("channel", sa.String(200), primary_key=True),
        sa.Column("since", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "erased_release",
        sa.Column("channel", sa.String(200), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("erasure_id", sa.String(64), nullable=False),
        sa.Column("retire_by", sa.BigInteger, nullable=False),
    )
