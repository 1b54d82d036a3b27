"""Takes what was deleted out of the bytes of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa

from plaudit.eventlog import LOG_FILE
from plaudit.evidence.removal import TABLES
from plaudit.privacy.tables import PERSON_KEY
from plaudit.settings import Settings
from plaudit.store import kept, sqlite
from plaudit.store.database import Database
from plaudit.types import Channel


def scrub(settings: Settings, database: Database, *, lost: Iterable[Channel] = (), compact: bool = False) -> bool:
    """Takes what was deleted out of the files' bytes; False if a reader was in the way: try again later.

    PostgreSQL: the space of deleted rows is freed for use; its server overwrites it as it uses it. compact: writes
    SQLite files anew, without pages that an earlier version left behind. What a learner on this disk kept from turn to
    turn of the channels that lost something goes too. Raises sqlite3.OperationalError.
    """
    for channel in lost:
        kept.forget(settings.data_dir, channel)
    files = [] if settings.log.kind == "kafka" else [settings.data_dir / LOG_FILE]
    if database.engine.dialect.name == "sqlite":
        files.append(Path(str(database.engine.url.database)))
    else:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in (*TABLES, PERSON_KEY.name):
                connection.execute(sa.text(f"VACUUM {table}"))
    done = True
    for file in files:
        if file.exists():
            if compact:
                sqlite.compact(file)
            done = sqlite.scrub(file) and done
    return done
