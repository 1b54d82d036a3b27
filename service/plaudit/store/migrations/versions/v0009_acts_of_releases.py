"""Which acts of feedback a release learnt from, so that a withdrawn one leads to its releases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Adds the column release.acts and the table release_act; what older releases learnt from is not known."""
    op.add_column("release", sa.Column("acts", sa.BigInteger))
    op.create_table(
        "release_act",
        sa.Column("channel", sa.String(200), primary_key=True),
        sa.Column("interaction_id", sa.String, primary_key=True),
        sa.Column("feedback_id", sa.String, primary_key=True),
        sa.Column("first", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last", sa.Integer),
    )
    op.create_index("release_act_by_feedback", "release_act", ["feedback_id"])
    op.create_index("release_act_by_interaction", "release_act", ["interaction_id"])
