"""The tables of erasures, in the database that evidence and registry share. Times are microseconds since 1970.

They hold pseudonyms, ids and counts, never what anybody wrote.
"""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.store.database import METADATA

ERASURE = sa.Table(
    "erasure",
    METADATA,
    sa.Column("erasure_id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("person", sa.String(64), nullable=False),  # a pseudonym
    sa.Column("requested_at", sa.BigInteger, nullable=False),
    sa.Column("requested_by", sa.String(200), nullable=False),
    sa.Column("step", sa.Integer, nullable=False),  # the last one that is done
    sa.Column("found", sa.Text, nullable=False),  # JSON: see erasure.Found
    sa.Column("erased_at", sa.BigInteger),
    sa.Column("models_retired_at", sa.BigInteger),
    sa.Index("erasure_by_person", "tenant", "person"),
)

# What the log may still bring under these ids is left out, whoever it is of.
ERASED_INTERACTION = sa.Table(
    "erased_interaction",
    METADATA,
    sa.Column("interaction_id", sa.String, primary_key=True),
    sa.Column("erasure_id", sa.String(64), nullable=False),
)

# Channels that had something of a person, and when the first of it came.
ERASED_CHANNEL = sa.Table(
    "erased_channel",
    METADATA,
    sa.Column("erasure_id", sa.String(64), primary_key=True),
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("since", sa.BigInteger, nullable=False),
)

# Keys that seal what the log keeps of a person. `key` is None once it is destroyed.
PERSON_KEY = sa.Table(
    "person_key",
    METADATA,
    sa.Column("key_id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("person", sa.String(64), nullable=False),
    sa.Column("key", sa.LargeBinary(32)),
    sa.Column("closed_at", sa.BigInteger),
    sa.Column("erasure_id", sa.String(64)),
    sa.Index("person_key_by_person", "tenant", "person"),
    sa.Index("person_key_by_erasure", "erasure_id"),
)
