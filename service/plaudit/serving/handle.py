"""Feedback handles and pseudonyms.

What enters: the claims of an interaction and secret keys. What leaves: a token with which its holder can give
feedback, and claims read back from one. Never stores anything: a handle proves itself.

Token: base64url without padding of `payload || HMAC-SHA256(key, payload)`. Payload: format byte (2; 3 if the
interaction is not stored), key id, expiry (8 bytes, whole seconds since 1970, big endian), mark of the answer (16
bytes), tenant, domain, rater (a pseudonym, may be empty), interaction id, number of candidates (2 bytes) and their ids.
A text is one length byte and its UTF-8; an id is 16 bytes if it is a UUID (length byte 0xFF), a text otherwise. A
handle of four candidates has about 250 characters.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import functools
import hashlib
import hmac
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plaudit.errors import HandleExpired, HandleForged, InternalError
from plaudit.types import Candidate

_FORMAT = 2
_FORMAT_NOT_STORED = 3
ANSWER_BYTES = 16
_MAC_BYTES = 32
_UUID_MARK = 0xFF
_LONGEST_TEXT = 0xFE
# 50 options of an id of 254 bytes: nothing longer was ever signed, so nothing longer is decoded.
_LONGEST_TOKEN = 32_768
_EXPIRY_AND_ANSWER = struct.Struct(f">Q{ANSWER_BYTES}s")
_COUNT = struct.Struct(">H")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandleClaims:
    """What a handle says; `expires_at` in whole seconds. `rater` is a pseudonym, empty if anybody may rate.

    `answer`: mark (32 hex digits) of the answer that came with it, so that feedback never lands on another text.
    `stored`: whether the interaction's texts are kept; otherwise no feedback is taken.
    """

    tenant: str
    domain: str
    interaction_id: str
    candidate_ids: tuple[str, ...]
    answer: str
    rater: str
    expires_at: dt.datetime
    stored: bool = True


class HandleSigner:
    """Signs and verifies handles; keys by id, so that an old key still verifies after a rotation."""

    def __init__(self, keys: Mapping[str, bytes], current: str, ttl_seconds: float) -> None:
        if current not in keys:
            raise KeyError(f"handle key {current!r} is not among {sorted(keys)}")
        self._keys = dict(keys)
        self._current = current
        self._ttl = dt.timedelta(seconds=ttl_seconds)

    def expiry(self, now: dt.datetime) -> dt.datetime:
        """When a handle signed at `now` expires."""
        return (now + self._ttl).replace(microsecond=0)

    def sign(self, claims: HandleClaims) -> str:
        """The token of these claims under the current key."""
        payload = _encode(self._current, claims)
        token = payload + _mac(self._keys[self._current], payload)
        return base64.urlsafe_b64encode(token).rstrip(b"=").decode("ascii")

    def verify(self, token: str, now: dt.datetime) -> HandleClaims:
        """The claims of a token; raises HandleForged or HandleExpired."""
        raw = _from_base64url(token)
        payload, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        kind = payload[0]
        if kind not in (_FORMAT, _FORMAT_NOT_STORED):
            raise HandleForged()
        key_id, at = _key_id(payload)
        key = self._keys.get(key_id)
        # The MAC is computed for an unknown key too, so that the time of the answer does not tell which ids exist.
        expected = _mac(key if key is not None else b"\0", payload)
        if not hmac.compare_digest(expected, mac) or key is None:
            raise HandleForged()
        claims = _decode(payload, at, stored=kind == _FORMAT)
        if now >= claims.expires_at:
            raise HandleExpired(
                f"the handle expired at {claims.expires_at.isoformat()}; feedback on this interaction is closed",
                expired_at=claims.expires_at.isoformat(),
            )
        return claims


def answer_mark(candidates: Sequence[Candidate]) -> str:
    """Mark of an answer, 32 hex digits: equal if the same texts were shown in the same order under the same ids."""
    digest = hashlib.sha256()
    for candidate in candidates:
        for part in (candidate.candidate_id, candidate.displayed_text):
            digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()[: 2 * ANSWER_BYTES]


def pseudonym(key: bytes, tenant: str, person: str) -> str:
    """A person's pseudonym within a tenant, 32 hex digits; empty for nobody."""
    if not person:
        return ""
    return _mac(key, f"{tenant}\0{person}".encode()).hex()[:32]


def _mac(key: bytes, payload: bytes) -> bytes:
    """HMAC-SHA256. Unlike hmac.digest it keeps the interpreter's lock, and waits for it among no threads."""
    mac = _keyed(key).copy()
    mac.update(payload)
    return mac.digest()


@functools.lru_cache(maxsize=16)
def _keyed(key: bytes) -> hmac.HMAC:
    """The state behind a key, to which a message is added."""
    return hmac.new(key, digestmod="sha256")


def _from_base64url(token: str) -> bytes:
    if not token or len(token) > _LONGEST_TOKEN:
        raise HandleForged()
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise HandleForged() from error
    # Unused low bits of the last character must be zero, or several tokens would carry the same claims.
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != token.encode("ascii") or len(raw) <= _MAC_BYTES:
        raise HandleForged()
    return raw


def _encode(key_id: str, claims: HandleClaims) -> bytes:
    kind = _FORMAT if claims.stored else _FORMAT_NOT_STORED
    parts = [bytes([kind]), _text(key_id), struct.pack(">Q", int(claims.expires_at.timestamp()))]
    parts.append(_answer(claims.answer))
    parts += [_text(claims.tenant), _text(claims.domain), _text(claims.rater), _identifier(claims.interaction_id)]
    parts.append(_COUNT.pack(len(claims.candidate_ids)))
    parts += [_identifier(candidate) for candidate in claims.candidate_ids]
    return b"".join(parts)


def _key_id(payload: bytes) -> tuple[str, int]:
    """Id of the key, and where what follows it begins. Read before anything is proven."""
    try:
        key_id, at = _text_at(payload, 1)
    except (IndexError, UnicodeDecodeError) as error:
        raise HandleForged() from error
    if at > len(payload):
        raise HandleForged()
    return key_id, at


def _decode(payload: bytes, at: int, *, stored: bool) -> HandleClaims:
    """The claims behind the key's id; a payload that ends early is forged."""
    try:
        expires, answer = _EXPIRY_AND_ANSWER.unpack_from(payload, at)
        tenant, at = _text_at(payload, at + _EXPIRY_AND_ANSWER.size)
        domain, at = _text_at(payload, at)
        rater, at = _text_at(payload, at)
        interaction_id, at = _identifier_at(payload, at)
        (count,) = _COUNT.unpack_from(payload, at)
        at += _COUNT.size
        candidates = []
        for _ in range(count):
            candidate, at = _identifier_at(payload, at)
            candidates.append(candidate)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise HandleForged() from error
    if at > len(payload):
        raise HandleForged()
    return HandleClaims(
        tenant=tenant,
        domain=domain,
        interaction_id=interaction_id,
        candidate_ids=tuple(candidates),
        answer=answer.hex(),
        rater=rater,
        expires_at=dt.datetime.fromtimestamp(expires, tz=dt.UTC),
        stored=stored,
    )


def _text_at(payload: bytes, at: int) -> tuple[str, int]:
    """A text, cut short if the payload ends within it, and the offset of its end."""
    end = at + 1 + payload[at]
    return payload[at + 1 : end].decode(), end


def _identifier_at(payload: bytes, at: int) -> tuple[str, int]:
    """As `_text_at`, for an id."""
    if payload[at] != _UUID_MARK:
        return _text_at(payload, at)
    end = at + 17
    digits = payload[at + 1 : end].hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}", end


def _answer(mark: str) -> bytes:
    raw = bytes.fromhex(mark)
    if len(raw) != ANSWER_BYTES:
        raise InternalError(f"the mark of an answer has {len(raw)} bytes; it must have {ANSWER_BYTES}")
    return raw


def _text(value: str) -> bytes:
    raw = value.encode()
    if len(raw) > _LONGEST_TEXT:
        raise InternalError(f"a handle's text has {len(raw)} bytes; {_LONGEST_TEXT} is the most")
    return bytes([len(raw)]) + raw


def _identifier(value: str) -> bytes:
    try:
        parsed = uuid.UUID(value)
    except ValueError:
        return _text(value)
    return bytes([_UUID_MARK]) + parsed.bytes if str(parsed) == value else _text(value)
