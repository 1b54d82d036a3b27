"""Records that only the key of one person opens, before any event log: with the key their content is destroyed.

Enters: encoded records. Leaves: to the log the same records sealed with the key of whom they are of (AES-256-GCM; NIST
SP 800-38D), to readers the records as they were. Event id, time, key of the topic and channel stay in the clear. A
record whose key was destroyed comes back sealed, and says nothing any more (`codec.SealedRecord`).

An interaction is its end user's, else its one rater's; an act or a retraction its rater's; a rejected record is of whom
the record in it is. What names nobody is not sealed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import DecodeError

from plaudit.eventlog.bodies import SEALED_SCHEMA
from plaudit.eventlog.protocol import Consumer, EventLog, Positions, Record, Topic
from plaudit.v1 import events_pb2

NONCE_BYTES = 12


class Keys(Protocol):
    """Keys of people (`plaudit.privacy.keys`). Raises StoreUnavailable."""

    def to_seal(self, tenant: str, person: str) -> tuple[str, bytes]:
        """Id and key (32 bytes) for what a person says now."""

    def to_open(self, key_ids: Sequence[str]) -> Mapping[str, bytes]:
        """The keys of these ids that there still are."""

    def close(self) -> None:
        """Closes what it opened."""


class SealingLog:
    """An event log whose records are sealed. Its methods may be called from any thread."""

    def __init__(self, log: EventLog, keys: Keys) -> None:
        self._log = log
        self._keys = keys

    def append(self, topic: Topic, key: str, value: bytes) -> tuple[int, int]:
        """As the log's. Raises StoreUnavailable too."""
        return self._log.append(topic, key, seal(value, self._keys))

    def append_many(self, topic: Topic, items: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
        """As the log's. Raises StoreUnavailable too."""
        return self._log.append_many(topic, [(key, seal(value, self._keys)) for key, value in items])

    def find(self, topic: Topic, key: str, most: int) -> list[bytes] | None:
        """As the log's."""
        found = self._log.find(topic, key, most)
        return None if found is None else opened(found, self._keys)

    def consumer(self, topics: Sequence[Topic], group: str, positions: Callable[[], Positions]) -> Consumer:
        """As the log's."""
        return _OpeningConsumer(self._log.consumer(topics, group, positions), self._keys)

    def close(self) -> None:
        """Closes the log and the keys."""
        self._log.close()
        self._keys.close()


class _OpeningConsumer:
    """A consumer that opens what it reads."""

    def __init__(self, consumer: Consumer, keys: Keys) -> None:
        self._consumer = consumer
        self._keys = keys
        self._unopened: list[Record] = []

    def poll(self, timeout_seconds: float, max_records: int) -> list[Record]:
        """As the log's. Raises StoreUnavailable too; then the next poll begins with the same records."""
        if not self._unopened:
            self._unopened = self._consumer.poll(timeout_seconds, max_records)
        values = opened([record.value for record in self._unopened], self._keys)
        records, self._unopened = self._unopened, []
        return [dataclasses.replace(record, value=value) for record, value in zip(records, values, strict=True)]

    def assigned(self) -> frozenset[tuple[Topic, int]]:
        """As the log's."""
        return self._consumer.assigned()

    def topic_ids(self) -> Mapping[Topic, str]:
        """As the log's."""
        return self._consumer.topic_ids()

    def end_positions(self) -> dict[tuple[Topic, int], int]:
        """As the log's."""
        return self._consumer.end_positions()

    def first_positions(self) -> dict[tuple[Topic, int], int]:
        """As the log's."""
        return self._consumer.first_positions()

    def at_end(self) -> bool:
        """As the log's."""
        return self._consumer.at_end()

    def acknowledge(self, offsets: Mapping[tuple[Topic, int], int]) -> None:
        """As the log's."""
        self._consumer.acknowledge(offsets)

    def close(self) -> None:
        """As the log's."""
        self._consumer.close()


def seal(value: bytes, keys: Keys) -> bytes:
    """A record sealed with its person's key; as it is if it names nobody, or is none that this release knows."""
    envelope = _envelope(value)
    found = None if envelope is None else _person_of(envelope)
    if envelope is None or found is None:
        return value
    person, sealed = found
    sealed.key_id, key = keys.to_seal(sealed.tenant, person)
    sealed.schema = SEALED_SCHEMA
    sealed.nonce = os.urandom(NONCE_BYTES)
    sealed.ciphertext = AESGCM(key).encrypt(sealed.nonce, value, envelope.event_id.encode())
    outside = events_pb2.Envelope(
        event_id=envelope.event_id,
        occurred_at=envelope.occurred_at,
        producer=envelope.producer,
        schema=envelope.schema,
        sealed=sealed,
    )
    return outside.SerializeToString(deterministic=True)


def opened(values: Sequence[bytes], keys: Keys) -> list[bytes]:
    """Records as they were before they were sealed; those whose key is gone, or that are damaged, as they are."""
    envelopes = [_envelope(value) for value in values]
    sealed = [
        envelope if envelope is not None and envelope.WhichOneof("payload") == "sealed" else None
        for envelope in envelopes
    ]
    wanted = sorted({each.sealed.key_id for each in sealed if each is not None})
    found = keys.to_open(wanted) if wanted else {}
    return [
        value if each is None else _open(value, each, found.get(each.sealed.key_id))
        for value, each in zip(values, sealed, strict=True)
    ]


def _open(value: bytes, envelope: events_pb2.Envelope, key: bytes | None) -> bytes:
    if key is None:
        return value
    sealed = envelope.sealed
    try:
        return AESGCM(key).decrypt(sealed.nonce, sealed.ciphertext, envelope.event_id.encode())
    except (InvalidTag, ValueError):  # it was changed: whoever reads it is told so by finding it sealed
        return value


def _envelope(value: bytes) -> events_pb2.Envelope | None:
    envelope = events_pb2.Envelope()
    try:
        envelope.ParseFromString(value)
    except DecodeError:
        return None
    return envelope


def _person_of(envelope: events_pb2.Envelope) -> tuple[str, events_pb2.Sealed] | None:
    """Whose a record is, and what stays in the clear of it."""
    said: Any
    match envelope.WhichOneof("payload"):
        case "interaction":
            said, person = envelope.interaction, envelope.interaction.end_user or envelope.interaction.rater
        case "feedback":
            said, person = envelope.feedback, envelope.feedback.feedback.rater
        case "retraction":
            said, person = envelope.retraction, envelope.retraction.rater
        case "rejected":
            inner = _envelope(envelope.rejected.value)
            return None if inner is None else _person_of(inner)
        case _:
            return None
    if not (person and said.tenant):
        return None
    clear = events_pb2.Sealed(interaction_id=said.interaction_id, domain=said.domain, tenant=said.tenant)
    return person, clear
