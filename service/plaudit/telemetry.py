"""Structured logs and trace ids.

What enters: log calls and the trace context of requests. What leaves: lines on standard error, as text or JSON, each
with the ids of the request it belongs to. Never logs prompts, completions, feedback texts, handles or names of people.
"""

from __future__ import annotations

import contextvars
import logging
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# W3C Trace Context, section 3.2: version 00, trace id and parent id not all zeros.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class RequestIds:
    """What names a request in logs, records and traces."""

    request_id: str
    traceparent: str


_current: contextvars.ContextVar[RequestIds | None] = contextvars.ContextVar("plaudit_request", default=None)


def configure(log_format: str = "text", log_level: str = "info", process: str = "") -> None:
    """Sets up logging for this process; every line goes to standard error."""
    renderer: Any = (
        structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[log_level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    if process:
        structlog.contextvars.bind_contextvars(process=process)


def get_logger(name: str) -> Any:
    """A logger whose lines carry `name`."""
    return structlog.get_logger(component=name)


def child_traceparent(received: str) -> str:
    """A W3C traceparent of this process's span: same trace as `received` where that is valid, else a fresh trace."""
    span = secrets.token_hex(8)
    if _TRACEPARENT.fullmatch(received):
        _, trace, _, flags = received.split("-")
        return f"00-{trace}-{span}-{flags}"
    return f"00-{secrets.token_hex(16)}-{span}-00"


@contextmanager
def request_ids(ids: RequestIds) -> Iterator[None]:
    """Makes `ids` those of the current context for the length of a block."""
    token = _current.set(ids)
    try:
        with structlog.contextvars.bound_contextvars(request_id=ids.request_id, trace_id=ids.traceparent[3:35]):
            yield
    finally:
        _current.reset(token)


def traceparent() -> str:
    """The traceparent of the request in hand; empty outside of one."""
    ids = _current.get()
    return ids.traceparent if ids else ""


def request_id() -> str:
    """The id of the request in hand; empty outside of one."""
    ids = _current.get()
    return ids.request_id if ids else ""
