"""Messages that both clients send and read, beside requests (`client_requests`) and replies (`replies`).

What enters: acts, withdrawals and moves as a caller writes them, and messages of plaudit.v1. What leaves: messages and
frozen types. Never talks to the network.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from plaudit.client_requests import filled
from plaudit.errors import InvalidField, PlauditError
from plaudit.replies import Begun, Delta, Reply, begun, reply
from plaudit.v1 import assistant_pb2, errors_pb2, feedback_pb2, releases_pb2
from plaudit.wire import error_classes

Answer = TypeVar("Answer")


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


def bulk_acknowledged(answer: feedback_pb2.StreamFeedbackResponse) -> BulkAcknowledged:
    """The typed acknowledgement of one act of a bulk stream."""
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
