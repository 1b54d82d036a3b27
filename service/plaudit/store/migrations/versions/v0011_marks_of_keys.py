"""Marks of keys that every process must share: with another pseudonym key, every rater is another person."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Adds the table key_mark."""
    op.create_table(
        "key_mark",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("mark", sa.String(64), nullable=False),
    )
