"""FeedbackService: an acknowledgement means that the act is durable.

What enters: acts with the handle of their interaction. What leaves: records in `plaudit.feedback`, and then an OK.
The decisions are in `acts`; here is only the order: decide, append, answer.
"""

from __future__ import annotations

import contextvars
import datetime as dt
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from plaudit.access.limits import Limits
from plaudit.access.rights import caller
from plaudit.errors import DeadlinePassed, PlauditError
from plaudit.eventlog import EventLog, Topic
from plaudit.eventlog.bodies import timestamp
from plaudit.eventlog.codec import encode_feedback, encode_retraction
from plaudit.metrics import Metrics
from plaudit.serving.acts import MOST_LOOKED_AT, Acts
from plaudit.serving.calls import Call
from plaudit.serving.interceptors import Unreadable
from plaudit.serving.recording import PRODUCER
from plaudit.serving.validate import refused
from plaudit.telemetry import traceparent
from plaudit.types import Feedback, FeedbackKind
from plaudit.v1 import feedback_pb2, feedback_pb2_grpc

# One append takes what has come meanwhile: few enough for one record batch, enough to share a disk flush.
_BATCH = 256
_READ_AHEAD = 2 * _BATCH
_ACT_BYTES = 16_384  # so that what is read ahead has 8 MiB at most, and one message
_LOOK_SECONDS = 0.2


_Message = feedback_pb2.StreamFeedbackRequest


class FeedbackServicer(feedback_pb2_grpc.FeedbackServiceServicer):  # type: ignore[misc]
    """Takes feedback."""

    def __init__(self, acts: Acts, log: EventLog, metrics: Metrics, limits: Limits, *, stream_seconds: float) -> None:
        self._limits = limits
        self._stream_seconds = stream_seconds
        self._acts = acts
        self._log = log
        self._metrics = metrics
        self._append_seconds = metrics.append_seconds.labels(Topic.FEEDBACK.value)
        self._accepted: dict[tuple[str, FeedbackKind], Any] = {}

    def SubmitFeedback(
        self, request: feedback_pb2.SubmitFeedbackRequest, context: Any
    ) -> feedback_pb2.SubmitFeedbackResponse:
        """See feedback.proto."""
        try:
            feedback = self._acts.accept(request.feedback, dt.datetime.now(dt.UTC))
            self._append([feedback])
        except PlauditError as error:
            self._metrics.feedback_refused.labels(error.reason).inc()
            raise
        return feedback_pb2.SubmitFeedbackResponse(
            feedback_id=feedback.feedback_id,
            interaction_id=feedback.interaction_id,
            accepted_at=timestamp(feedback.accepted_at),
        )

    def StreamFeedback(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
        """See feedback.proto. Items that came while the last append ran share the next one."""
        index = 0
        ahead = _ReadAhead(request_iterator, context)
        appended: Future[list[feedback_pb2.StreamFeedbackResponse]] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="plaudit-bulk") as appending:
            for batch in ahead.batches(Call(context, self._stream_seconds)):
                messages: list[list[_Said]] = []
                for message in batch:
                    messages.append(_acts_of(message, index))
                    index += _acts_in(message)
                decided = self._decided(batch, messages)
                if appended is not None:  # before the next append begins: acts of one key keep their order
                    yield from appended.result()
                    appended = None
                if ahead.has_more():
                    # While the log takes this batch, the next one is decided.
                    appended = appending.submit(contextvars.copy_context().run, self._settled, decided)
                else:  # the caller may wait for these answers before it sends more
                    yield from self._settled(decided)
            if appended is not None:
                yield from appended.result()

    def RetractFeedback(
        self, request: feedback_pb2.RetractFeedbackRequest, context: Any
    ) -> feedback_pb2.RetractFeedbackResponse:
        """See feedback.proto."""
        retraction = self._acts.retraction(request, dt.datetime.now(dt.UTC))
        records = self._log.find(Topic.FEEDBACK, retraction.interaction_id, MOST_LOOKED_AT)
        self._acts.check_retraction(retraction, records)
        record = encode_retraction(retraction, producer=PRODUCER, traceparent=traceparent())
        started = time.perf_counter()
        self._log.append(Topic.FEEDBACK, retraction.interaction_id, record)
        self._append_seconds.observe(time.perf_counter() - started)
        return feedback_pb2.RetractFeedbackResponse(accepted_at=timestamp(retraction.accepted_at))

    def _decided(self, batch: Sequence[Any], messages: Sequence[Sequence[_Said]]) -> _Decided:
        """What becomes of the acts of these messages, if the log takes those that are accepted."""
        acts = [act for each in messages for act in each]
        answers: list[feedback_pb2.StreamFeedbackResponse] = []
        accepted: list[tuple[int, Feedback]] = []
        name = caller().name
        for place, said in enumerate(acts):
            try:
                self._limits.key(name)
                if said.fault is not None:
                    raise said.fault
                feedback = self._acts.accept(said.message, dt.datetime.now(dt.UTC))
            except PlauditError as error:
                answers.append(self._refusal(error, said.message.feedback_id, said.place))
            else:
                accepted.append((place, feedback))
                answers.append(
                    feedback_pb2.StreamFeedbackResponse(
                        index=said.place, feedback_id=feedback.feedback_id, accepted=True
                    )
                )
        return _Decided(batch, messages, answers, accepted)

    def _settled(self, decided: _Decided) -> list[feedback_pb2.StreamFeedbackResponse]:
        """One answer per message, in order; the accepted acts are durable together."""
        answers = decided.answers
        try:
            self._append([feedback for _, feedback in decided.accepted])
        except PlauditError as error:
            # Nothing of the batch is acknowledged; what did become durable is the same act when it is sent again.
            for place, feedback in decided.accepted:
                answers[place] = self._refusal(error, feedback.feedback_id, answers[place].index)
        left, replies = iter(answers), []
        for message, acts in zip(decided.batch, decided.messages, strict=True):
            own = list(itertools.islice(left, len(acts)))
            if isinstance(message, Unreadable) or not message.acts or acts[0].fault is not None:
                replies.append(own[0])
            else:
                whole = all(answer.accepted for answer in own)
                replies.append(feedback_pb2.StreamFeedbackResponse(index=own[0].index, accepted=whole, answers=own))
        return replies

    def _refusal(self, error: PlauditError, feedback_id: str, index: int) -> feedback_pb2.StreamFeedbackResponse:
        """The answer to an act of a stream that is not taken."""
        self._metrics.feedback_refused.labels(error.reason).inc()
        return feedback_pb2.StreamFeedbackResponse(
            index=index,
            feedback_id=feedback_id,
            accepted=False,
            reason=f"ERROR_REASON_{error.reason}",
            message=error.message,
        )

    def _append(self, acts: Sequence[Feedback]) -> None:
        if not acts:
            return
        started = time.perf_counter()
        trace = traceparent()
        items = [(act.interaction_id, encode_feedback(act, producer=PRODUCER, traceparent=trace)) for act in acts]
        if len(items) == 1:
            self._log.append(Topic.FEEDBACK, *items[0])
        else:
            self._log.append_many(Topic.FEEDBACK, items)
        self._append_seconds.observe(time.perf_counter() - started)
        kinds = [(act.channel.domain, act.kind) for act in acts]
        for what, count in Counter(kinds).items() if len(kinds) > 1 else ((kinds[0], 1),):
            counter = self._accepted.get(what)
            if counter is None:  # of a domain that is served and a kind that it declares: there are few
                counter = self._accepted[what] = self._metrics.feedback_accepted.labels(what[0], what[1].value)
            counter.inc(count)


class _Said(NamedTuple):
    """An act of a stream and its place there, or what is wrong with the message that brought it."""

    place: int
    message: feedback_pb2.Feedback
    fault: PlauditError | None = None


class _Decided(NamedTuple):
    """Messages of a stream with their acts, an answer to each act, and the accepted ones with their places in it."""

    batch: Sequence[Any]
    messages: Sequence[Sequence[_Said]]
    answers: list[feedback_pb2.StreamFeedbackResponse]
    accepted: Sequence[tuple[int, Feedback]]


def _acts_of(message: Any, index: int) -> list[_Said]:
    """The acts of a message whose first one is at `index`; a single one if the message as a whole is refused.

    However many acts it holds: answers to each would be far larger than what was sent.
    """
    if isinstance(message, Unreadable):
        return [_Said(index, feedback_pb2.Feedback(), message.error)]
    if not message.acts:
        return [_Said(index, message.feedback)]
    if message.HasField("feedback"):
        return [
            _Said(index, feedback_pb2.Feedback(), refused("acts", "set beside feedback", "empty if feedback is set"))
        ]
    if (count := len(message.acts)) > _BATCH:
        return [_Said(index, feedback_pb2.Feedback(), refused("acts", f"{count} acts", f"at most {_BATCH}"))]
    return [_Said(index + place, act) for place, act in enumerate(message.acts)]


class _Queue(queue.Queue[Any]):
    """A queue whose size is the number of acts in it, however many a message holds; a long one counts as several."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._load = 0

    def _qsize(self) -> int:
        return self._load

    def _put(self, item: Any) -> None:
        load = max(_acts_in(item), item.ByteSize() // _ACT_BYTES if isinstance(item, _Message) else 0)
        self._load += load
        super()._put((item, load))

    def _get(self) -> Any:
        item, load = super()._get()
        self._load -= load
        return item


def _acts_in(message: Any) -> int:
    """How many places in the stream a message takes: its acts, and one at least."""
    return max(1, len(message.acts)) if isinstance(message, _Message) else 1


class _ReadAhead:
    """Reads a stream in a thread, because a stream can only be waited for; bounded, so that it pushes back."""

    def __init__(self, requests: Iterator[Any], context: Any) -> None:
        self._requests = requests
        self._context = context
        self._items = _Queue(maxsize=_READ_AHEAD)
        self._end = object()
        self._left = threading.Event()
        threading.Thread(target=self._read, name="plaudit-bulk", daemon=True).start()

    def batches(self, call: Call) -> Iterator[list[Any]]:
        """What has come since the last batch, in order; raises DeadlinePassed when the call's time is over."""
        try:
            item = self._next(call)
            while item is not self._end:
                batch, acts = [item], _acts_in(item)
                item = None
                while acts < _BATCH and item is not self._end and not self._items.empty():
                    item = self._items.get_nowait()
                    if item is not self._end:
                        batch.append(item)
                        acts += _acts_in(item)
                yield batch
                if item is not self._end:
                    item = self._next(call)
        finally:
            self._left.set()

    def has_more(self) -> bool:
        """Whether something that was read waits already, be it the end."""
        return not self._items.empty()

    def _next(self, call: Call) -> Any:
        try:
            return self._items.get(timeout=call.remaining())
        except queue.Empty:
            raise DeadlinePassed() from None

    def _read(self) -> None:
        # The library raises a bare Exception here when the call ends; the call's own end says what it was.
        try:
            for request in self._requests:
                if not self._put(request):
                    return
        except Exception:
            if self._context.is_active():
                raise
        finally:
            self._put(self._end)

    def _put(self, item: Any) -> bool:
        while not self._left.is_set():
            try:
                self._items.put(item, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False
