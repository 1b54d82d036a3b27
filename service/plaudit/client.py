"""Plaudit's client, synchronous (`Plaudit`) and asyncio (`AsyncPlaudit`), with the same methods.

What enters: prompts, options, acts of people. What leaves: typed replies, and errors as the classes of
`plaudit.errors`. Calls with an idempotency key (requests, feedback, retractions) and reads are tried again if the error
is retryable; moves of releases are not. A server that is still starting is waited for. Never imports torch.

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
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio
import tenacity

from plaudit.access.credentials import AccessOptions, Credentials, credentials_of
from plaudit.client_calls import Patience, Unreached, call_error, channel_options, checked_target, unreached
from plaudit.client_catalogue import (
    DeclaredDomain,
    ReleaseDetails,
    channel_state,
    declared_domain,
    release_details,
    release_row,
)
from plaudit.client_requests import (
    Choosable,
    ChooseOptions,
    GenerateOptions,
    Prompt,
    choose_request,
    filled,
    generate_request,
)
from plaudit.errors import DeadlinePassed, InvalidField, Misconfigured, PlauditError
from plaudit.release.moves import ChannelState, ReleaseRow
from plaudit.replies import (
    Acknowledged,
    ActOptions,
    Begun,
    Decision,
    Delta,
    FeedbackGiver,
    RankedOption,
    Reply,
    ReplyCompletion,
    TokenLogprob,
    acknowledged,
    begun,
    decision,
    drafts,
    reply,
)
from plaudit.v1 import (
    assistant_pb2,
    assistant_pb2_grpc,
    domains_pb2,
    domains_pb2_grpc,
    errors_pb2,
    feedback_pb2,
    feedback_pb2_grpc,
    releases_pb2,
    releases_pb2_grpc,
)
from plaudit.wire import error_classes

__all__ = [
    "Acknowledged",
    "ActOptions",
    "AsyncPlaudit",
    "Begun",
    "BulkAcknowledged",
    "ChooseOptions",
    "Decision",
    "DeclaredDomain",
    "Delta",
    "FeedbackGiver",
    "GenerateOptions",
    "Plaudit",
    "RankedOption",
    "ReleaseDetails",
    "Reply",
    "ReplyCompletion",
    "TokenLogprob",
    "drafts",
]

Answer = TypeVar("Answer")

DEFAULT_SECONDS = 120.0
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


@dataclass(frozen=True, slots=True)
class BulkAcknowledged:
    """What became of item `index` of a bulk stream; `error` is None if the act is durable."""

    index: int
    feedback_id: str
    error: PlauditError | None


class Stubs:
    """Stubs of one channel, whose every call brings the credentials."""

    def __init__(self, channel: Any, credentials: Credentials) -> None:
        self.assistant: Any = _Bringing(assistant_pb2_grpc.AssistantServiceStub(channel), credentials)
        self.feedback: Any = _Bringing(feedback_pb2_grpc.FeedbackServiceStub(channel), credentials)
        self.releases: Any = _Bringing(releases_pb2_grpc.ReleaseServiceStub(channel), credentials)
        self.domains: Any = _Bringing(domains_pb2_grpc.DomainServiceStub(channel), credentials)


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


class Plaudit:
    """The synchronous client; may be shared by threads."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_SECONDS,
        patience: float | None = None,
        **access: Unpack[AccessOptions],
    ) -> None:
        """Connects at the first call. Raises Misconfigured for credentials that cannot be used.

        Args:
            target: Address of the service, "host:port"; an IPv6 host in brackets.
            timeout: Deadline of a call and all its attempts, in seconds.
            patience: Seconds for which a call whose error is retryable is tried again, within `timeout`; 0 tries once.
                Without it a busy service is asked again for 10 s, and one that nobody reaches yet until the deadline.
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
        """Completions of a prompt, recorded.

        Args:
            domain: Name of the domain that answers; `domains()` lists them.
            prompt: A text, or the conversation as `Message` or `{"role": ..., "content": ...}`, oldest first.
            timeout: Deadline of this call in seconds; the client's if it is left out.
            options: See `GenerateOptions`.

        Raises:
            RequestRefused: The request cannot be answered as it is; a subclass says why.
            Busy: The service was busy or away for as long as the call was tried again.
            DeadlinePassed: The answer was not ready in time.
        """
        request = generate_request(domain, prompt, options)
        return reply(self._again(self._stubs.assistant.Generate, request, timeout), self.submit)

    def stream(
        self, domain: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[Begun[Acknowledged] | Delta | Reply[Acknowledged]]:
        """`Begun` with the handle first, then text as it comes (`Delta`), and at the end the `Reply`, recorded.

        Arguments and errors as of `generate`. Whoever stops reading ends the call; what went out is recorded.
        """
        request = assistant_pb2.StreamGenerateRequest(request=generate_request(domain, prompt, options))
        for event in self._stream(self._stubs.assistant.StreamGenerate, request, timeout):
            yield _event(event, self.submit)

    def choose(
        self,
        domain: str,
        prompt: Prompt,
        choices: Sequence[Choosable],
        *,
        timeout: float | None = None,
        **options: Unpack[ChooseOptions],
    ) -> Decision[Acknowledged]:
        """Options in order of their probability, and the one to act on, recorded.

        Args:
            domain: Name of the domain that decides.
            prompt: As of `generate`.
            choices: The options, 2 to 50: texts, `Option(option_id, text)`, or objects with these two; none if the
                domain makes them itself.
            timeout: As of `generate`.
            options: See `ChooseOptions`.
        """
        request = choose_request(domain, prompt, choices, options)
        return decision(self._again(self._stubs.assistant.Choose, request, timeout), self.submit)

    def feedback_from_handle(self, handle: str, candidate_ids: Sequence[str] = ()) -> FeedbackGiver[Acknowledged]:
        """Gives feedback if only the handle was kept.

        Args:
            handle: The `handle` of a reply, decision or begun stream.
            candidate_ids: Ids of its candidates; if they are left out, the service finds candidates by their place.
        """
        return FeedbackGiver(handle=handle, candidate_ids=tuple(candidate_ids), send=self.submit)

    def submit(self, act: feedback_pb2.Feedback) -> Acknowledged:
        """Sends one act (see `drafts`); it is durable when this returns."""
        return acknowledged(self._again(self._stubs.feedback.SubmitFeedback, _submission(act)))

    def submit_many(
        self, acts: Iterable[feedback_pb2.Feedback], *, timeout: float | None = None
    ) -> Iterator[BulkAcknowledged]:
        """Sends many acts (see `drafts`) and gives one acknowledgement for each, in order; `timeout` in seconds."""
        requests = (feedback_pb2.StreamFeedbackRequest(feedback=_act(act)) for act in acts)
        for answer in self._each(self._stubs.feedback.StreamFeedback(requests, timeout=timeout)):
            yield _bulk(answer)

    def retract(self, handle: str, feedback_id: str, *, rater: str = "", session_id: str = "") -> dt.datetime:
        """Withdraws an act, and tells when the withdrawal was accepted.

        Args:
            handle: The handle under which it was given.
            feedback_id: Its id, from the acknowledgement.
            rater: Who gave it; only they can withdraw it.
            session_id: Their session, if that stood for the rater.
        """
        request = _retraction(handle, feedback_id, rater, session_id)
        return _moment(self._again(self._stubs.feedback.RetractFeedback, request))

    def domains(self) -> list[DeclaredDomain]:
        """The domains that the service answers for, and what feedback each takes."""
        pages = self._pages(self._stubs.domains.ListDomains, domains_pb2.ListDomainsRequest())
        return [declared_domain(domain) for answer in pages for domain in answer.domains]

    def channels(self) -> list[ChannelState]:
        """What every channel serves, in order of name."""
        pages = self._pages(self._stubs.releases.ListChannels, releases_pb2.ListChannelsRequest())
        return [channel_state(state) for answer in pages for state in answer.channels]

    def releases(self, channel: str) -> tuple[ChannelState, list[ReleaseRow]]:
        """What a channel ("domain/tenant") serves, and all its releases, oldest first."""
        request = filled(releases_pb2.ListReleasesRequest, channel=channel)
        pages = list(self._pages(self._stubs.releases.ListReleases, request))
        return channel_state(pages[-1].state), [release_row(row) for answer in pages for row in answer.releases]

    def release(self, channel: str, version: int) -> ReleaseDetails:
        """One release with the gate's report and its manifest."""
        request = filled(releases_pb2.GetReleaseRequest, channel=channel, version=version)
        return release_details(self._again(self._stubs.releases.GetRelease, request))

    def watch(self, channel: str = "", *, timeout: float | None = None) -> Iterator[ChannelState]:
        """Channel states, first as they are, then as they change; of all channels if none is named.

        With a `timeout` in seconds it ends with DeadlinePassed. Without one it goes on for ever: a watch that the
        service ends by its own longest time is opened again.
        """
        request = filled(releases_pb2.WatchReleasesRequest, channel=channel)
        news = _News()
        while True:
            try:
                for answer in self._each(self._stubs.releases.WatchReleases(request, timeout=timeout)):
                    if news.is_new(answer.state):
                        yield channel_state(answer.state)
            except DeadlinePassed:
                if timeout is not None:
                    raise
            else:
                return

    def promote(
        self, channel: str, version: int, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """Makes a gated release live.

        Args:
            channel: "domain/tenant".
            version: The release.
            expected_generation: The channel's generation that the decision was made from; GenerationChanged if it has
                another by now. Any if it is left out.
            reason: Why, for the record.
        """
        request = _move(releases_pb2.PromoteReleaseRequest, channel, expected_generation, reason, version=version)
        return channel_state(self._once(self._stubs.releases.PromoteRelease, request).state)

    def roll_back(
        self, channel: str, to_version: int | None = None, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """Goes back to an earlier release: `to_version`, or the previous live one. Other arguments as of `promote`."""
        request = _move(
            releases_pb2.RollBackReleaseRequest, channel, expected_generation, reason, to_version=to_version
        )
        return channel_state(self._once(self._stubs.releases.RollBackRelease, request).state)

    def pin(
        self, channel: str, pinned: bool = True, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """Pins the live release, so that the learner cannot change it, or unpins it. Arguments as of `promote`."""
        request = _move(releases_pb2.PinReleaseRequest, channel, expected_generation, reason, pinned=pinned)
        return channel_state(self._once(self._stubs.releases.PinRelease, request).state)

    def _again(self, method: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:
        """Calls, and calls again if the error is retryable; all attempts share one deadline."""
        patience = Patience(self._patience, self._target, timeout or self._timeout)
        try:
            for attempt in tenacity.Retrying(**patience.policy()):
                with attempt:
                    return self._call(lambda: method(request, timeout=patience.left()))
        except Unreached as failed:
            raise failed.error from failed
        raise AssertionError("tenacity ends with an answer or an error")

    def _call(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except grpc.RpcError as error:
            raise _failed(error, self._target) from error

    def _once(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return self._call(lambda: method(request, timeout=self._timeout))
        except Unreached as failed:
            raise failed.error from failed

    def _pages(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        while True:
            answer = self._again(method, request)
            yield answer
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    def _stream(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Iterator[Any]:
        """The messages of a stream. Its first one is waited for as an answer is: until then nothing has begun."""
        patience = Patience(self._patience, self._target, timeout or self._timeout)
        try:
            for attempt in tenacity.Retrying(**patience.policy()):
                with attempt:
                    answers = method(request, timeout=patience.left())
                    first = self._call(functools.partial(next, answers, None))
        except Unreached as failed:
            raise failed.error from failed
        if first is not None:
            yield from self._each(answers, first)

    def _each(self, answers: Any, *before: Any) -> Iterator[Any]:
        try:
            yield from before
            yield from answers
        except grpc.RpcError as error:
            raise call_error(error, self._target) from error
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
        patience: float | None = None,
        **access: Unpack[AccessOptions],
    ) -> None:
        """Arguments as of `Plaudit`; raises Misconfigured outside of a running event loop."""
        options = channel_options(checked_target(target))
        self._loop = _running_loop()
        credentials = credentials_of(target, access)
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
        """As `Plaudit.generate`; the reply's methods are awaited."""
        request = generate_request(domain, prompt, options)
        return reply(await self._again(self._stubs.assistant.Generate, request, timeout), self.submit)

    async def stream(
        self, domain: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[Begun[Awaitable[Acknowledged]] | Delta | Reply[Awaitable[Acknowledged]]]:
        """As `Plaudit.stream`, for `async for`."""
        request = assistant_pb2.StreamGenerateRequest(request=generate_request(domain, prompt, options))
        async for event in self._stream(self._stubs.assistant.StreamGenerate, request, timeout):
            yield _event(event, self.submit)

    async def choose(
        self,
        domain: str,
        prompt: Prompt,
        choices: Sequence[Choosable],
        *,
        timeout: float | None = None,
        **options: Unpack[ChooseOptions],
    ) -> Decision[Awaitable[Acknowledged]]:
        """As `Plaudit.choose`."""
        request = choose_request(domain, prompt, choices, options)
        return decision(await self._again(self._stubs.assistant.Choose, request, timeout), self.submit)

    def feedback_from_handle(
        self, handle: str, candidate_ids: Sequence[str] = ()
    ) -> FeedbackGiver[Awaitable[Acknowledged]]:
        """As `Plaudit.feedback_from_handle`; the methods of what it gives are awaited."""
        return FeedbackGiver(handle=handle, candidate_ids=tuple(candidate_ids), send=self.submit)

    async def submit(self, act: feedback_pb2.Feedback) -> Acknowledged:
        """As `Plaudit.submit`."""
        return acknowledged(await self._again(self._stubs.feedback.SubmitFeedback, _submission(act)))

    async def submit_many(
        self,
        acts: Iterable[feedback_pb2.Feedback] | AsyncIterable[feedback_pb2.Feedback],
        *,
        timeout: float | None = None,
    ) -> AsyncIterator[BulkAcknowledged]:
        """As `Plaudit.submit_many`, for `async for`; the acts may come asynchronously too."""

        async def requests() -> AsyncIterator[feedback_pb2.StreamFeedbackRequest]:
            if isinstance(acts, AsyncIterable):
                async for act in acts:
                    yield feedback_pb2.StreamFeedbackRequest(feedback=_act(act))
            else:
                for act in acts:
                    yield feedback_pb2.StreamFeedbackRequest(feedback=_act(act))

        self._check_loop()
        async for answer in self._each(self._stubs.feedback.StreamFeedback(requests(), timeout=timeout)):
            yield _bulk(answer)

    async def retract(self, handle: str, feedback_id: str, *, rater: str = "", session_id: str = "") -> dt.datetime:
        """As `Plaudit.retract`."""
        request = _retraction(handle, feedback_id, rater, session_id)
        return _moment(await self._again(self._stubs.feedback.RetractFeedback, request))

    async def domains(self) -> list[DeclaredDomain]:
        """As `Plaudit.domains`."""
        pages = self._pages(self._stubs.domains.ListDomains, domains_pb2.ListDomainsRequest())
        return [declared_domain(domain) async for answer in pages for domain in answer.domains]

    async def channels(self) -> list[ChannelState]:
        """As `Plaudit.channels`."""
        pages = self._pages(self._stubs.releases.ListChannels, releases_pb2.ListChannelsRequest())
        return [channel_state(state) async for answer in pages for state in answer.channels]

    async def releases(self, channel: str) -> tuple[ChannelState, list[ReleaseRow]]:
        """As `Plaudit.releases`."""
        request = filled(releases_pb2.ListReleasesRequest, channel=channel)
        pages = [answer async for answer in self._pages(self._stubs.releases.ListReleases, request)]
        return channel_state(pages[-1].state), [release_row(row) for answer in pages for row in answer.releases]

    async def release(self, channel: str, version: int) -> ReleaseDetails:
        """As `Plaudit.release`."""
        request = filled(releases_pb2.GetReleaseRequest, channel=channel, version=version)
        return release_details(await self._again(self._stubs.releases.GetRelease, request))

    async def watch(self, channel: str = "", *, timeout: float | None = None) -> AsyncIterator[ChannelState]:
        """As `Plaudit.watch`, for `async for`."""
        request = filled(releases_pb2.WatchReleasesRequest, channel=channel)
        news = _News()
        self._check_loop()
        while True:
            try:
                async for answer in self._each(self._stubs.releases.WatchReleases(request, timeout=timeout)):
                    if news.is_new(answer.state):
                        yield channel_state(answer.state)
            except DeadlinePassed:
                if timeout is not None:
                    raise
            else:
                return

    async def promote(
        self, channel: str, version: int, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """As `Plaudit.promote`."""
        request = _move(releases_pb2.PromoteReleaseRequest, channel, expected_generation, reason, version=version)
        return channel_state((await self._once(self._stubs.releases.PromoteRelease, request)).state)

    async def roll_back(
        self, channel: str, to_version: int | None = None, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """As `Plaudit.roll_back`."""
        request = _move(
            releases_pb2.RollBackReleaseRequest, channel, expected_generation, reason, to_version=to_version
        )
        return channel_state((await self._once(self._stubs.releases.RollBackRelease, request)).state)

    async def pin(
        self, channel: str, pinned: bool = True, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """As `Plaudit.pin`."""
        request = _move(releases_pb2.PinReleaseRequest, channel, expected_generation, reason, pinned=pinned)
        return channel_state((await self._once(self._stubs.releases.PinRelease, request)).state)

    async def _again(self, method: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:
        """Calls, and calls again if the error is retryable; all attempts share one deadline."""
        self._check_loop()
        patience = Patience(self._patience, self._target, timeout or self._timeout)
        try:
            async for attempt in tenacity.AsyncRetrying(**patience.policy()):
                with attempt:
                    return await self._call(method(request, timeout=patience.left()))
        except Unreached as failed:
            raise failed.error from failed
        raise AssertionError("tenacity ends with an answer or an error")

    async def _call(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except grpc.RpcError as error:
            raise _failed(error, self._target) from error

    async def _once(self, method: Callable[..., Any], request: Any) -> Any:
        self._check_loop()
        try:
            return await self._call(method(request, timeout=self._timeout))
        except Unreached as failed:
            raise failed.error from failed

    async def _pages(self, method: Callable[..., Any], request: Any) -> AsyncIterator[Any]:
        while True:
            answer = await self._again(method, request)
            yield answer
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def _stream(self, method: Callable[..., Any], request: Any, timeout: float | None) -> AsyncIterator[Any]:
        """As `Plaudit._stream`."""
        self._check_loop()
        patience = Patience(self._patience, self._target, timeout or self._timeout)
        try:
            async for attempt in tenacity.AsyncRetrying(**patience.policy()):
                with attempt:
                    answers = method(request, timeout=patience.left())
                    first = await self._call(answers.read())
        except Unreached as failed:
            raise failed.error from failed
        if first is not _EOF:
            async for answer in self._each(answers, first):
                yield answer

    async def _each(self, answers: Any, *before: Any) -> AsyncIterator[Any]:
        try:
            for answer in before:
                yield answer
            while (answer := await answers.read()) is not _EOF:
                yield answer
        except grpc.RpcError as error:
            raise call_error(error, self._target) from error
        finally:
            answers.cancel()

    def _check_loop(self) -> None:
        if _running_loop() is not self._loop:
            raise Misconfigured(
                "this AsyncPlaudit was made in another event loop, which has ended; make one per loop: "
                "`async with AsyncPlaudit(target) as client:` inside the function that asyncio.run gets"
            )


class _News:
    """Tells states of channels that were not told before."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def is_new(self, state: releases_pb2.ChannelState) -> bool:
        if self._told.get(state.channel) == state.generation:
            return False
        self._told[state.channel] = state.generation
        return True


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise Misconfigured(
            "AsyncPlaudit needs a running event loop: make it inside an async function, with "
            "`async with AsyncPlaudit(target) as client:`, or use Plaudit, which needs none"
        ) from error


def _failed(call: Any, target: str) -> Exception:
    """What a failed attempt raises: its error, wrapped if no server answered it."""
    error = call_error(call, target)
    return Unreached(error) if unreached(call) else error


def _event(
    event: assistant_pb2.StreamGenerateResponse, send: Callable[[feedback_pb2.Feedback], Answer]
) -> Begun[Answer] | Delta | Reply[Answer]:
    match event.WhichOneof("event"):
        case "begun":
            return begun(event.begun, send)
        case "delta":
            return Delta(event.delta.index, event.delta.text)
    return reply(event.done, send)


def _act(act: Any) -> feedback_pb2.Feedback:
    if not isinstance(act, feedback_pb2.Feedback):
        raise InvalidField(
            f"an act is a {type(act).__name__}; make acts with drafts(handle).thumbs_up() and its neighbours",
            field="act",
        )
    return act


def _submission(act: Any) -> feedback_pb2.SubmitFeedbackRequest:
    return feedback_pb2.SubmitFeedbackRequest(feedback=_act(act))


def _bulk(answer: feedback_pb2.StreamFeedbackResponse) -> BulkAcknowledged:
    if answer.accepted:
        return BulkAcknowledged(answer.index, answer.feedback_id, None)
    reason = errors_pb2.ErrorReason.Name(answer.reason).removeprefix("ERROR_REASON_")
    cls = error_classes().get(reason, PlauditError)
    return BulkAcknowledged(answer.index, answer.feedback_id, cls(answer.message))


def _retraction(handle: str, feedback_id: str, rater: str, session_id: str) -> Any:
    return filled(
        feedback_pb2.RetractFeedbackRequest, handle=handle, feedback_id=feedback_id, rater=rater, session_id=session_id
    )


def _moment(answer: feedback_pb2.RetractFeedbackResponse) -> dt.datetime:
    accepted: dt.datetime = answer.accepted_at.ToDatetime(dt.UTC)
    return accepted


def _move(message: Any, channel: str, expected_generation: int | None, reason: str, **move: Any) -> Any:
    return filled(message, channel=channel, expected_generation=expected_generation, reason=reason, **move)
