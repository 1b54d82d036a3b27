"""Plaudit's client, synchronous (`Plaudit`) and asyncio (`AsyncPlaudit`).

What enters: prompts, options, acts of people. What leaves: typed replies, and errors as the classes of
`plaudit.errors`. Calls with an idempotency key (requests, feedback, retractions) are tried again where the error is
retryable; moves of releases and streams are not. Never imports torch.

    with Plaudit("127.0.0.1:50051") as client:
        reply = client.generate("support", "How do I descale a kettle?", n=2)
        reply.choose(0, 1, rater="ana")

A service with keys and encryption: `Plaudit("plaudit.example:50051", key=..., root_certificates=Path("ca.pem"))`, or
the environment variables of `plaudit.access.credentials`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio
import tenacity

from plaudit.access.credentials import AccessOptions, Credentials, credentials_of
from plaudit.addresses import is_loopback, no_proxy
from plaudit.errors import DeadlinePassed, Misconfigured, NotServing, PlauditError, RateLimited
from plaudit.release.moves import ChannelState, ReleaseRow, ReleaseState
from plaudit.replies import (
    Acknowledged,
    Begun,
    ChooseOptions,
    Decision,
    Delta,
    FeedbackGiver,
    GenerateOptions,
    Prompt,
    RankedOption,
    Reply,
    ReplyCompletion,
    acknowledged,
    begun,
    choose_request,
    decision,
    drafts,
    generate_request,
    reply,
)
from plaudit.types import Channel, Option
from plaudit.v1 import (
    assistant_pb2,
    assistant_pb2_grpc,
    errors_pb2,
    feedback_pb2,
    feedback_pb2_grpc,
    releases_pb2,
    releases_pb2_grpc,
)
from plaudit.wire import error_classes, from_call

__all__ = [
    "Acknowledged",
    "AsyncPlaudit",
    "Begun",
    "BulkAcknowledged",
    "Decision",
    "Delta",
    "FeedbackGiver",
    "Plaudit",
    "RankedOption",
    "Reply",
    "ReplyCompletion",
    "drafts",
]

Answer = TypeVar("Answer")

DEFAULT_SECONDS = 120.0
# How long a call is tried again: longer than a rolling restart of one replica keeps its port shut.
DEFAULT_PATIENCE_SECONDS = 10.0
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


@dataclass(frozen=True, slots=True)
class BulkAcknowledged:
    """What became of item `index` of a bulk stream; `error` is None where the act is durable."""

    index: int
    feedback_id: str
    error: PlauditError | None


class Stubs:
    """Stubs of one channel, whose every call brings the credentials."""

    def __init__(self, channel: Any, credentials: Credentials) -> None:
        self.assistant: Any = _Bringing(assistant_pb2_grpc.AssistantServiceStub(channel), credentials)
        self.feedback: Any = _Bringing(feedback_pb2_grpc.FeedbackServiceStub(channel), credentials)
        self.releases: Any = _Bringing(releases_pb2_grpc.ReleaseServiceStub(channel), credentials)


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
    credentials = credentials_of(target, access)
    channel = (
        grpc.secure_channel(target, credentials.channel, _options(target))
        if credentials.channel
        else grpc.insecure_channel(target, _options(target))
    )
    return channel, Stubs(channel, credentials)


class Plaudit:
    """The synchronous client; may be shared by threads."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_SECONDS,
        patience: float = DEFAULT_PATIENCE_SECONDS,
        **access: Unpack[AccessOptions],
    ) -> None:
        """Connects at the first call. Raises Misconfigured for credentials that cannot be used.

        Args:
            target: Address of the service, "host:port"; an IPv6 host in brackets.
            timeout: Deadline of a call and all its attempts, in seconds.
            patience: Seconds for which a call whose error is retryable is tried again, within `timeout`; 0 tries once.
            access: Key or token, certificates; see `plaudit.access.credentials.AccessOptions`.
        """
        self._channel, self._stubs = connect(target, access)
        self._target = target
        self._timeout = timeout
        self._patience = patience

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def generate(
        self, domain: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Reply[Acknowledged]:
        """Completions of a prompt, recorded."""
        request = generate_request(domain, prompt, options)
        return reply(self._again(self._stubs.assistant.Generate, request, timeout), self.submit)

    def stream(
        self, domain: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[Begun[Acknowledged] | Delta | Reply[Acknowledged]]:
        """The handle first, then text as it comes, and at the end the reply, recorded."""
        request = assistant_pb2.StreamGenerateRequest(request=generate_request(domain, prompt, options))
        for event in self._each(self._stubs.assistant.StreamGenerate(request, timeout=timeout or self._timeout)):
            yield _event(event, self.submit)

    def choose(
        self,
        domain: str,
        prompt: Prompt,
        choices: Sequence[str | Option],
        *,
        timeout: float | None = None,
        **options: Unpack[ChooseOptions],
    ) -> Decision[Acknowledged]:
        """Options in order of their probability, recorded."""
        request = choose_request(domain, prompt, choices, options)
        return decision(self._again(self._stubs.assistant.Choose, request, timeout), self.submit)

    def feedback_from_handle(self, handle: str, candidate_ids: Sequence[str] = ()) -> FeedbackGiver[Acknowledged]:
        """Gives feedback if only the handle was kept."""
        return FeedbackGiver(handle=handle, candidate_ids=tuple(candidate_ids), send=self.submit)

    def submit(self, act: feedback_pb2.Feedback) -> Acknowledged:
        """Sends one act; it is durable when this returns."""
        request = feedback_pb2.SubmitFeedbackRequest(feedback=act)
        return acknowledged(self._again(self._stubs.feedback.SubmitFeedback, request))

    def submit_many(
        self, acts: Iterable[feedback_pb2.Feedback], *, timeout: float | None = None
    ) -> Iterator[BulkAcknowledged]:
        """Sends many acts (see `drafts`) and gives one acknowledgement for each, in order."""
        requests = (feedback_pb2.StreamFeedbackRequest(feedback=act) for act in acts)
        for answer in self._each(self._stubs.feedback.StreamFeedback(requests, timeout=timeout)):
            yield _bulk(answer)

    def retract(self, handle: str, feedback_id: str, *, rater: str = "", session_id: str = "") -> dt.datetime:
        """Withdraws an act; when the withdrawal was accepted."""
        request = _retraction(handle, feedback_id, rater, session_id)
        accepted: dt.datetime = self._again(self._stubs.feedback.RetractFeedback, request).accepted_at.ToDatetime(
            dt.UTC
        )
        return accepted

    def releases(self, channel: str) -> tuple[ChannelState, list[ReleaseRow]]:
        """What a channel serves, and all its releases, oldest first."""
        answer = self._again(self._stubs.releases.ListReleases, releases_pb2.ListReleasesRequest(channel=channel))
        return _state(answer.state), [_release(row) for row in answer.releases]

    def release(self, channel: str, version: int) -> tuple[ReleaseRow, str]:
        """One release and its manifest as JSON."""
        request = releases_pb2.GetReleaseRequest(channel=channel, version=version)
        answer = self._again(self._stubs.releases.GetRelease, request)
        return _release(answer.release), answer.manifest_json

    def watch(self, channel: str = "", *, timeout: float | None = None) -> Iterator[ChannelState]:
        """Channel states, first as they are, then as they change; ends with the timeout's DeadlinePassed.

        Without a timeout it goes on for ever: a watch that the service ends by its own longest time is opened again.
        """
        request = releases_pb2.WatchReleasesRequest(channel=channel)
        seen: dict[str, int] = {}
        while True:
            try:
                for answer in self._each(self._stubs.releases.WatchReleases(request, timeout=timeout)):
                    if seen.get(answer.state.channel) != answer.state.generation:
                        seen[answer.state.channel] = answer.state.generation
                        yield _state(answer.state)
            except DeadlinePassed:
                if timeout is not None:
                    raise
            else:
                return

    def promote(
        self, channel: str, version: int, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """Makes a gated release live."""
        request = releases_pb2.PromoteReleaseRequest(
            channel=channel, version=version, expected_generation=expected_generation, reason=reason
        )
        return _state(self._once(self._stubs.releases.PromoteRelease, request, self._timeout).state)

    def roll_back(
        self, channel: str, to_version: int | None = None, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """Goes back to an earlier release."""
        request = releases_pb2.RollBackReleaseRequest(
            channel=channel, to_version=to_version, expected_generation=expected_generation, reason=reason
        )
        return _state(self._once(self._stubs.releases.RollBackRelease, request, self._timeout).state)

    def pin(
        self, channel: str, pinned: bool = True, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """Pins the live release, or unpins it."""
        request = releases_pb2.PinReleaseRequest(
            channel=channel, pinned=pinned, expected_generation=expected_generation, reason=reason
        )
        return _state(self._once(self._stubs.releases.PinRelease, request, self._timeout).state)

    def _again(self, method: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:
        """Calls, and calls again if the error is retryable; all attempts share one deadline."""
        ends_at = time.monotonic() + (timeout or self._timeout)
        for attempt in tenacity.Retrying(**_policy(self._patience)):
            with attempt:
                return self._once(method, request, ends_at - time.monotonic())
        raise AssertionError("tenacity ends with an answer or an error")

    def _once(self, method: Callable[..., Any], request: Any, timeout: float) -> Any:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _error(error, self._target) from error

    def _each(self, answers: Any) -> Iterator[Any]:
        try:
            yield from answers
        except grpc.RpcError as error:
            raise _error(error, self._target) from error
        finally:
            # A reader that stops early leaves a call under way; the service frees its slot only when it is told.
            answers.cancel()


class AsyncPlaudit:
    """The asyncio client; belongs to the event loop in which it is made."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_SECONDS,
        patience: float = DEFAULT_PATIENCE_SECONDS,
        **access: Unpack[AccessOptions],
    ) -> None:
        """As `Plaudit`; raises Misconfigured outside of a running event loop."""
        self._loop = _running_loop()
        options, credentials = list(_options(target)), credentials_of(target, access)
        self._channel: Any = (
            grpc.aio.secure_channel(target, credentials.channel, options)
            if credentials.channel
            else grpc.aio.insecure_channel(target, options)
        )
        self._stubs = Stubs(self._channel, credentials)
        self._target = target
        self._timeout = timeout
        self._patience = patience

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def generate(
        self, domain: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Reply[Awaitable[Acknowledged]]:
        """Completions of a prompt, recorded."""
        request = generate_request(domain, prompt, options)
        return reply(await self._again(self._stubs.assistant.Generate, request, timeout), self.submit)

    async def stream(
        self, domain: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[Begun[Awaitable[Acknowledged]] | Delta | Reply[Awaitable[Acknowledged]]]:
        """The handle first, then text as it comes, and at the end the reply, recorded."""
        request = assistant_pb2.StreamGenerateRequest(request=generate_request(domain, prompt, options))
        self._check_loop()
        answers = self._stubs.assistant.StreamGenerate(request, timeout=timeout or self._timeout)
        try:
            async for event in answers:
                yield _event(event, self.submit)
        except grpc.RpcError as error:
            raise _error(error, self._target) from error
        finally:
            answers.cancel()

    async def choose(
        self,
        domain: str,
        prompt: Prompt,
        choices: Sequence[str | Option],
        *,
        timeout: float | None = None,
        **options: Unpack[ChooseOptions],
    ) -> Decision[Awaitable[Acknowledged]]:
        """Options in order of their probability, recorded."""
        request = choose_request(domain, prompt, choices, options)
        return decision(await self._again(self._stubs.assistant.Choose, request, timeout), self.submit)

    def feedback_from_handle(
        self, handle: str, candidate_ids: Sequence[str] = ()
    ) -> FeedbackGiver[Awaitable[Acknowledged]]:
        """Gives feedback if only the handle was kept."""
        return FeedbackGiver(handle=handle, candidate_ids=tuple(candidate_ids), send=self.submit)

    async def submit(self, act: feedback_pb2.Feedback) -> Acknowledged:
        """Sends one act; it is durable when this returns."""
        request = feedback_pb2.SubmitFeedbackRequest(feedback=act)
        return acknowledged(await self._again(self._stubs.feedback.SubmitFeedback, request))

    async def retract(self, handle: str, feedback_id: str, *, rater: str = "", session_id: str = "") -> dt.datetime:
        """Withdraws an act; when the withdrawal was accepted."""
        request = _retraction(handle, feedback_id, rater, session_id)
        answer = await self._again(self._stubs.feedback.RetractFeedback, request)
        accepted: dt.datetime = answer.accepted_at.ToDatetime(dt.UTC)
        return accepted

    async def releases(self, channel: str) -> tuple[ChannelState, list[ReleaseRow]]:
        """What a channel serves, and all its releases, oldest first."""
        request = releases_pb2.ListReleasesRequest(channel=channel)
        answer = await self._again(self._stubs.releases.ListReleases, request)
        return _state(answer.state), [_release(row) for row in answer.releases]

    async def _again(self, method: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:
        """Calls, and calls again if the error is retryable; all attempts share one deadline."""
        self._check_loop()
        ends_at = time.monotonic() + (timeout or self._timeout)
        async for attempt in tenacity.AsyncRetrying(**_policy(self._patience)):
            with attempt:
                try:
                    return await method(request, timeout=ends_at - time.monotonic())
                except grpc.RpcError as error:
                    raise _error(error, self._target) from error
        raise AssertionError("tenacity ends with an answer or an error")

    def _check_loop(self) -> None:
        if _running_loop() is not self._loop:
            raise Misconfigured(
                "this AsyncPlaudit was made in another event loop, which has ended; make one per loop: "
                "`async with AsyncPlaudit(target) as client:` inside the function that asyncio.run gets"
            )


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise Misconfigured(
            "AsyncPlaudit needs a running event loop: make it inside an async function, with "
            "`async with AsyncPlaudit(target) as client:`, or use Plaudit, which needs none"
        ) from error


def _options(target: str) -> tuple[tuple[str, int], ...]:
    """Options of a channel; one to this machine never goes through a proxy."""
    return (*_OPTIONS, *no_proxy(target))


def _error(call: Any, target: str) -> PlauditError:
    """The error of a failed call; one that could not connect names the target and a proxy in between."""
    error = from_call(call)
    if type(error) is not NotServing or error.metadata:
        return error
    proxies = [] if is_loopback(target) else [name for name in _PROXY_VARIABLES if os.environ.get(name)]
    through = f"; the variable {proxies[0]} sends this call through a proxy" if proxies else ""
    return NotServing(f"{error.message} (target {target}{through})")


def _policy(patience: float) -> dict[str, Any]:
    def again(error: BaseException) -> bool:
        # A limit says how long it lasts: shorter waits would only count against it.
        too_long = isinstance(error, RateLimited) and error.retry_seconds > patience
        return isinstance(error, PlauditError) and error.retryable and not too_long

    def limit(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return error.retry_seconds if isinstance(error, RateLimited) else 0.0

    return {
        "retry": tenacity.retry_if_exception(again),
        "stop": tenacity.stop_after_delay(patience),
        "wait": tenacity.wait_combine(
            limit,
            tenacity.wait_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS),
            tenacity.wait_random(0, _FIRST_WAIT_SECONDS),
        ),
        "reraise": True,
    }


def _event(
    event: assistant_pb2.StreamGenerateResponse, send: Callable[[feedback_pb2.Feedback], Answer]
) -> Begun[Answer] | Delta | Reply[Answer]:
    match event.WhichOneof("event"):
        case "begun":
            return begun(event.begun, send)
        case "delta":
            return Delta(event.delta.index, event.delta.text)
    return reply(event.done, send)


def _bulk(answer: feedback_pb2.StreamFeedbackResponse) -> BulkAcknowledged:
    if answer.accepted:
        return BulkAcknowledged(answer.index, answer.feedback_id, None)
    reason = errors_pb2.ErrorReason.Name(answer.reason).removeprefix("ERROR_REASON_")
    cls = error_classes().get(reason, PlauditError)
    return BulkAcknowledged(answer.index, answer.feedback_id, cls(answer.message))


def _retraction(handle: str, feedback_id: str, rater: str, session_id: str) -> feedback_pb2.RetractFeedbackRequest:
    return feedback_pb2.RetractFeedbackRequest(
        handle=handle, feedback_id=feedback_id, rater=rater, session_id=session_id
    )


def _state(state: releases_pb2.ChannelState) -> ChannelState:
    canary = state.canary if state.HasField("canary") else None
    return ChannelState(Channel.parse(state.channel), state.generation, state.live, canary, state.pinned)


def _release(row: releases_pb2.Release) -> ReleaseRow:
    name = releases_pb2.ReleaseState.Name(row.state).removeprefix("RELEASE_STATE_")
    return ReleaseRow(
        channel=Channel.parse(row.channel),
        version=row.version,
        digest=row.digest,
        state=ReleaseState[name],
        created_at=row.created_at.ToDatetime(dt.UTC),
        decision_json=row.decision_json,
    )
