"""AssistantService: protobuf in, protobuf out; the work is in `generation`."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.access.limits import Limits
from plaudit.access.rights import NAMES_RELEASES, SEES_TOKENS, check_channel, check_operator
from plaudit.engine.protocol import Ticket
from plaudit.errors import Cancelled, DeadlinePassed, PlauditError, PluginFailed
from plaudit.metrics import Metrics
from plaudit.serving.calls import Call
from plaudit.serving.generation import Generation, Started
from plaudit.serving.recording import Recorded
from plaudit.serving.redacting import Redactor
from plaudit.serving.validate import CompletionsWanted, choice_wanted, completions_wanted
from plaudit.settings import ServeSettings
from plaudit.telemetry import get_logger
from plaudit.types import Candidate, Channel, FinishReason
from plaudit.v1 import assistant_pb2, assistant_pb2_grpc

log = get_logger("plaudit.assistant")

_FINISH = {
    FinishReason.EOS: assistant_pb2.FINISH_REASON_EOS,
    FinishReason.STOP: assistant_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: assistant_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: assistant_pb2.FINISH_REASON_CANCELLED,
    None: assistant_pb2.FINISH_REASON_UNSPECIFIED,
}


class AssistantServicer(assistant_pb2_grpc.AssistantServiceServicer):  # type: ignore[misc]
    """Completions and choices."""

    def __init__(
        self, generation: Generation, settings: ServeSettings, metrics: Metrics, limits: Limits, redactor: Redactor
    ) -> None:
        self._limits = limits
        self._redactor = redactor
        self._generation = generation
        self._settings = settings
        self._metrics = metrics

    def Generate(self, request: assistant_pb2.GenerateRequest, context: Any) -> assistant_pb2.GenerateResponse:
        """See assistant.proto."""
        wanted = self._completions(request)
        return self._generated(self._generation.generate(wanted, self._call(context)), request)

    def StreamGenerate(
        self, request: assistant_pb2.StreamGenerateRequest, context: Any
    ) -> Iterator[assistant_pb2.StreamGenerateResponse]:
        """See assistant.proto."""
        arrived = time.perf_counter()
        call = self._call(context)
        wanted = self._completions(request.request)
        started = self._generation.start(wanted, call)
        if isinstance(started, Recorded):
            yield from _told_again(started, self._generated(started, request.request))
            return
        call.watch(started.tickets)
        sent = [""] * len(started.tickets)
        ended = False
        try:
            yield _begun(started.head.interaction_id, started.candidate_ids, *self._generation.begin(started))
            for index, text in _deltas(started.tickets, call):
                if not any(sent):
                    self._metrics.first_text_seconds.observe(time.perf_counter() - arrived)
                sent[index] += text
                yield assistant_pb2.StreamGenerateResponse(delta=assistant_pb2.TextDelta(index=index, text=text))
            recorded = self._generation.finish(started, call.results(started.tickets), streamed=True)
            ended = True
            yield assistant_pb2.StreamGenerateResponse(done=self._generated(recorded, request.request))
        except (Cancelled, DeadlinePassed, PluginFailed, GeneratorExit):
            # The caller's hand or clock ended it, it left while a message was written, or the domain could not say what
            # is to be shown. People read what went out.
            if not ended:
                self._record_stop(started, sent)
            raise

    def _record_stop(self, started: Started, sent: Sequence[str]) -> None:
        try:
            self._generation.stop(started, sent)
        except PlauditError as error:
            # The caller is told how its call ended; feedback on what went out waits in vain for the interaction.
            log.error("a stopped stream has no record", reason=error.reason)

    def Choose(self, request: assistant_pb2.ChooseRequest, context: Any) -> assistant_pb2.ChooseResponse:
        """See assistant.proto."""
        wanted = choice_wanted(request)
        self._check(wanted.envelope.channel, wanted.version is not None, False)
        wanted = dataclasses.replace(wanted, envelope=self._redactor.envelope(wanted.envelope))
        return _chosen(self._generation.choose(wanted, self._call(context)))

    def _completions(self, request: assistant_pb2.GenerateRequest) -> CompletionsWanted:
        """The request, checked, allowed and redacted."""
        wanted = completions_wanted(request, self._settings.max_tokens)
        self._check(wanted.envelope.channel, bool(wanted.versions), request.token_ids)
        return dataclasses.replace(wanted, envelope=self._redactor.envelope(wanted.envelope))

    def _check(self, channel: Channel, names_releases: bool, wants_tokens: bool) -> None:
        """What the caller may do with this request, before anything is looked up for it."""
        check_channel(channel)
        if names_releases:
            check_operator(NAMES_RELEASES)
        if wants_tokens:
            check_operator(SEES_TOKENS)
        self._limits.tenant(channel.tenant)

    def _generated(self, recorded: Recorded, asked: assistant_pb2.GenerateRequest) -> assistant_pb2.GenerateResponse:
        interaction = recorded.interaction
        return assistant_pb2.GenerateResponse(
            interaction_id=interaction.interaction_id,
            completions=[
                assistant_pb2.Completion(
                    candidate_id=candidate.candidate_id,
                    text=candidate.displayed_text,
                    release_version=candidate.release_version,
                    release_digest=candidate.release_digest,
                    finish_reason=_FINISH[candidate.finish_reason],
                    tokens=len(candidate.tokens),
                    logprob_raw=math.fsum(candidate.logprobs_raw),
                    valid=candidate.valid,
                    token_ids=candidate.tokens if asked.token_ids else (),
                    logprobs=self._logprobs(candidate) if asked.logprobs else (),
                )
                for candidate in interaction.candidates
            ],
            handle=recorded.handle,
            handle_expires_at=_timestamp(recorded.expires_at),
            prompt_tokens=len(interaction.prompt_tokens),
        )

    def _logprobs(self, candidate: Candidate) -> list[assistant_pb2.TokenLogprob]:
        return [
            assistant_pb2.TokenLogprob(text=text, logprob=logprob)
            for text, logprob in zip(self._generation.pieces(candidate), candidate.logprobs_raw, strict=True)
        ]

    def _call(self, context: Any) -> Call:
        return Call(context, self._settings.default_deadline_seconds)


def _deltas(tickets: Sequence[Ticket], call: Call) -> Iterator[tuple[int, str]]:
    """New text of every completion as it comes, with its index."""
    try:
        if len(tickets) == 1:
            for text in tickets[0].deltas(call.remaining()):
                yield 0, text
        else:
            yield from _interleaved(tickets, call)
    except TimeoutError as error:
        raise DeadlinePassed() from error


def _interleaved(tickets: Sequence[Ticket], call: Call) -> Iterator[tuple[int, str]]:
    """As `_deltas`, for several completions: a thread reads each, because a ticket's text can only be waited for."""
    pieces: queue.SimpleQueue[tuple[int, str | BaseException | None]] = queue.SimpleQueue()
    seconds = call.remaining()

    def read(index: int, ticket: Ticket) -> None:
        # Whatever ends a reader must reach the call, or it would wait for this completion for ever.
        try:
            for text in ticket.deltas(seconds):
                pieces.put((index, text))
            pieces.put((index, None))
        except BaseException as error:
            pieces.put((index, error))

    for index, ticket in enumerate(tickets):
        threading.Thread(target=read, args=(index, ticket), name="plaudit-deltas", daemon=True).start()
    open_readers = len(tickets)
    while open_readers:
        index, piece = pieces.get()
        if piece is None:
            open_readers -= 1
        elif isinstance(piece, BaseException):
            raise piece
        else:
            yield index, piece


def _begun(
    interaction_id: str, candidate_ids: Sequence[str], handle: str, expires_at: dt.datetime
) -> assistant_pb2.StreamGenerateResponse:
    begun = assistant_pb2.StreamBegun(
        interaction_id=interaction_id,
        candidate_ids=candidate_ids,
        handle=handle,
        handle_expires_at=_timestamp(expires_at),
    )
    return assistant_pb2.StreamGenerateResponse(begun=begun)


def _told_again(
    recorded: Recorded, done: assistant_pb2.GenerateResponse
) -> Iterator[assistant_pb2.StreamGenerateResponse]:
    """The stream of an answer that was recorded before: each completion in one piece."""
    interaction = recorded.interaction
    ids = [candidate.candidate_id for candidate in interaction.candidates]
    yield _begun(interaction.interaction_id, ids, recorded.handle, recorded.expires_at)
    for index, candidate in enumerate(interaction.candidates):
        if candidate.text:
            delta = assistant_pb2.TextDelta(index=index, text=candidate.text)
            yield assistant_pb2.StreamGenerateResponse(delta=delta)
    yield assistant_pb2.StreamGenerateResponse(done=done)


def _chosen(recorded: Recorded) -> assistant_pb2.ChooseResponse:
    interaction = recorded.interaction
    return assistant_pb2.ChooseResponse(
        interaction_id=interaction.interaction_id,
        ranking=[
            assistant_pb2.RankedOption(
                option_id=candidate.option_id,
                candidate_id=candidate.candidate_id,
                probability=candidate.probability,
                logprob=math.fsum(candidate.logprobs_sampled),
            )
            for candidate in interaction.candidates
        ],
        release_version=interaction.candidates[0].release_version,
        release_digest=interaction.candidates[0].release_digest,
        handle=recorded.handle,
        handle_expires_at=_timestamp(recorded.expires_at),
        # A record of an earlier version that is asked for again names none: it was the most probable one.
        decision=interaction.decision or max(interaction.candidates, key=lambda each: each.probability).option_id,
    )


def _timestamp(moment: dt.datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
