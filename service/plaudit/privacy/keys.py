"""The keys of people, in the store: made when a person first says something, destroyed when the person is erased.

Enters: pseudonyms and ids of keys. Leaves: 32 random bytes each. A process remembers a key for REMEMBERED_SECONDS, so
that is how long after a request nobody may rely on a key being out of use: an erasure closes the keys at once, and
destroys them only after that time.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import sqlalchemy as sa

from plaudit.evidence.tables import chunks, to_micros
from plaudit.privacy.tables import PERSON_KEY
from plaudit.store.database import Database

REMEMBERED_SECONDS = 30.0
MOST_REMEMBERED = 100_000
KEY_BYTES = 32


class PersonKeys:
    """Keys of one database. May be asked from any thread."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._current: OrderedDict[tuple[str, str], tuple[float, str, bytes]] = OrderedDict()
        self._known: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def to_seal(self, tenant: str, person: str) -> tuple[str, bytes]:
        """Id and key for what a person says now. Raises StoreUnavailable."""
        with self._lock:
            until, key_id, key = self._current.get((tenant, person), (0.0, "", b""))
        if self._clock() < until:
            return key_id, key
        asked = self._clock()
        key_id, key = self._read(tenant, person) or self._make(tenant, person)
        with self._lock:
            self._current[tenant, person] = (asked + REMEMBERED_SECONDS, key_id, key)
            while len(self._current) > MOST_REMEMBERED:
                self._current.popitem(last=False)
        return key_id, key

    def to_open(self, key_ids: Sequence[str]) -> Mapping[str, bytes]:
        """The keys of these ids that there still are. Raises StoreUnavailable."""
        now = self._clock()
        with self._lock:
            found = {each: self._known[each][1] for each in key_ids if self._known.get(each, (0.0, b""))[0] > now}
        missing = [each for each in key_ids if each not in found]
        if missing:
            table = PERSON_KEY.c
            with self._database.reading() as connection:
                for some in chunks(missing):
                    query = sa.select(table.key_id, table.key).where(table.key_id.in_(some), table.key.is_not(None))
                    found |= {key_id: bytes(key) for key_id, key in connection.execute(query)}
        with self._lock:
            self._known |= {each: (now + REMEMBERED_SECONDS, found[each]) for each in missing if each in found}
            while len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
        return found

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    def _read(self, tenant: str, person: str) -> tuple[str, bytes] | None:
        table = PERSON_KEY.c
        mine = (table.tenant == tenant) & (table.person == person) & table.closed_at.is_(None)
        query = sa.select(table.key_id, table.key).where(mine).order_by(table.key_id).limit(1)
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else (str(row[0]), bytes(row[1]))

    def _make(self, tenant: str, person: str) -> tuple[str, bytes]:
        """A new key. Two replicas may make two for one person: each opens what it sealed, and both are destroyed."""
        key_id, key = secrets.token_hex(16), secrets.token_bytes(KEY_BYTES)
        values = {"key_id": key_id, "tenant": tenant, "person": person, "key": key}
        with self._database.writing() as connection:
            connection.execute(sa.insert(PERSON_KEY).values(values))
        return key_id, key


def close_keys(database: Database, connection: sa.Connection, tenant: str, person: str, erasure_id: str) -> None:
    """Nothing new is sealed with the keys that a person has (but for REMEMBERED_SECONDS)."""
    table = PERSON_KEY.c
    mine = (table.tenant == tenant) & (table.person == person) & table.closed_at.is_(None)
    values = {"closed_at": to_micros(database.now(connection)), "erasure_id": erasure_id}
    connection.execute(sa.update(PERSON_KEY).where(mine).values(values))


def keys_of(connection: sa.Connection, erasure_id: str) -> frozenset[str]:
    """Ids of the keys that an erasure closed."""
    query = sa.select(PERSON_KEY.c.key_id).where(PERSON_KEY.c.erasure_id == erasure_id)
    return frozenset(connection.execute(query).scalars())


def destroy_keys(connection: sa.Connection, erasure_id: str) -> int:
    """Destroys the keys that an erasure closed; what they sealed says nothing any more. Returns how many there were."""
    mine = (PERSON_KEY.c.erasure_id == erasure_id) & PERSON_KEY.c.key.is_not(None)
    return connection.execute(sa.update(PERSON_KEY).where(mine).values(key=None)).rowcount


def fates(connection: sa.Connection, key_ids: Sequence[str]) -> dict[str, str | None]:
    """Of keys that are known: the erasure that destroyed each, None while it is there."""
    table, found = PERSON_KEY.c, dict[str, str | None]()
    for some in chunks(sorted(key_ids)):
        query = sa.select(table.key_id, table.key.is_(None), table.erasure_id).where(table.key_id.in_(some))
        found |= {key_id: (erasure_id if gone else None) for key_id, gone, erasure_id in connection.execute(query)}
    return found
