"""Errors as they cross the wire.

What enters: a PlauditError. What leaves: a gRPC status with google.rpc.ErrorInfo (domain "plaudit", reason, metadata);
for errors that another try may fix, google.rpc.RetryInfo; for a wrong field of a request, google.rpc.BadRequest; and
back again on the client's side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from plaudit.errors import (
    Cancelled,
    DeadlinePassed,
    InternalError,
    MessageTooLarge,
    NotOffered,
    NotServing,
    PlauditError,
)

ERROR_DOMAIN = "plaudit"
# Trailer of every answer of a Plaudit server, and header of a call that brings an id of its own.
REQUEST_ID_KEY = "x-request-id"
# Trailers count against the 8 KiB of headers that gRPC accepts by default, and carry the message twice: as
# grpc-message, where a byte that is not ASCII takes three, and in the details, in base64.
_MAX_VALUE_COST = 300
_MAX_MESSAGE_COST = 2_000
_MAX_DESCRIPTION_COST = 500


def to_status(error: PlauditError) -> Any:
    """The grpc.Status of an error, with its details."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _cut(value, _MAX_VALUE_COST)
    details = [_packed(info)]
    if error.retryable:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(1000 * error.retry_seconds))
        details.append(_packed(retry))
    if error.code == "INVALID_ARGUMENT" and error.wrong_field:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(
            field=_cut(error.wrong_field, _MAX_VALUE_COST), description=_cut(error.message, _MAX_DESCRIPTION_COST)
        )
        details.append(_packed(bad))
    code = getattr(grpc.StatusCode, error.code)
    message = _cut(error.message, _MAX_MESSAGE_COST)
    return rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=details))


def error_classes() -> dict[str, type[PlauditError]]:
    """The error class of each reason."""
    return {cls.reason: cls for cls in _leaves(PlauditError)}


def from_call(call: Any) -> PlauditError:
    """The error that a failed call carries; one by its status code if the library itself refused the call.

    `call`: the RpcError that the library raised, which is the call, synchronous or asyncio.
    """
    message = call.details() or ""
    try:
        status = rpc_status.from_call(call)
    except ValueError:
        # A proxy or the library replaced the status and left our details, which no longer belong to it.
        status = None
    found: PlauditError | None = None
    for detail in status.details if status else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            found = error_classes().get(info.reason, InternalError)(message, **dict(info.metadata))
        elif found is not None and detail.Unpack(retry):
            found.retry_seconds = retry.retry_delay.ToMilliseconds() / 1000
    if found is not None:
        return found
    code = call.code()
    by_code: dict[grpc.StatusCode, type[PlauditError]] = {
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlinePassed,
        grpc.StatusCode.CANCELLED: Cancelled,
        grpc.StatusCode.UNAVAILABLE: NotServing,
        grpc.StatusCode.RESOURCE_EXHAUSTED: MessageTooLarge,
        grpc.StatusCode.UNIMPLEMENTED: NotOffered,
    }
    kind = by_code.get(code, InternalError)
    # The library's words for its own deadline repeat the code; the class's say what to do.
    return kind() if kind is DeadlinePassed else kind(f"{code.name}: {message}")


def _cut(text: str, most: int) -> str:
    """The longest beginning whose percent-encoding takes at most `most` bytes."""
    cost = 0
    for index, character in enumerate(text):
        size = len(character.encode(errors="replace"))
        cost += size if character.isascii() else 3 * size
        if cost > most:
            return text[:index]
    return text


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _leaves(cls: type[PlauditError]) -> Iterator[type[PlauditError]]:
    children = cls.__subclasses__()
    if not children:
        yield cls
    for child in children:
        yield from _leaves(child)
