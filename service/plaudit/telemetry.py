"""Structured logs and trace ids.

What enters: log calls and the trace context of requests. What leaves: lines on standard error, as text or JSON, each
with the ids of the request it belongs to. Never logs prompts, completions, feedback texts, handles or names of people:
of an exception only its type and the places in the code are written, for messages quote what people sent.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

import structlog

from plaudit.ids import hex_digits

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
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=_write_places)
    )
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _name_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        processors.append(structlog.processors.ExceptionRenderer(_places_of))
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[log_level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    if process:
        structlog.contextvars.bind_contextvars(process=process)


_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def places(error: BaseException) -> str:
    """An exception and its causes as text without their messages: types, files, lines and functions.

    The message of a PlauditError is ours and still left out, for it may name a value that a person sent.
    """
    parts = []
    if error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        parts.append(places(error.__cause__ or error.__context__ or error))
        parts.append("which led to:")
    frames = traceback.extract_tb(error.__traceback__)
    parts += [f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' for frame in frames]
    parts.append(f"{type(error).__module__}.{type(error).__qualname__} (its message is left out of logs)")
    return "\n".join(parts)


def quiet_crashes() -> None:
    """An exception that nothing caught is written as `places`, in every thread of this process."""

    def crashed(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
        sys.stderr.write((places(error) if error is not None else kind.__qualname__) + "\n")

    sys.excepthook = crashed
    threading.excepthook = lambda args: crashed(args.exc_type, args.exc_value, args.exc_traceback)


def _write_places(target: TextIO, exc_info: _ExcInfo) -> None:
    target.write(places(exc_info[1]) + "\n")


def _places_of(exc_info: _ExcInfo) -> str:
    return places(exc_info[1])


def get_logger(name: str) -> Any:
    """A logger whose lines carry `name`."""
    return structlog.get_logger(component=name)


def child_traceparent(received: str) -> str:
    """A W3C traceparent of this process's span: same trace as `received` if that is valid, else a fresh trace."""
    span = hex_digits(16)
    if _TRACEPARENT.fullmatch(received):
        _, trace, _, flags = received.split("-")
        return f"00-{trace}-{span}-{flags}"
    return f"00-{hex_digits(32)}-{span}-00"


@contextmanager
def request_ids(ids: RequestIds) -> Iterator[None]:
    """Makes `ids` those of the current context, and of what it logs, for the length of a block."""
    token = _current.set(ids)
    try:
        yield
    finally:
        _current.reset(token)


def _name_request(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The ids of the request in hand in a line of the log. Asked for each line: most requests write none."""
    ids = _current.get()
    if ids is not None:
        line.setdefault("request_id", ids.request_id)
        line.setdefault("trace_id", ids.traceparent[3:35])
    return line


def traceparent() -> str:
    """The traceparent of the request in hand; empty outside of one."""
    ids = _current.get()
    return ids.traceparent if ids else ""


def request_id() -> str:
    """The id of the request in hand; empty outside of one."""
    ids = _current.get()
    return ids.request_id if ids else ""
