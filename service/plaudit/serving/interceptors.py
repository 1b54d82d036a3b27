"""What surrounds every call of a Plaudit service.

What enters: a call's bytes and metadata. What leaves: its reply, or the status of its error. In one place: the limit on
open calls, who calls, trace ids, size and UTF-8 of the message, a deadline that is over already, errors to statuses,
metrics. Calls of other services pass untouched, but for reflection: it needs credentials too, if calls do, and has a
limit on open streams, each of which holds a thread. Health is for everybody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from plaudit import ids
from plaudit.access.admission import Admission
from plaudit.access.limits import Limits
from plaudit.access.rights import calling
from plaudit.errors import (
    CallEnded,
    Cancelled,
    DeadlinePassed,
    InternalError,
    InvalidText,
    MessageTooLarge,
    PlauditError,
    QueueFull,
)
from plaudit.metrics import Metrics
from plaudit.settings import LimitSettings
from plaudit.telemetry import RequestIds, child_traceparent, get_logger, request_ids
from plaudit.wire import REQUEST_ID_KEY, to_status

OURS = "/plaudit.v1."
_REFLECTION = "/grpc.reflection."
_MAX_REQUEST_ID_CHARS = 128
# A deadline travels as a duration, rounded up, and begins anew on arrival: the caller's own ends a little before ours.
_DEADLINE_SLACK_SECONDS = 0.1

log = get_logger("plaudit.serving")


class Unreadable:
    """Stands for a message that could not be read, until the call's behaviour can answer with its error."""

    def __init__(self, error: PlauditError) -> None:
        self.error = error


class OpenCalls:
    """Counts open calls up to a limit. Refuses at once: whoever waited would hold a thread that health needs."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._places = threading.BoundedSemaphore(limit)

    def enter(self) -> None:
        """Takes a place until `leave`; raises QueueFull."""
        if not self._places.acquire(blocking=False):
            raise QueueFull(
                f"this replica has {self._limit} open calls, its limit (serve.workers); retry with backoff, elsewhere "
                "if you can",
                waiting=self._limit,
                limit=self._limit,
            )

    def leave(self) -> None:
        """Gives the place back."""
        self._places.release()


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Wraps every method of `plaudit.v1`. `open_calls` is the limit of those, `reflections` that of reflection."""

    def __init__(
        self,
        metrics: Metrics,
        max_message_bytes: int,
        *,
        open_calls: int = 96,
        reflections: int = 4,
        admission: Admission | None = None,
    ) -> None:
        """Without `admission` anybody may call everything."""
        self._admission = admission or Admission(Limits(LimitSettings()))
        self._metrics = metrics
        self._max_message_bytes = max_message_bytes
        self._open = OpenCalls(open_calls)
        self._reflections = OpenCalls(reflections)
        self._methods: dict[str, _Method] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The method's handler, wrapped if it is one of ours."""
        handler = continuation(details)
        metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        if handler is not None and details.method.startswith(_REFLECTION) and handler.stream_stream:
            return _limited(handler, self._reflections, lambda: self._admission.identify(metadata))
        if handler is None or not details.method.startswith(OURS):
            return handler
        method = self._methods.get(details.method)
        if method is None:  # there is a handler, so that callers cannot make these grow
            method = self._methods[details.method] = _Method(self._metrics, details.method)
        around = _Around(method, self._open, self._admission, metadata)
        return wrapped(handler, around, self._max_message_bytes)


def _limited(handler: Any, places: OpenCalls, check: Callable[[], object]) -> Any:
    """A handler of a stream that takes one of `places` while it is open, if `check` raises nothing."""

    def answer(requests: Any, context: Any) -> Iterator[Any]:
        try:
            check()
            places.enter()
        except PlauditError as error:
            status = to_status(error)
            context.set_trailing_metadata(status.trailing_metadata)
            context.abort(status.code, status.details)
        try:
            yield from handler.stream_stream(requests, context)
        finally:
            places.leave()

    return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


def wrapped(handler: Any, around: _Around, max_message_bytes: int) -> Any:
    """A handler of the same shape that reads messages with care and answers inside `around`."""
    reads = _careful(handler.request_deserializer, max_message_bytes)
    writes = handler.response_serializer
    shape = (handler.request_streaming, handler.response_streaming)
    if shape == (False, False):
        return grpc.unary_unary_rpc_method_handler(around.unary(handler.unary_unary), reads, writes)
    if shape == (False, True):
        return grpc.unary_stream_rpc_method_handler(around.stream(handler.unary_stream), reads, writes)
    if shape == (True, True):
        return grpc.stream_stream_rpc_method_handler(around.stream(handler.stream_stream), reads, writes)
    return grpc.stream_unary_rpc_method_handler(around.unary(handler.stream_unary), reads, writes)


def _careful(read: Callable[[bytes], Any], limit: int) -> Callable[[bytes], Any]:
    """A deserialiser that never raises: the library would answer INTERNAL without details, and log a trace."""

    def careful(data: bytes) -> Any:
        if len(data) > limit:
            message = f"the message has {len(data)} bytes; this service takes {limit}: send less text"
            return Unreadable(MessageTooLarge(message, limit=limit))
        try:
            return read(data)
        except DecodeError:
            return Unreadable(InvalidText("the message is not valid protobuf, or a text in it is not UTF-8", field=""))

    return careful


class _Method:
    """What all calls of one method share: its names, and its metrics, which are looked up once."""

    def __init__(self, metrics: Metrics, path: str) -> None:
        self.right = path.removeprefix(OURS)
        self._service, self.name = self.right.split("/", 1)
        self.in_flight = metrics.requests_in_flight
        self.seconds = metrics.request_seconds.labels(self._service, self.name)
        self._requests = metrics.requests
        self._ended: dict[str, Any] = {}

    def ended(self, code: str) -> Any:
        """The counter of calls that ended with this code."""
        counter = self._ended.get(code)
        if counter is None:
            counter = self._ended[code] = self._requests.labels(self._service, self.name, code)
        return counter


class _Around:
    """One call: its ids, its clock and what becomes of its errors."""

    def __init__(self, method: _Method, open_calls: OpenCalls, admission: Admission, metadata: dict[str, str]) -> None:
        self._method = method
        self._open = open_calls
        self._admission = admission
        self._metadata = metadata
        self._ids = RequestIds(
            metadata.get(REQUEST_ID_KEY, "")[:_MAX_REQUEST_ID_CHARS] or ids.new_id(),
            child_traceparent(metadata.get("traceparent", "")),
        )

    def unary(self, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """`behaviour` with one reply."""

        def answer(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            failure: PlauditError | None = None
            reply = None
            self._begin(context)
            with request_ids(self._ids):
                try:
                    with self._place():
                        reply = behaviour(_readable(request, context), context)
                except Exception as error:
                    failure = self._failure(error, context)
            self._end(started, failure)
            if failure is not None:
                self._abort(context, failure)
            return reply

        return answer

    def stream(self, behaviour: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
        """`behaviour` with a stream of replies."""

        def answer(request: Any, context: Any) -> Iterator[Any]:
            started = time.perf_counter()
            failure: PlauditError | None = Cancelled()  # what a stream is that its reader closes early
            self._begin(context)
            try:
                with request_ids(self._ids):
                    try:
                        with self._place():
                            yield from behaviour(_readable(request, context), context)
                        failure = None
                    except Exception as error:
                        failure = self._failure(error, context)
            finally:
                self._end(started, failure)
            if failure is not None:
                self._abort(context, failure)

        return answer

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place among the open calls, for a caller who may make this call."""
        self._open.enter()
        try:
            with calling(self._admission.admit(self._metadata, self._method.right)):
                yield
        finally:
            self._open.leave()

    def _begin(self, context: Any) -> None:
        self._method.in_flight.inc()
        context.set_trailing_metadata(((REQUEST_ID_KEY, self._ids.request_id),))

    def _abort(self, context: Any, failure: PlauditError) -> None:
        status = to_status(failure)
        context.set_trailing_metadata((*status.trailing_metadata, (REQUEST_ID_KEY, self._ids.request_id)))
        context.abort(status.code, status.details)

    def _end(self, started: float, failure: PlauditError | None) -> None:
        self._method.ended(failure.code if failure else "OK").inc()
        self._method.seconds.observe(time.perf_counter() - started)
        # Last: once nothing is in flight, everything is counted.
        self._method.in_flight.dec()

    def _failure(self, error: Exception, context: Any) -> PlauditError:
        """The error that the caller gets; what an operator must see is logged here."""
        if isinstance(error, Cancelled) and _time_is_up(context, _DEADLINE_SLACK_SECONDS):
            return DeadlinePassed()
        if isinstance(error, PlauditError):
            if error.code in ("INTERNAL", "UNAVAILABLE"):
                log.error("call failed", method=self._method.name, reason=error.reason, **_ours(error))
            elif not isinstance(error, CallEnded):
                # One line per refused call; the message may quote what was sent, so the request id leads to it.
                log.info("call refused", method=self._method.name, reason=error.reason, code=error.code)
            return error
        if not context.is_active():
            # The library's own signal that the caller went away while messages were read or written.
            return DeadlinePassed() if _time_is_up(context, _DEADLINE_SLACK_SECONDS) else Cancelled()
        log.exception("call broke", method=self._method.name, error=type(error).__name__)
        return InternalError(
            f"a bug in the service; its logs have the details under request id {self._ids.request_id}",
            request_id=self._ids.request_id,
        )


def _ours(error: PlauditError) -> dict[str, str]:
    """What an operator needs of an error's facts; the message may quote what a person sent."""
    return {
        key: error.metadata[key] for key in ("domain", "member", "why", "setting", "topic") if key in error.metadata
    }


def _readable(request: Any, context: Any) -> Any:
    """The message, once it is worth working on; raises DeadlinePassed or what was refused.

    A stream of messages passes as it is: its reader answers an Unreadable item by item.
    """
    if _time_is_up(context):
        raise DeadlinePassed()
    if isinstance(request, Unreadable):
        raise request.error
    return request


def _time_is_up(context: Any, slack: float = 0.0) -> bool:
    remaining = context.time_remaining()
    return remaining is not None and remaining <= slack
