"""The registry's four tables, in the database that it shares with the evidence store."""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.store.database import METADATA, UtcTime

RELEASE = sa.Table(
    "release",
    METADATA,
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    # Digest of the manifest before it had a version: registering the same one twice changes nothing.
    sa.Column("draft", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("decision", sa.Text, nullable=False, default=""),
    sa.Column("skipped", sa.String(64), nullable=False, default=""),
    # Acts of feedback that it learnt from; NULL of the base and of releases from before this was kept.
    sa.Column("acts", sa.BigInteger),
    sa.UniqueConstraint("channel", "draft"),
)

CHANNEL_STATE = sa.Table(
    "channel_state",
    METADATA,
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("live", sa.Integer, nullable=False),
    sa.Column("canary", sa.Integer),
    sa.Column("pinned", sa.Boolean, nullable=False),
)

CHANNEL_CHANGE = sa.Table(
    "channel_change",
    METADATA,
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("live", sa.Integer, nullable=False),
    sa.Column("pinned", sa.Boolean, nullable=False),
    sa.Column("move", sa.String(64), nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

# An act and the versions that learnt from it: from `first` to `last`, both included; NULL: to the newest that learnt.
RELEASE_ACT = sa.Table(
    "release_act",
    METADATA,
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("interaction_id", sa.String, primary_key=True),
    sa.Column("feedback_id", sa.String, primary_key=True),
    sa.Column("first", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("last", sa.Integer),
    sa.Index("release_act_by_feedback", "feedback_id"),
    sa.Index("release_act_by_interaction", "interaction_id"),
)

# Releases that learnt from somebody who has been erased: none of them goes live again, and the live one has to be
# replaced, or taken back, by a time (microseconds since 1970).
ERASED_RELEASE = sa.Table(
    "erased_release",
    METADATA,
    sa.Column("channel", sa.String(200), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("erasure_id", sa.String(64), nullable=False),
    sa.Column("retire_by", sa.BigInteger, nullable=False),
)
