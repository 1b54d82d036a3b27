"""The synchronous client (`Plaudit`).

What enters: prompts, options, acts of people. What leaves: typed replies, and errors as the classes of
`plaudit.errors`. Never imports torch.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, Unpack

import grpc
import tenacity

from plaudit.access.credentials import AccessOptions
from plaudit.client.calls import DEFAULT_SECONDS, Patience, Unreached, call_error, connect
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
from plaudit.errors import DeadlinePassed
from plaudit.release.moves import ChannelState, ReleaseRow
from plaudit.v1 import assistant_pb2, domains_pb2, feedback_pb2, releases_pb2


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
                If not set, a busy service is tried for 10 s, and one that cannot be reached yet until the deadline.
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
        self._stubs.close()
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

        Arguments and errors as for `generate`. If you stop reading, the call ends, and what was sent is recorded.
        """
        request = assistant_pb2.StreamGenerateRequest(request=generate_request(domain, prompt, options))
        for event in self._stream(self._stubs.assistant.StreamGenerate, request, timeout):
            yield stream_event(event, self.submit)

    def choose(
        self,
        domain: str,
        prompt: Prompt,
        choices: Sequence[Choosable] = (),
        *,
        timeout: float | None = None,
        **options: Unpack[ChooseOptions],
    ) -> Decision[Acknowledged]:
        """Options in order of their probability, and the one to act on, recorded.

        Args:
            domain: Name of the domain that decides.
            prompt: As for `generate`.
            choices: The options, 2 to 50: texts, `Option(option_id, text)`, or objects with these two fields; leave
                them out if the domain makes them itself.
            timeout: As for `generate`.
            options: See `ChooseOptions`.
        """
        request = choose_request(domain, prompt, choices, options)
        return decision(self._again(self._stubs.assistant.Choose, request, timeout), self.submit)

    def feedback_from_handle(self, handle: str, candidate_ids: Sequence[str] = ()) -> FeedbackGiver[Acknowledged]:
        """An object that gives feedback, if only the handle was kept.

        Args:
            handle: The `handle` of a reply, decision or begun stream.
            candidate_ids: Ids of its candidates; if they are left out, the service finds candidates by their place.
        """
        return FeedbackGiver(handle=handle, candidate_ids=tuple(candidate_ids), send=self.submit)

    def submit(self, act: feedback_pb2.Feedback) -> Acknowledged:
        """Sends one piece of feedback (see `drafts`); it is durable when this returns."""
        return acknowledged(self._again(self._stubs.feedback.SubmitFeedback, submission(act)))

    def submit_many(
        self, acts: Iterable[feedback_pb2.Feedback], *, timeout: float | None = None
    ) -> Iterator[BulkAcknowledged]:
        """Sends many pieces of feedback (see `drafts`); yields one acknowledgement for each, in order.

        A list is sent in messages of up to 256 pieces, which costs less; an iterator is sent piece by piece. `timeout`
        is in seconds.
        """
        for answer in self._each(self._stubs.feedback.StreamFeedback(bulk_messages(acts), timeout=timeout)):
            yield from bulk_acknowledgements(answer)

    def retract(self, handle: str, feedback_id: str, *, rater: str = "", session_id: str = "") -> dt.datetime:
        """Withdraws a piece of feedback; returns when the withdrawal was accepted.

        Args:
            handle: The handle under which it was given.
            feedback_id: Its id, from the acknowledgement.
            rater: Who gave it; only they can withdraw it.
            session_id: Their session, if that stood for the rater.
        """
        request = retraction(handle, feedback_id, rater, session_id)
        return withdrawn_at(self._again(self._stubs.feedback.RetractFeedback, request))

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

        With a `timeout` in seconds it ends with DeadlinePassed. Without one it goes on for ever: if the service ends
        the watch after `serve.stream_seconds`, it is opened again.
        """
        request = filled(releases_pb2.WatchReleasesRequest, channel=channel)
        news = News()
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
            expected_generation: The channel's generation that you saw; raises GenerationChanged if the channel has
                another one by now. If left out, any.
            reason: Why, for the record.
        """
        request = move(releases_pb2.PromoteReleaseRequest, channel, expected_generation, reason, version=version)
        return channel_state(self._once(self._stubs.releases.PromoteRelease, request).state)

    def roll_back(
        self, channel: str, to_version: int | None = None, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """Rolls back to an earlier release: `to_version`, or the previous live one. Others as for `promote`."""
        request = move(releases_pb2.RollBackReleaseRequest, channel, expected_generation, reason, to_version=to_version)
        return channel_state(self._once(self._stubs.releases.RollBackRelease, request).state)

    def pin(
        self, channel: str, pinned: bool = True, *, expected_generation: int | None = None, reason: str = ""
    ) -> ChannelState:
        """Pins the live release, so that the learner cannot change it, or unpins it. Arguments as for `promote`."""
        request = move(releases_pb2.PinReleaseRequest, channel, expected_generation, reason, pinned=pinned)
        return channel_state(self._once(self._stubs.releases.PinRelease, request).state)

    def _again(self, method: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:
        """Calls, and calls again if the error is retryable; all attempts share one deadline."""
        patience = Patience(self._patience, self._target, timeout or self._timeout)
        try:
            for attempt in tenacity.Retrying(**patience.policy()):
                with attempt:
                    return self._call(patience, lambda: method(request, timeout=patience.left()))
        except Unreached as failed:
            raise failed.error from failed
        raise AssertionError("tenacity ends with an answer or an error")

    def _call(self, patience: Patience, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except grpc.RpcError as error:
            raise patience.failed(error) from error

    def _once(self, method: Callable[..., Any], request: Any) -> Any:
        patience = Patience(0.0, self._target, self._timeout)
        try:
            return self._call(patience, lambda: method(request, timeout=self._timeout))
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
        """The messages of a stream. Until the first one comes nothing has begun, so it is retried like an answer."""
        patience = Patience(self._patience, self._target, timeout or self._timeout)
        try:
            for attempt in tenacity.Retrying(**patience.policy()):
                with attempt:
                    answers = method(request, timeout=patience.left())
                    first = self._call(patience, functools.partial(next, answers, None))
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
