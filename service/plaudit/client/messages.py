"""Messages that both clients send and read, beside requests (`requests`) and replies (`replies`).

What enters: acts, withdrawals and moves as a caller writes them, and messages of plaudit.v1. What leaves: messages and
frozen types. Never talks to the network.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from plaudit.client.replies import Begun, Delta, Reply, begun, reply
from plaudit.client.requests import filled
from plaudit.errors import InvalidField, PlauditError
from plaudit.v1 import assistant_pb2, errors_pb2, feedback_pb2, releases_pb2
from plaudit.wire import error_classes

Answer = TypeVar("Answer")

TOGETHER_ACTS = 256  # what a message of a bulk stream may hold
TOGETHER_BYTES = 48 * 1024  # below the smallest limit that a server can set for a message


@dataclass(frozen=True, slots=True)
class BulkAcknowledged:
    """What became of item `index` of a bulk stream; `error` is None if the act is durable."""

    index: int
    feedback_id: str
    error: PlauditError | None


class News:
    """Tells states of channels that were not told before."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def is_new(self, state: releases_pb2.ChannelState) -> bool:
        """Whether this state was not told before; from now on it was."""
        if self._told.get(state.channel) == state.generation:
            return False
        self._told[state.channel] = state.generation
        return True


def stream_event(
    event: assistant_pb2.StreamGenerateResponse, send: Callable[[feedback_pb2.Feedback], Answer]
) -> Begun[Answer] | Delta | Reply[Answer]:
    """The typed event of a stream."""
    match event.WhichOneof("event"):
        case "begun":
            return begun(event.begun, send)
        case "delta":
            return Delta(event.delta.index, event.delta.text)
    return reply(event.done, send)


def act_of(act: Any) -> feedback_pb2.Feedback:
    """The act, if it is one; raises InvalidField."""
    if not isinstance(act, feedback_pb2.Feedback):
        raise InvalidField(
            f"an act is a {type(act).__name__}; make acts with drafts(handle).thumbs_up() and its neighbours",
            field="act",
        )
    return act


def submission(act: Any) -> feedback_pb2.SubmitFeedbackRequest:
    """The request that sends an act."""
    return feedback_pb2.SubmitFeedbackRequest(feedback=act_of(act))


def bulk_messages(acts: Iterable[Any]) -> Iterator[feedback_pb2.StreamFeedbackRequest]:
    """Messages of a bulk stream: acts of a sequence together, those of an iterator one by one.

    Whoever gives an iterator may wait for an answer before the next act. Raises InvalidField for what is no act.
    """
    if not isinstance(acts, Sequence):
        for act in acts:
            yield feedback_pb2.StreamFeedbackRequest(feedback=act_of(act))
        return
    together, size = list[feedback_pb2.Feedback](), 0
    for act in acts:
        own = act_of(act).ByteSize()
        if together and (len(together) == TOGETHER_ACTS or size + own > TOGETHER_BYTES):
            yield feedback_pb2.StreamFeedbackRequest(acts=together)
            together, size = [], 0
        together.append(act)
        size += own
    if together:
        yield feedback_pb2.StreamFeedbackRequest(acts=together)


def bulk_acknowledgements(answer: feedback_pb2.StreamFeedbackResponse) -> list[BulkAcknowledged]:
    """The typed acknowledgements of a message of a bulk stream, in order of its acts."""
    return [_bulk_acknowledged(each) for each in answer.answers or (answer,)]


def _bulk_acknowledged(answer: feedback_pb2.StreamFeedbackResponse) -> BulkAcknowledged:
    if answer.accepted:
        return BulkAcknowledged(answer.index, answer.feedback_id, None)
    reason = errors_pb2.ErrorReason.Name(answer.reason).removeprefix("ERROR_REASON_")
    cls = error_classes().get(reason, PlauditError)
    return BulkAcknowledged(answer.index, answer.feedback_id, cls(answer.message))


def retraction(handle: str, feedback_id: str, rater: str, session_id: str) -> Any:
    """The request that withdraws an act."""
    return filled(
        feedback_pb2.RetractFeedbackRequest, handle=handle, feedback_id=feedback_id, rater=rater, session_id=session_id
    )


def withdrawn_at(answer: feedback_pb2.RetractFeedbackResponse) -> dt.datetime:
    """When a withdrawal was accepted."""
    accepted: dt.datetime = answer.accepted_at.ToDatetime(dt.UTC)
    return accepted


def move(message: Any, channel: str, expected_generation: int | None, reason: str, **move: Any) -> Any:
    """The request of a move of releases."""
    return filled(message, channel=channel, expected_generation=expected_generation, reason=reason, **move)
