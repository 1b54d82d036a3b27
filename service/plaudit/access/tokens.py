"""Bearer tokens of an identity provider (OpenID Connect, RFC 7519).

What enters: a signed token, and the provider's public keys from a file or from its URL. What leaves: a Caller, or
BadCredentials. A token must be signed by one of these keys under an allowed algorithm (never a shared secret, never
"none"), name the issuer and the audience of the settings, a subject and an expiry. What its holder may do stands in
three claims, each a list of texts: `plaudit_roles`, `plaudit_tenants` and `plaudit_domains`; the last may be absent,
which means every domain of these tenants.
"""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from plaudit.access.rights import ANY, Caller, Role
from plaudit.addresses import is_loopback
from plaudit.errors import BadCredentials, Misconfigured, NotServing
from plaudit.settings import TokenSettings

ROLES, TENANTS, DOMAINS = "plaudit_roles", "plaudit_tenants", "plaudit_domains"
_LEEWAY = dt.timedelta(seconds=30)  # clocks differ
_LONGEST_SUBJECT = 120
_REQUIRED = ("exp", "iss", "aud", "sub")
# Keys are read anew this often, and for a token whose key is not among them at most this often: whoever invents key
# ids does not make the provider work.
_REFRESH_SECONDS = 300.0
_UNKNOWN_KEY_SECONDS = 30.0
_FETCH_SECONDS = 5.0
_MOST_BYTES = 1 << 20

_log = structlog.get_logger(__name__)


class Tokens:
    """Tells who sent a token; may be asked from any thread."""

    def __init__(self, settings: TokenSettings) -> None:
        try:
            import jwt
        except ModuleNotFoundError as error:
            raise Misconfigured(
                "access.tokens needs PyJWT: pip install 'plaudit[tokens]', or leave access.tokens.jwks empty",
                setting="access.tokens.jwks",
            ) from error
        for name in ("issuer", "audience"):
            if not getattr(settings, name):
                raise Misconfigured(
                    f"access.tokens.jwks is set and access.tokens.{name} is empty: tokens made for others would count",
                    setting=f"access.tokens.{name}",
                )
        self._jwt = jwt
        self._settings = settings
        self._keys = _PublicKeys(_reader(settings.jwks), jwt.PyJWKSet.from_dict)

    def caller(self, text: str) -> Caller:
        """Who sends this token; raises BadCredentials, or NotServing if the provider's keys cannot be read."""
        try:
            key = self._keys.get(str(self._jwt.get_unverified_header(text).get("kid", "")))
            if key is None:
                raise BadCredentials("the token is signed by a key that its issuer does not publish", why="unknown key")
            claims = self._jwt.decode(
                text,
                key.key,
                algorithms=list(self._settings.algorithms),
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=_LEEWAY,
                options={"require": list(_REQUIRED)},
            )
        except self._jwt.ExpiredSignatureError:
            raise BadCredentials("the token has expired; get a new one from its issuer", why="expired") from None
        except self._jwt.InvalidTokenError as error:
            # The class says what is wrong; the message may quote the token.
            why = type(error).__name__.removesuffix("Error")
            raise BadCredentials(f"the token is not valid here ({why})", why=why) from None
        return _caller(claims)


class _PublicKeys:
    """The provider's keys by id, read anew now and then."""

    def __init__(self, read: Callable[[], bytes], parse: Callable[[Any], Any]) -> None:
        self._read, self._parse = read, parse
        self._keys: Mapping[str, Any] = {}
        self._read_at = float("-inf")
        self._lock = threading.Lock()
        self._refresh()
        if not self._keys:
            raise Misconfigured("access.tokens.jwks holds no key with an id (kid)", setting="access.tokens.jwks")

    def get(self, key_id: str) -> Any:
        """A key; None if the provider has none of this id."""
        with self._lock:
            age = time.monotonic() - self._read_at
            if age > (_REFRESH_SECONDS if key_id in self._keys else _UNKNOWN_KEY_SECONDS):
                try:
                    self._refresh()
                except (NotServing, Misconfigured) as error:
                    # What was known still is; the next look is after a while.
                    self._read_at = time.monotonic()
                    _log.error("access.keys_not_read", why=error.message)
            return self._keys.get(key_id)

    def _refresh(self) -> None:
        try:
            found = self._parse(json.loads(self._read()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _unreadable(error) from error
        except Exception as error:
            if type(error).__module__.startswith("jwt"):
                raise _unreadable(error) from error
            raise
        self._keys = {key.key_id: key for key in found.keys if key.key_id}
        self._read_at = time.monotonic()


def _unreadable(error: Exception) -> Misconfigured:
    return Misconfigured(
        f"access.tokens.jwks is not a JSON Web Key Set ({type(error).__name__}); give the provider's jwks_uri or "
        "a file of it",
        setting="access.tokens.jwks",
    )


def _reader(source: str) -> Callable[[], bytes]:
    """Reads the key set from a file or from a URL."""
    url = urllib.parse.urlsplit(source)
    if url.scheme not in ("http", "https"):
        return lambda: _file(Path(source))
    if url.scheme == "http" and not is_loopback(url.netloc):
        raise Misconfigured(
            f"access.tokens.jwks is {source}: whoever sits between could put keys of their own there; use https",
            setting="access.tokens.jwks",
        )
    return lambda: _fetched(source)


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Misconfigured(
            f"access.tokens.jwks: {path} cannot be read ({error.strerror})", setting="access.tokens.jwks"
        ) from error


def _fetched(url: str) -> bytes:
    try:
        # The scheme was checked when the settings were read.
        with urllib.request.urlopen(url, timeout=_FETCH_SECONDS) as answer:  # noqa: S310
            body: bytes = answer.read(_MOST_BYTES)
            return body
    except (urllib.error.URLError, OSError) as error:
        raise NotServing(f"the identity provider's keys at {url} cannot be fetched ({error}); retry") from error


def _caller(claims: Mapping[str, Any]) -> Caller:
    roles = frozenset(Role(name) for name in _names(claims, ROLES, ()) if name in set(Role))
    subject = str(claims["sub"])
    person = roles == {Role.RATER}
    return Caller(
        name=f"token:{subject}"[:_LONGEST_SUBJECT],
        roles=roles,
        tenants=frozenset(_names(claims, TENANTS, ())),
        domains=frozenset(_names(claims, DOMAINS, (ANY,))),
        # A token that is for rating alone is one person's own: nobody else's name may stand in its acts.
        person=subject if person else "",
    )


def _names(claims: Mapping[str, Any], claim: str, absent: tuple[str, ...]) -> tuple[str, ...]:
    value = claims.get(claim)
    if value is None:
        return absent
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadCredentials(f"the token's claim {claim} is not a list of texts", why=claim)
    return tuple(value)
