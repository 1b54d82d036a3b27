"""The asyncio client (`AsyncPlaudit`), with the methods of the synchronous one.

What enters: prompts, options, acts of people. What leaves: awaitables of typed replies, and errors as the classes of
`plaudit.errors`. Never imports torch.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Self, Unpack

import grpc
import grpc.aio
import tenacity

from plaudit.access.credentials import AccessOptions, credentials_of
from plaudit.client.calls import (
    DEFAULT_SECONDS,
    Patience,
    Stubs,
    Unreached,
    call_error,
    channel_options,
    checked_target,
    closed,
)
from plaudit.client.catalogue import (
    DeclaredDomain,
    ReleaseDetails,
    channel_state,
    declared_domain,
    release_details,
    release_row,
)
from plaudit.client.messages import (
    BulkAcknowledged,
    News,
    act_of,
    bulk_acknowledgements,
    bulk_messages,
    move,
    retraction,
    stream_event,
    submission,
    withdrawn_at,
)
from plaudit.client.replies import (
    Acknowledged,
    Begun,
    Decision,
    Delta,
    FeedbackGiver,
    Reply,
    acknowledged,
    decision,
    reply,
)
from plaudit.client.requests import (
    Choosable,
    ChooseOptions,
    GenerateOptions,
    Prompt,
    choose_request,
    filled,
    generate_request,
)
from plaudit.errors import DeadlinePassed, Misconfigured
from plaudit.release.moves import ChannelState, ReleaseRow
from plaudit.v1 import assistant_pb2, domains_pb2, feedback_pb2, releases_pb2

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


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
        self._closed = False
        self._timeout = timeout
        self._patience = patience

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel."""
        self._closed = True
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
            yield stream_event(event, self.submit)

    async def choose(
        self,
        domain: str,
        prompt: Prompt,
        choices: Sequence[Choosable] = (),
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
        return acknowledged(await self._again(self._stubs.feedback.SubmitFeedback, submission(act)))

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
                    yield feedback_pb2.StreamFeedbackRequest(feedback=act_of(act))
            else:
                for message in bulk_messages(acts):
                    yield message

        self._check_loop()
        async for answer in self._each(self._stubs.feedback.StreamFeedback(requests(), timeout=timeout)):
            for acknowledged_act in bulk_acknowledgements(answer):
                yield acknowledged_act

    async def retract(self, handle: str, feedback_id: str, *, rater: str = "", session_id: str = "") -> dt.datetime:
        """As `Plaudit.retract`."""
        request = retraction(handle, feedback_id, rater, session_id)
        return withdrawn_at(await self._again(self._stubs.feedback.RetractFeedback, request))

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
        news = News()
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
        request = move(releases_pb2.PromoteReleaseRequest, channel, expected_generation, reason, version=version)
        return channel_state((await self._once(self._stubs.releases.PromoteRelease, request)).state)

    async def roll_back(
        self, channel: str, to_version: int | None = None, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """As `Plaudit.roll_back`."""
        request = move(releases_pb2.RollBackReleaseRequest, channel, expected_generation, reason, to_version=to_version)
        return channel_state((await self._once(self._stubs.releases.RollBackRelease, request)).state)

    async def pin(
        self, channel: str, pinned: bool = True, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """As `Plaudit.pin`."""
        request = move(releases_pb2.PinReleaseRequest, channel, expected_generation, reason, pinned=pinned)
        return channel_state((await self._once(self._stubs.releases.PinRelease, request)).state)

    async def _again(self, method: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:
        """Calls, and calls again if the error is retryable; all attempts share one deadline."""
        self._check_loop()
        patience = Patience(self._patience, self._target, timeout or self._timeout)
        try:
            async for attempt in tenacity.AsyncRetrying(**patience.policy()):
                with attempt:
                    return await self._call(patience, method(request, timeout=patience.left()))
        except Unreached as failed:
            raise failed.error from failed
        raise AssertionError("tenacity ends with an answer or an error")

    async def _call(self, patience: Patience, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except grpc.RpcError as error:
            raise patience.failed(error) from error

    async def _once(self, method: Callable[..., Any], request: Any) -> Any:
        self._check_loop()
        patience = Patience(0.0, self._target, self._timeout)
        try:
            return await self._call(patience, method(request, timeout=self._timeout))
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
                    first = await self._call(patience, answers.read())
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
        if self._closed:
            raise closed()


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise Misconfigured(
            "AsyncPlaudit needs a running event loop: make it inside an async function, with "
            "`async with AsyncPlaudit(target) as client:`, or use Plaudit, which needs none"
        ) from error
