"""How a client's calls are made: the channel and its stubs, what is tried again and for how long, errors.

What enters: a target and failed calls. What leaves: settings of grpc and tenacity, and errors as the classes of
`plaudit.errors`. A server that nobody reaches yet is waited for until the call's deadline; one that answers that it is
busy is asked again for a short while. Never imports torch.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from typing import Any

import grpc
import tenacity

from plaudit.access.credentials import AccessOptions, Credentials, credentials_of
from plaudit.addresses import is_loopback, no_proxy
from plaudit.errors import DeadlinePassed, InvalidField, NotServing, PlauditError, RateLimited
from plaudit.v1 import assistant_pb2_grpc, domains_pb2_grpc, feedback_pb2_grpc, releases_pb2_grpc
from plaudit.wire import REQUEST_ID_KEY, from_call

# Deadline of a call, if the client is told no other.
DEFAULT_SECONDS = 120.0
# How long a busy service is asked again: longer than a rolling restart of one replica keeps its port shut.
PATIENCE_SECONDS = 10.0
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 1.0
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),
    # The library's own limit is two minutes: a server that is back after an outage would not be found for so long.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 800),
)
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")

_SEE = "see that `plaudit serve` runs there and listens"

log = logging.getLogger("plaudit.client")


class Unreached(Exception):
    """Wraps the error of a call that no server answered; never leaves the client."""

    def __init__(self, error: PlauditError) -> None:
        super().__init__(error.message)
        self.error = error


def checked_target(target: str) -> str:
    """The target; raises InvalidField if it is none that gRPC can reach."""
    if not isinstance(target, str) or not target:
        raise InvalidField(f'the target is {target!r}; write "host:port", such as "127.0.0.1:50051"', field="target")
    scheme, separator, rest = target.partition("://")
    if scheme in ("http", "https"):
        raise InvalidField(
            f'the target is {target!r}; write "{rest.rstrip("/") or "host:port"}", without {scheme}://. The client '
            "speaks gRPC (serve.port); the HTTP door is another port",
            field="target",
        )
    if not separator and ":" not in target:  # gRPC would take port 443
        raise InvalidField(f'the target is {target!r}, without a port; write "{target}:50051"', field="target")
    return target


def channel_options(target: str) -> list[tuple[str, int]]:
    """Options of a channel; one to this machine never goes through a proxy."""
    return [*_OPTIONS, *no_proxy(target)]


def call_error(call: Any, target: str) -> PlauditError:
    """The error of a failed call; one that no server answered names the target and a proxy in between."""
    error = from_call(call)
    if isinstance(error, DeadlinePassed) and not _answered(call):
        return DeadlinePassed(
            f"{target} gave no answer in time: it may be slow (allow more time or ask for fewer tokens) or out of reach"
        )
    if not _unanswered(call):
        return error
    proxies = [] if is_loopback(target) else [name for name in _PROXY_VARIABLES if os.environ.get(name)]
    through = f"; the variable {proxies[0]} sends this call through a proxy" if proxies else ""
    details = error.message.removeprefix(f"{grpc.StatusCode.UNAVAILABLE.name}: ")
    if "http1.x" in details:
        return NotServing(
            f"{target} speaks HTTP, not gRPC: it may be the HTTP door (serve.http_port); name the gRPC port, serve.port"
        )
    return NotServing(f"nothing answers at {target}{through}; {_SEE} (gRPC says: {details})")


def unreached(call: Any) -> bool:
    """Whether a failed call met no server, which may only be starting; one that refuses to encrypt is no such."""
    return _unanswered(call) and "handshake failed" not in (call.details() or "").lower()


def _unanswered(call: Any) -> bool:
    """Whether a failed call met no Plaudit server."""
    return call.code() is grpc.StatusCode.UNAVAILABLE and not _answered(call)


def _answered(call: Any) -> bool:
    """Whether a Plaudit server answered a failed call: each of its answers carries a request id."""
    return any(key == REQUEST_ID_KEY for key, _ in call.trailing_metadata() or ())


class Patience:
    """When one call is tried again.

    `seconds` None is the usual: a busy service for a short while, one that nobody reaches yet until the deadline.
    """

    def __init__(self, seconds: float | None, target: str, timeout: float) -> None:
        self._busy = PATIENCE_SECONDS if seconds is None else seconds
        self._unreached = timeout if seconds is None else seconds
        self._target = target
        self._ends_at = time.monotonic() + timeout
        self._met_nobody = self._told = False

    def left(self) -> float:
        """Seconds until the deadline of all attempts."""
        return max(0.0, self._ends_at - time.monotonic())

    def failed(self, call: Any) -> Exception:
        """What a failed attempt raises: its error, wrapped if no server answered it.

        If the time ends while grpc still connects, it says that a deadline passed, as of a server that is slow. Where
        the attempts before had met nobody, nobody is what is told.
        """
        if self._met_nobody and call.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not _answered(call):
            return Unreached(NotServing(f"nothing answers at {self._target}; {_SEE}"))
        error = call_error(call, self._target)
        if not unreached(call):
            return error
        self._met_nobody = True
        return Unreached(error)

    def policy(self) -> dict[str, Any]:
        """Arguments of tenacity's Retrying and AsyncRetrying."""
        return {
            "retry": tenacity.retry_if_exception(self._again),
            "stop": self._over,
            "wait": tenacity.wait_combine(
                _limit,
                tenacity.wait_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS),
                tenacity.wait_random(0, _FIRST_WAIT_SECONDS),
            ),
            "reraise": True,
        }

    def _again(self, error: BaseException) -> bool:
        if isinstance(error, RateLimited) and error.retry_seconds > self._busy:
            return False
        return isinstance(error, Unreached) or (isinstance(error, PlauditError) and error.retryable)

    def _over(self, state: tenacity.RetryCallState) -> bool:
        outcome, spent = state.outcome, state.seconds_since_start or 0.0
        error = outcome.exception() if outcome is not None else None
        if not isinstance(error, Unreached):
            return spent >= self._busy
        over = spent >= self._unreached or self.left() <= _FIRST_WAIT_SECONDS
        if not over and not self._told:
            # Who waits for a server should know for which: a mistyped port looks the same.
            self._told = True
            most = min(self.left(), self._unreached - spent)
            log.warning("nothing answers at %s yet; trying again for up to %.0f s", self._target, most)
        return over


def _limit(state: tenacity.RetryCallState) -> float:
    """Seconds that a limit lasts: shorter waits would only count against it."""
    error = state.outcome.exception() if state.outcome else None
    return error.retry_seconds if isinstance(error, RateLimited) else 0.0


class Stubs:
    """Stubs of one channel, whose every call brings the credentials."""

    def __init__(self, channel: Any, credentials: Credentials) -> None:
        self.assistant: Any = _Bringing(assistant_pb2_grpc.AssistantServiceStub(channel), credentials)
        self.feedback: Any = _Bringing(feedback_pb2_grpc.FeedbackServiceStub(channel), credentials)
        self.releases: Any = _Bringing(releases_pb2_grpc.ReleaseServiceStub(channel), credentials)
        self.domains: Any = _Bringing(domains_pb2_grpc.DomainServiceStub(channel), credentials)

    def close(self) -> None:
        """After this each call is refused in the client's own words."""
        self.assistant = self.feedback = self.releases = self.domains = _Closed()


def closed() -> InvalidField:
    """The error of a call of a client that was closed."""
    return InvalidField("this client is closed; make another, or call inside its `with` block", field="client")


class _Closed:
    """Stands for the stubs of a client that was closed."""

    def __getattr__(self, method: str) -> Any:
        raise closed()


class _Bringing:
    """A stub whose methods send credentials as metadata."""

    def __init__(self, stub: Any, credentials: Credentials) -> None:
        self._stub, self._credentials = stub, credentials

    def __getattr__(self, method: str) -> Any:
        bound = functools.partial(getattr(self._stub, method), metadata=self._credentials.metadata)
        setattr(self, method, bound)
        return bound


def connect(target: str, access: AccessOptions) -> tuple[grpc.Channel, Stubs]:
    """A synchronous channel to the service at `target`, and its stubs."""
    options, credentials = channel_options(checked_target(target)), credentials_of(target, access)
    channel = (
        grpc.secure_channel(target, credentials.channel, options)
        if credentials.channel
        else grpc.insecure_channel(target, options)
    )
    return channel, Stubs(channel, credentials)
