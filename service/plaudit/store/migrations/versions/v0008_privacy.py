"""Consent, and what retention and erasure look for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Adds interactions.may_train: whoever said nothing of it, in older records, is taken to have agreed."""
    op.add_column("interactions", sa.Column("may_train", sa.Boolean, nullable=False, server_default=sa.true()))
