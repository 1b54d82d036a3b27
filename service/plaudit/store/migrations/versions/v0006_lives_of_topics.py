"""Offsets belong to a life of a topic, and know the record before them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds topic_id, before and expired to the table offsets."""
    op.add_column("offsets", sa.Column("topic_id", sa.String, nullable=False, server_default=""))
    op.add_column("offsets", sa.Column("before", sa.String, nullable=False, server_default=""))
    op.add_column("offsets", sa.Column("expired", sa.BigInteger, nullable=False, server_default="0"))
