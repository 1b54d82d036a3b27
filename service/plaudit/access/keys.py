"""API keys: made once, shown once, kept as a hash.

A key is `plaudit_<id>_<secret>`. The secret has 256 random bits, so SHA-256 keeps it as well as a slow hash would. The
store holds the hash, what the key is for and who made it. Revoking keeps the row, so that records which name the key
stay readable. `KeyRing` is what a server asks: it remembers a key for `remember_seconds`, so that a revocation acts
within that time, and serves what it remembers for longer while the store is away.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from plaudit.access.rights import Caller, Role
from plaudit.errors import BadCredentials, StoreUnavailable
from plaudit.store.database import METADATA, Database, UtcTime

API_KEY = sa.Table(
    "api_key",
    METADATA,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
    sa.Column("roles", sa.Text, nullable=False),  # JSON lists
    sa.Column("tenants", sa.Text, nullable=False),
    sa.Column("domains", sa.Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("expires_at", UtcTime),
    sa.Column("revoked_at", UtcTime),
    sa.Column("revoked_by", sa.String(200), nullable=False),
)
PREFIX = "plaudit_"
_ID_BYTES, _SECRET_BYTES = 6, 32
_MOST_REMEMBERED = 10_000
# While the store is away, a key that was good this long ago still is; longer, and nothing is known of it.
_AWAY_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is known of a key; never the key."""

    key_id: str
    name: str
    roles: frozenset[Role]
    tenants: frozenset[str]
    domains: frozenset[str]
    created_at: dt.datetime
    created_by: str
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    revoked_by: str

    def state(self, now: dt.datetime) -> str:
        """Whether it is "good", "revoked" or "expired"."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "good"


class ApiKeys:
    """The keys in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        roles: Collection[Role],
        tenants: Collection[str],
        domains: Collection[str],
        *,
        by: str,
        expires_at: dt.datetime | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key, and the text that its holder sends: nobody can ever read it again."""
        key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
        with self._database.writing() as connection:
            values = {
                "key_id": key_id,
                "name": name,
                "hash": _hash(secret),
                "roles": _json(roles),
                "tenants": _json(tenants),
                "domains": _json(domains),
                "created_at": self._database.now(connection),
                "created_by": by,
                "expires_at": expires_at,
                "revoked_at": None,
                "revoked_by": "",
            }
            connection.execute(sa.insert(API_KEY).values(**values))
            row = connection.execute(sa.select(API_KEY).where(API_KEY.c.key_id == key_id)).mappings().one()
        return _key(row), f"{PREFIX}{key_id}_{secret}"

    def all(self) -> list[ApiKey]:
        """Every key, oldest first, revoked ones too."""
        query = sa.select(API_KEY).order_by(API_KEY.c.created_at, API_KEY.c.key_id)
        with self._database.reading() as connection:
            return [_key(row) for row in connection.execute(query).mappings()]

    def revoke(self, key_id: str, *, by: str) -> ApiKey | None:
        """The key, revoked; one that is revoked already stays as it is. None if there is no such key."""
        with self._database.writing() as connection:
            mine = (API_KEY.c.key_id == key_id) & API_KEY.c.revoked_at.is_(None)
            values = {"revoked_at": self._database.now(connection), "revoked_by": by}
            connection.execute(sa.update(API_KEY).where(mine).values(**values))
        found = self.find(key_id)
        return None if found is None else found[0]

    def find(self, key_id: str) -> tuple[ApiKey, bytes] | None:
        """A key and its hash, as they are now."""
        with self._database.reading() as connection:
            query = sa.select(API_KEY).where(API_KEY.c.key_id == key_id)
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else (_key(row), row["hash"])


@dataclass(frozen=True, slots=True)
class _Remembered:
    found: tuple[ApiKey, bytes] | None
    at: float


class KeyRing:
    """Tells who sent a key; may be asked from any thread."""

    def __init__(self, keys: ApiKeys, remember_seconds: float) -> None:
        self._keys = keys
        self._seconds = remember_seconds
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        self._lock = threading.Lock()

    def caller(self, text: str) -> Caller:
        """Who sends this key; raises BadCredentials, or StoreUnavailable if that cannot be known now."""
        key_id, _, secret = text.removeprefix(PREFIX).partition("_")
        found = self._find(key_id) if len(key_id) == 2 * _ID_BYTES else None
        # One answer for an unknown id and a wrong secret, after the same work.
        expected = found[1] if found else bytes(32)
        if not hmac.compare_digest(_hash(secret), expected) or found is None:
            raise BadCredentials("the API key is not known here; check that it is whole", why="unknown")
        key = found[0]
        if (state := key.state(dt.datetime.now(dt.UTC))) != "good":
            raise BadCredentials(f"the API key {key.key_id} is {state}; ask an operator for another", why=state)
        return Caller(name=f"key:{key.name}/{key.key_id}", roles=key.roles, tenants=key.tenants, domains=key.domains)

    def _find(self, key_id: str) -> tuple[ApiKey, bytes] | None:
        now = time.monotonic()
        with self._lock:
            known = self._remembered.get(key_id)
        if known is not None and now - known.at < self._seconds:
            return known.found
        try:
            found = self._keys.find(key_id)
        except StoreUnavailable:
            if known is None or now - known.at > _AWAY_SECONDS:
                raise
            return known.found
        with self._lock:
            self._remembered[key_id] = _Remembered(found, now)
            self._remembered.move_to_end(key_id)
            while len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        return found


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _json(values: Collection[str]) -> str:
    return json.dumps(sorted(values))


def _key(row: sa.RowMapping) -> ApiKey:
    same = ("key_id", "name", "created_at", "created_by", "expires_at", "revoked_at", "revoked_by")
    return ApiKey(
        **{name: row[name] for name in same},
        roles=frozenset(Role(name) for name in json.loads(row["roles"])),
        tenants=frozenset(json.loads(row["tenants"])),
        domains=frozenset(json.loads(row["domains"])),
    )
