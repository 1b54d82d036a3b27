"""Translates between the nouns of `plaudit.types` and the bytes of the log (protos/plaudit/v1/events.proto).

Enters: an Interaction, a Feedback, a Retraction, a ReleaseChange or a Rejected. Leaves: the deterministic bytes of one
Envelope, and back. `decode` raises nothing but Undecodable, whatever the bytes: it stands between the log, which
outlives every program that wrote to it, and the join. The bodies of the messages are translated in `bodies`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
from typing import TypeAlias

from google.protobuf.message import DecodeError

from plaudit import ids
from plaudit.errors import Undecodable
from plaudit.eventlog import bodies
from plaudit.eventlog.bodies import (
    Rejected,
    ReleaseChange,
    Retraction,
    SealedRecord,
    act_from_proto,
    act_to_proto,
)
from plaudit.eventlog.protocol import Headers
from plaudit.types import Feedback, Interaction, Purpose
from plaudit.v1 import events_pb2, feedback_pb2

__all__ = [
    "SCHEMA",
    "Decoded",
    "Rejected",
    "ReleaseChange",
    "Retraction",
    "SealedRecord",
    "act_from_proto",
    "act_to_proto",
    "body_digest",
    "decode",
    "encode_feedback",
    "encode_interaction",
    "encode_rejected",
    "encode_release_changed",
    "encode_retraction",
    "headers_from_bytes",
    "headers_to_bytes",
    "record_mark",
    "request_digest",
    "without_bytes",
]

SCHEMA = 1
_MOST_MARK_CHARS = 80
_KEY_BYTES = 512  # of a key that goes without its record's bytes
_NEVER = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

Decoded: TypeAlias = Interaction | Feedback | Retraction | ReleaseChange | Rejected | SealedRecord


def encode_interaction(
    interaction: Interaction, *, producer: str, traceparent: str = "", event_id: str | None = None
) -> bytes:
    """Bytes of the record for `plaudit.interactions`; without `event_id` the record gets a new one."""
    envelope = _envelope(interaction.completed_at, producer, traceparent, event_id)
    envelope.interaction.CopyFrom(bodies.interaction_to_proto(interaction))
    return envelope.SerializeToString(deterministic=True)


def encode_feedback(feedback: Feedback, *, producer: str, traceparent: str = "", event_id: str | None = None) -> bytes:
    """Bytes of the record for `plaudit.feedback`, with the digest of its body."""
    envelope = _envelope(feedback.accepted_at, producer, traceparent, event_id)
    message = envelope.feedback
    bodies.feedback_into(message, feedback, envelope.occurred_at)
    message.body_digest = _digest_of_body(message.feedback)
    message.feedback.feedback_id = feedback.feedback_id
    return envelope.SerializeToString(deterministic=True)


def encode_retraction(
    retraction: Retraction, *, producer: str, traceparent: str = "", event_id: str | None = None
) -> bytes:
    """Bytes of the record of a withdrawal, for `plaudit.feedback`."""
    envelope = _envelope(retraction.accepted_at, producer, traceparent, event_id)
    envelope.retraction.CopyFrom(bodies.retraction_to_proto(retraction))
    return envelope.SerializeToString(deterministic=True)


def encode_release_changed(
    change: ReleaseChange, *, producer: str, traceparent: str = "", event_id: str | None = None
) -> bytes:
    """Bytes of the record for `plaudit.releases`."""
    envelope = _envelope(change.changed_at, producer, traceparent, event_id)
    envelope.release.CopyFrom(bodies.release_change_to_proto(change))
    return envelope.SerializeToString(deterministic=True)


def encode_rejected(rejected: Rejected, *, producer: str, traceparent: str = "", event_id: str | None = None) -> bytes:
    """Bytes of the record for `plaudit.rejected`."""
    envelope = _envelope(rejected.rejected_at, producer, traceparent, event_id)
    envelope.rejected.CopyFrom(bodies.rejected_to_proto(rejected))
    return envelope.SerializeToString(deterministic=True)


def without_bytes(rejected: Rejected, where: str) -> Rejected:
    """The same for a log that takes no records of its size; `where` says where the bytes are instead."""
    said = f"{rejected.message} (its {len(rejected.value)} bytes are too many for plaudit.rejected: {where})"
    return dataclasses.replace(rejected, message=said, key=rejected.key[:_KEY_BYTES], value=b"", headers=())


def headers_to_bytes(headers: Headers) -> bytes | None:
    """Headers as the store keeps them; None if there are none."""
    if not headers:
        return None
    message = events_pb2.RecordRejected(headers=bodies.headers_to_proto(headers))
    return message.SerializeToString(deterministic=True)


def headers_from_bytes(value: bytes | None) -> Headers:
    """The headers that these bytes are."""
    return bodies.headers_of(events_pb2.RecordRejected.FromString(value or b""))


def decode(value: bytes) -> Decoded:
    """What a record says; raises Undecodable if it is not a complete Envelope of this schema."""
    envelope = events_pb2.Envelope()
    try:
        envelope.ParseFromString(value)
    except DecodeError as error:
        raise Undecodable(f"the record's {len(value)} bytes are not an Envelope ({error})") from error
    if envelope.schema != SCHEMA:
        raise Undecodable(f"the record has schema {envelope.schema}; this release reads {SCHEMA}")
    match envelope.WhichOneof("payload"):
        case "interaction":
            return bodies.interaction_from_proto(envelope.interaction)
        case "feedback":
            return bodies.feedback_from_proto(envelope.feedback)
        case "retraction":
            return bodies.retraction_from_proto(envelope.retraction)
        case "release":
            return bodies.release_change_from_proto(envelope.release, bodies.moment(envelope, "occurred_at"))
        case "rejected":
            return bodies.rejected_from_proto(envelope.rejected, bodies.moment(envelope, "occurred_at"))
        case "sealed":
            return bodies.sealed_from_proto(envelope.sealed)
        case _:
            raise Undecodable(f"the record {envelope.event_id!r} has no payload that this release knows")


def record_mark(value: bytes) -> str:
    """Names a record among all others: its event id, or the SHA-256 of its bytes if it has none that can be read."""
    envelope = events_pb2.Envelope()
    try:
        envelope.ParseFromString(value)
    except DecodeError:
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    event_id = envelope.event_id
    if not event_id or len(event_id) > _MOST_MARK_CHARS or not event_id.isprintable():
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    return event_id


def body_digest(feedback: Feedback) -> bytes:
    """SHA-256 of what a person said: kind, act, reasons, rater and session, whenever it was accepted.

    Two records under one feedback id with equal digests are one act sent twice; otherwise they conflict.
    """
    body = feedback_pb2.Feedback()
    bodies.body_into(body, feedback)
    return _digest_of_body(body)


def _digest_of_body(body: feedback_pb2.Feedback) -> bytes:
    """Its digest; the id is no part of it, and not yet in the message."""
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def request_digest(interaction: Interaction) -> bytes:
    """SHA-256 of what a caller asked, whatever was answered and when: equal if a request was sent again under its id.

    A second attempt may meet another release and give another text, so nothing of the answer is part of it but the
    number of candidates and the set of options that were to be ranked. The messages of an EVALUATE interaction are not
    kept, and not part of it.
    """
    evaluated = interaction.purpose is Purpose.EVALUATE
    asked = bodies.interaction_to_proto(
        dataclasses.replace(
            interaction,
            candidates=(),
            prompt_tokens=(),
            order_logprob=0.0,
            answers=(),
            completed_at=_NEVER,
            plugin_version="",
            policy_version="",
            decision="",
            base_digest="",
            base_dtype="",
            prompt_group="",
            messages=() if evaluated else interaction.messages,
            passages=() if evaluated else interaction.passages,
        )
    )
    asked.schema = 0  # of the record, not of the request
    digest = hashlib.sha256(asked.SerializeToString(deterministic=True))
    digest.update(len(interaction.candidates).to_bytes(4, "big"))
    for option_id in sorted(candidate.option_id for candidate in interaction.candidates if candidate.option_id):
        digest.update(hashlib.sha256(option_id.encode()).digest())
    return digest.digest()


def _envelope(occurred_at: dt.datetime, producer: str, traceparent: str, event_id: str | None) -> events_pb2.Envelope:
    return events_pb2.Envelope(
        event_id=event_id if event_id is not None else ids.new_id(),
        occurred_at=bodies.timestamp(occurred_at),
        producer=producer,
        schema=SCHEMA,
        traceparent=traceparent,
    )
