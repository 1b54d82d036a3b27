"""Headers of records that could not be decoded, beside their bytes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Adds the column rejections.headers."""
    op.add_column("rejections", sa.Column("headers", sa.LargeBinary))
