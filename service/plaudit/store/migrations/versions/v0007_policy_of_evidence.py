"""Under which version of its domain's rules evidence was given: what is new is counted as a turn would use it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Adds the column evidence.policy_version; records of 0.1.0 had no such versions."""
    op.add_column("evidence", sa.Column("policy_version", sa.String, nullable=False, server_default=""))
