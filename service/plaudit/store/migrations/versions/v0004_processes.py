"""Which processes run, and of a turn's outcome the facts: its version and what it was refused for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the table process and the column turn_outcome.facts."""
    op.create_table(
        "process",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
    )
    op.add_column("turn_outcome", sa.Column("facts", sa.Text, nullable=False, server_default="{}"))
