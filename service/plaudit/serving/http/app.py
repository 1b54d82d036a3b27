"""The routes of the HTTP door.

A request becomes a call of the gRPC service of the same replica, so that limits, deadlines, metrics, checks and errors
are those of gRPC, in one place. A caller who leaves ends the call.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from plaudit.errors import InternalError, InvalidField, InvalidText, MessageTooLarge, PlauditError
from plaudit.serving.http import shapes
from plaudit.serving.http.messages import parsed
from plaudit.telemetry import get_logger
from plaudit.v1 import (
    assistant_pb2,
    assistant_pb2_grpc,
    domains_pb2,
    domains_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    releases_pb2,
    releases_pb2_grpc,
)
from plaudit.wire import REQUEST_ID_KEY, from_call

HANDLE_HEADER = "x-plaudit-handle"
TENANT_HEADER, SESSION_HEADER = "x-plaudit-tenant", "x-plaudit-session"
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
# Headers that travel on as the call's metadata.
_PASSED_ON = (REQUEST_ID_KEY, "traceparent", "authorization")
_METHODS = {
    "/v1/models": "GET",
    "/v1/models/{name}": "GET",
    "/v1/chat/completions": "POST",
    "/v1/domains": "GET",
    "/v1/feedback": "POST",
    "/v1/feedback/retract": "POST",
    "/healthz": "GET",
}


Answer = Callable[[Request], Awaitable[Response]]

log = get_logger("plaudit.http")


class Routes:
    """The door over the gRPC service at `target`; `domains` are those that complete text."""

    def __init__(self, target: str, domains: Sequence[str], *, max_bytes: int, deadline_seconds: float) -> None:
        self._target, self._domains = target, tuple(domains)
        self._max_bytes, self._deadline = max_bytes, deadline_seconds
        self._channel: grpc.aio.Channel | None = None

    def app(self) -> Starlette:
        """The application."""
        answers: Mapping[str, Answer] = {
            "/v1/models": self.models,
            "/v1/models/{name}": self.model,
            "/v1/chat/completions": self.chat,
            "/v1/domains": self.domains,
            "/v1/feedback": self.feedback,
            "/v1/feedback/retract": self.retract,
            "/healthz": self.healthz,
        }
        app = Starlette(
            routes=[Route(path, _whole(path, answers[path]), methods=[method]) for path, method in _METHODS.items()],
            exception_handlers={PlauditError: _failed, grpc.aio.AioRpcError: _refused, HTTPException: _no_route},
        )
        app.router.redirect_slashes = False  # a redirect has no error's shape, and clients drop the body behind it
        return app

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = shapes.asked(
            await self._body(request), request.headers.get(TENANT_HEADER, ""), request.headers.get(SESSION_HEADER, "")
        )
        stub = assistant_pb2_grpc.AssistantServiceStub(self._open())
        if asked.stream:
            return await self._streamed(asked, stub, request)
        call = stub.Generate(asked.request, timeout=self._deadline, metadata=_metadata(request))
        reply = await _or_left(call, request)
        return JSONResponse(shapes.completion(reply, asked.request.domain), headers={HANDLE_HEADER: reply.handle})

    async def _streamed(self, asked: shapes.Asked, stub: Any, request: Request) -> Response:
        call = stub.StreamGenerate(
            assistant_pb2.StreamGenerateRequest(request=asked.request),
            timeout=self._deadline,
            metadata=_metadata(request),
        )
        # What is refused is refused before the stream begins, with its own status.
        messages = call.__aiter__()
        try:
            first = await anext(messages)
        except StopAsyncIteration:
            raise InternalError("the stream ended before it began; see the server's log") from None
        events = _events(call, first, messages, shapes.Chunks(asked.request.domain, usage=asked.usage_in_stream))
        headers = {HANDLE_HEADER: first.begun.handle, "cache-control": "no-cache"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def feedback(self, request: Request) -> Response:
        """POST /v1/feedback: the JSON of a plaudit.v1.Feedback."""
        act = parsed(await self._body(request), feedback_pb2.Feedback())
        stub = feedback_pb2_grpc.FeedbackServiceStub(self._open())
        sent = feedback_pb2.SubmitFeedbackRequest(feedback=act)
        return _json(await stub.SubmitFeedback(sent, timeout=self._deadline, metadata=_metadata(request)))

    async def retract(self, request: Request) -> Response:
        """POST /v1/feedback/retract: the JSON of a plaudit.v1.RetractFeedbackRequest."""
        sent = parsed(await self._body(request), feedback_pb2.RetractFeedbackRequest())
        stub = feedback_pb2_grpc.FeedbackServiceStub(self._open())
        return _json(await stub.RetractFeedback(sent, timeout=self._deadline, metadata=_metadata(request)))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse(await self._models(request))

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        for each in (await self._models(request))["data"]:
            if each["id"] == request.path_params["name"]:
                return JSONResponse(each)
        return _error(404, "not_found_error", "there is no such model; GET /v1/models lists them", "UNKNOWN_DOMAIN")

    async def domains(self, request: Request) -> Response:
        """GET /v1/domains: the JSON of a plaudit.v1.ListDomainsResponse with all domains."""
        stub = domains_pb2_grpc.DomainServiceStub(self._open())
        asked, found = domains_pb2.ListDomainsRequest(), domains_pb2.ListDomainsResponse()
        while True:
            page = await stub.ListDomains(asked, timeout=10.0, metadata=_metadata(request))
            found.domains.extend(page.domains)
            if not page.next_page_token:
                return _json(found, every_field=True)
            asked.page_token = page.next_page_token

    async def healthz(self, request: Request) -> Response:
        """GET /healthz: 200 while the service takes calls."""
        stub = health_pb2_grpc.HealthStub(self._open())
        status = (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5.0)).status
        serving = status == health_pb2.HealthCheckResponse.SERVING
        return JSONResponse({"serving": serving}, status_code=200 if serving else 503)

    async def close(self) -> None:
        """Closes the connection to the service."""
        if self._channel is not None:
            await self._channel.close(None)

    async def _models(self, request: Request) -> dict[str, Any]:
        stub = releases_pb2_grpc.ReleaseServiceStub(self._open())
        releases = {}
        for domain in self._domains:
            channel = shapes.channel_name(domain, request.headers.get(TENANT_HEADER, ""))
            try:
                found = await stub.ListReleases(
                    # Who names a release beyond the first thousand as a model need not find it in a list.
                    releases_pb2.ListReleasesRequest(channel=channel, page_size=1000),
                    timeout=10.0,
                    metadata=_metadata(request),
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                continue  # nobody has asked in this channel yet: its releases begin with its first request
            releases[domain] = [each.version for each in found.releases]
        return shapes.models(self._domains, releases)

    def _open(self) -> grpc.aio.Channel:
        # Made inside the running loop, at the first request.
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(
                self._target, options=[("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
            )
        return self._channel

    async def _body(self, request: Request) -> Any:
        """The JSON of a request; bytes are counted as they come, so that no body can fill the memory."""
        read = bytearray()
        async for piece in request.stream():
            read += piece
            if len(read) > self._max_bytes:
                raise MessageTooLarge(
                    f"the body is larger than {self._max_bytes} bytes, the service's limit (serve.max_message_bytes)"
                )
        return _json_of(bytes(read))


def _whole(path: str, answer: Answer) -> Answer:
    """The same route, of which whatever breaks is answered in OpenAI's shape and logged without its message."""

    async def whole(request: Request) -> Response:
        try:
            return await answer(request)
        except (PlauditError, grpc.aio.AioRpcError, HTTPException):
            raise
        except Exception as error:
            raise _broke(path, error) from error

    return whole


def _broke(path: str, error: Exception) -> InternalError:
    log.exception("request broke", path=path, error=type(error).__name__)
    return InternalError("a bug in the service; its logs have the details")


def _json_of(data: bytes) -> Any:
    """The value of a body; raises InvalidField, or InvalidText for half a character (a lone surrogate)."""
    try:
        # NaN is none of JSON's words, and an integer may have more digits than Python reads (a ValueError too).
        text = data.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_constant)
        if _HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidText(
            "a text in the body holds half a character (one of \\ud800 to \\udfff alone); send whole ones", field=""
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidField("the body is not JSON; send a JSON object in UTF-8", field="") from error
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


async def _or_left(call: Any, request: Request) -> Any:
    """The reply of a call, which is cancelled if the caller leaves first."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue
        call.cancel()

    watching = asyncio.ensure_future(left())
    try:
        return await call
    finally:
        watching.cancel()


async def _events(call: Any, first: Any, messages: AsyncIterator[Any], chunks: shapes.Chunks) -> AsyncIterator[bytes]:
    """Server-sent events; an error that comes after the first chunk is the last event."""
    try:
        for chunk in chunks.of(first):
            yield _event(chunk)
        async for message in messages:
            for chunk in chunks.of(message):
                yield _event(chunk)
        yield b"data: [DONE]\n\n"
    except grpc.aio.AioRpcError as error:
        yield _event(shapes.failure(from_call(error))[1])
    except Exception as error:
        yield _event(shapes.failure(_broke("/v1/chat/completions", error))[1])
    finally:
        # A caller who leaves ends this generator: the stream ends with it, and is recorded as far as it went out.
        call.cancel()


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _metadata(request: Request) -> list[tuple[str, str]]:
    """Headers that travel on; one that is not of printable ASCII is none to gRPC, and is left out."""
    found = [(name, request.headers[name]) for name in _PASSED_ON if name in request.headers]
    return [(name, value) for name, value in found if value.isascii() and value.isprintable()]


def _json(message: Any, *, every_field: bool = False) -> JSONResponse:
    return JSONResponse(
        json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=every_field
        )
    )


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, PlauditError), "registered for these alone"
    status, body = shapes.failure(error)
    headers = {"retry-after": str(math.ceil(error.retry_seconds))} if error.retryable else {}
    return JSONResponse(body, status_code=status, headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    return await _failed(request, from_call(error))


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for these alone"
    what = {
        404: f"there is nothing at this path; there are {', '.join(_METHODS)}",
        405: "this path takes another method; there are " + ", ".join(f"{m} {path}" for path, m in _METHODS.items()),
    }
    return _error(error.status_code, "invalid_request_error", what.get(error.status_code, error.detail), "NOT_OFFERED")


def _error(status: int, kind: str, message: str, code: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status_code=status)
