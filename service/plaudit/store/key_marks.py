"""Marks of keys that every process of a deployment must share, so that a wrong one is noticed.

Enters: a key's name and mark. Leaves: the mark that the first process wrote. A mark gives its key not away.
"""

from __future__ import annotations

import sqlalchemy as sa

from plaudit.store.database import METADATA, Database

KEY_MARK = sa.Table(
    "key_mark",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("mark", sa.String(64), nullable=False),
)


def mark_of(database: Database, name: str) -> str:
    """The mark of the key that the deployment uses; empty if no process has used one yet."""
    with database.reading() as connection:
        return _read(connection, name)


def first_mark(database: Database, name: str, mark: str) -> str:
    """The same, this one if there is none: of processes that start together the first wins."""
    with database.writing() as connection:
        database.fence(connection, alone=True)
        if known := _read(connection, name):
            return known
        connection.execute(sa.insert(KEY_MARK).values(name=name, mark=mark))
    return mark


def _read(connection: sa.Connection, name: str) -> str:
    query = sa.select(KEY_MARK.c.mark).where(KEY_MARK.c.name == name)
    return str(connection.execute(query).scalar_one_or_none() or "")
