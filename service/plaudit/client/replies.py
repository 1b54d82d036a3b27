"""What the client gives back, and how a reply turns into feedback.

What enters: protobuf replies. What leaves: frozen typed replies whose methods send feedback under their handle. The
same classes serve both clients: their type parameter is what sending gives, an `Acknowledged` or an awaitable of one.
Never imports torch, and never talks to the network itself.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar, Unpack

from plaudit import ids
from plaudit.client.requests import filled, known
from plaudit.errors import InvalidField, UnknownCandidate
from plaudit.types import FinishReason
from plaudit.v1 import assistant_pb2, feedback_pb2

Sent = TypeVar("Sent")

_FINISH = {
    assistant_pb2.FINISH_REASON_EOS: FinishReason.EOS,
    assistant_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    assistant_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    assistant_pb2.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The act is durable."""

    feedback_id: str
    interaction_id: str
    accepted_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of completion `index` of a stream; what people should finally see is in the reply at its end."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What one token adds to the text as generated, and its log-probability (nats) at temperature 1, untruncated."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyCompletion:
    """One completion; `text` is what people should see.

    `tokens` is their number, `logprob_raw` the sum of their log-probs (nats) at temperature 1. `logprobs` and
    `token_ids` are empty unless the request asked for them.
    """

    candidate_id: str
    text: str
    release_version: int
    release_digest: str
    finish_reason: FinishReason | None
    tokens: int
    logprob_raw: float
    valid: bool
    logprobs: tuple[TokenLogprob, ...] = field(repr=False, default=())
    token_ids: tuple[int, ...] = field(repr=False, default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedOption:
    """One option with its probability among those that were given."""

    option_id: str
    candidate_id: str
    probability: float
    logprob: float


# A candidate is named by its place in the reply, its id, or the object itself.
Which: TypeAlias = int | str | ReplyCompletion | RankedOption


class ActOptions(TypedDict, total=False):
    """Who gives a piece of feedback, and what is recorded with it."""

    rater: str
    """Who gives it; the service keeps a pseudonym. If left out, the rater that the handle names, if any."""
    session_id: str
    """The person's session; it stands for the rater if there is none."""
    reasons: Sequence[str]
    """Reasons that the domain declares, such as "too_long"; at most 16."""
    tags: Mapping[str, str]
    """Your own tags, recorded with the feedback: at most 16. For facts about the product, never about people."""


@dataclass(frozen=True, kw_only=True)
class FeedbackGiver(Generic[Sent]):
    """Sends feedback under a handle, which is all that it needs: candidates are named by their place in the reply.

    `candidate_ids` may be empty if only the handle was kept; then the service finds the ids.
    """

    handle: str = field(repr=False)
    candidate_ids: tuple[str, ...] = ()
    send: Callable[[feedback_pb2.Feedback], Sent] = field(repr=False, compare=False)

    def thumbs_up(self, candidate: Which = 0, *, whole_conversation: bool = False, **about: Unpack[ActOptions]) -> Sent:
        """The candidate is good.

        Args:
            candidate: Its place in the reply, its id, or the object itself.
            whole_conversation: It is about all turns up to the candidate; the domain must declare `conversations`.
            about: Who gives it and why; see `ActOptions`.
        """
        return self._thumbs(candidate, True, whole_conversation, about)

    def thumbs_down(
        self, candidate: Which = 0, *, whole_conversation: bool = False, **about: Unpack[ActOptions]
    ) -> Sent:
        """The candidate is not good; arguments as of `thumbs_up`."""
        return self._thumbs(candidate, False, whole_conversation, about)

    def choose(
        self,
        chosen: Which,
        other: Which,
        *,
        tie: bool = False,
        tie_offered: bool = False,
        **about: Unpack[ActOptions],
    ) -> Sent:
        """One candidate is better than another.

        Args:
            chosen: The better one; either of the two if it is a tie.
            other: The other one.
            tie: Neither is better.
            tie_offered: The person could have said that neither is better.
            about: Who gives it and why; see `ActOptions`.
        """
        act = filled(
            feedback_pb2.Choice,
            chosen_id=self._id(chosen),
            other_id=self._id(other),
            tie=tie,
            tie_offered=tie or tie_offered,
        )
        return self._send(about, choice=act)

    def rank(self, best_first: Sequence[Which], **about: Unpack[ActOptions]) -> Sent:
        """All candidates in order, the best first; every candidate of the reply must be in it once."""
        if isinstance(best_first, str) or not isinstance(best_first, Iterable):
            raise InvalidField(
                f"the ranking is a {type(best_first).__name__}; send a list of places, such as [1, 0]", field="ranking"
            )
        order = [self._id(candidate) for candidate in best_first]
        return self._send(about, ranking=feedback_pb2.Ranking(candidate_ids=order))

    def correct(self, text: str, candidate: Which = 0, **about: Unpack[ActOptions]) -> Sent:
        """A better text for the candidate, 1 to 65,536 bytes."""
        act = _said(feedback_pb2.Correction, candidate_id=self._id(candidate), text=text)
        return self._send(about, correction=act)

    def rate(
        self, value: float, candidate: Which = 0, *, whole_conversation: bool = False, **about: Unpack[ActOptions]
    ) -> Sent:
        """A value on the domain's scale (see `domains()`); `whole_conversation` as for `thumbs_up`."""
        act = _said(feedback_pb2.Rating, candidate_id=self._id(candidate), value=value)
        return self._send(about, rating=act, whole_conversation=whole_conversation)

    def label(self, value: str, candidate: Which = 0, **about: Unpack[ActOptions]) -> Sent:
        """The right verdict, one of the domain's labels (see `domains()`)."""
        act = _said(feedback_pb2.Label, candidate_id=self._id(candidate), value=value)
        return self._send(about, label=act)

    def signal(self, name: str, value: float = 1.0, candidate: Which = 0, **about: Unpack[ActOptions]) -> Sent:
        """Behaviour, such as "skip", with a value on its scale (see `domains()` for names and scales)."""
        act = _said(feedback_pb2.Signal, candidate_id=self._id(candidate), name=name, value=value)
        return self._send(about, signal=act)

    def comment(self, text: str, candidate: Which | None = None, **about: Unpack[ActOptions]) -> Sent:
        """Free text about a candidate, or about the whole interaction; never learnt from by itself."""
        named = "" if candidate is None else self._id(candidate)
        return self._send(about, comment=_said(feedback_pb2.Comment, candidate_id=named, text=text))

    def _thumbs(self, candidate: Which, up: bool, whole_conversation: bool, about: ActOptions) -> Sent:
        act = feedback_pb2.Thumbs(candidate_id=self._id(candidate), up=up)
        return self._send(about, thumbs=act, whole_conversation=whole_conversation)

    def _send(self, about: ActOptions, **act: Any) -> Sent:
        # The id is made here, before the first attempt, so that sending again is the same act.
        return self.send(
            filled(
                feedback_pb2.Feedback,
                feedback_id=ids.new_id(),
                handle=self.handle,
                **act,
                **known(about, ActOptions),
            )
        )

    def _id(self, candidate: Which) -> str:
        if isinstance(candidate, str):
            return candidate
        if isinstance(candidate, ReplyCompletion | RankedOption):
            return candidate.candidate_id
        if isinstance(candidate, bool) or not isinstance(candidate, int):
            raise InvalidField(
                f"a candidate is a {type(candidate).__name__}; name it by its place in the reply or its id, or send it",
                field="candidate_id",
            )
        known = len(self.candidate_ids)
        if candidate < 0 or (known and candidate >= known):
            raise UnknownCandidate(
                f"there is no candidate {candidate}{f' among {known}' if known else ''}; count from 0",
                candidate_id=candidate,
            )
        return self.candidate_ids[candidate] if known else f"#{candidate}"


@dataclass(frozen=True, kw_only=True)
class Begun(FeedbackGiver[Sent]):
    """The first message of a stream: it can give feedback on what was sent, even if the stream is stopped."""

    interaction_id: str
    handle_expires_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Reply(FeedbackGiver[Sent]):
    """The completions of one recorded interaction."""

    interaction_id: str
    completions: tuple[ReplyCompletion, ...]
    handle_expires_at: dt.datetime
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        """Generated tokens of all completions."""
        return sum(completion.tokens for completion in self.completions)

    @property
    def text(self) -> str:
        """Text of the first completion."""
        return self.completions[0].text


@dataclass(frozen=True, kw_only=True)
class Decision(FeedbackGiver[Sent]):
    """The options of one recorded interaction in the order to be shown, and the id of the one to act on."""

    interaction_id: str
    ranking: tuple[RankedOption, ...]
    release_version: int
    release_digest: str
    handle_expires_at: dt.datetime
    decision: str

    @property
    def decided(self) -> RankedOption:
        """The option to act on: the one that is expected to cost least, or that was drawn first if you explore."""
        # A service before this field named none: then it is the most probable one.
        likely = max(self.ranking, key=lambda option: option.probability)
        return next((option for option in self.ranking if option.option_id == self.decision), likely)


def begun(message: assistant_pb2.StreamBegun, send: Callable[[feedback_pb2.Feedback], Sent]) -> Begun[Sent]:
    """The typed first message of a stream."""
    return Begun(
        handle=message.handle,
        candidate_ids=tuple(message.candidate_ids),
        send=send,
        interaction_id=message.interaction_id,
        handle_expires_at=message.handle_expires_at.ToDatetime(dt.UTC),
    )


def reply(message: assistant_pb2.GenerateResponse, send: Callable[[feedback_pb2.Feedback], Sent]) -> Reply[Sent]:
    """The typed reply of a response."""
    return Reply(
        handle=message.handle,
        candidate_ids=tuple(completion.candidate_id for completion in message.completions),
        send=send,
        interaction_id=message.interaction_id,
        handle_expires_at=message.handle_expires_at.ToDatetime(dt.UTC),
        completions=tuple(
            ReplyCompletion(
                candidate_id=completion.candidate_id,
                text=completion.text,
                release_version=completion.release_version,
                release_digest=completion.release_digest,
                finish_reason=_FINISH.get(completion.finish_reason),
                tokens=completion.tokens,
                logprob_raw=completion.logprob_raw,
                valid=completion.valid,
                logprobs=tuple(TokenLogprob(each.text, each.logprob) for each in completion.logprobs),
                token_ids=tuple(completion.token_ids),
            )
            for completion in message.completions
        ),
        prompt_tokens=message.prompt_tokens,
    )


def decision(message: assistant_pb2.ChooseResponse, send: Callable[[feedback_pb2.Feedback], Sent]) -> Decision[Sent]:
    """The typed decision of a response."""
    return Decision(
        handle=message.handle,
        candidate_ids=tuple(option.candidate_id for option in message.ranking),
        send=send,
        interaction_id=message.interaction_id,
        release_version=message.release_version,
        release_digest=message.release_digest,
        handle_expires_at=message.handle_expires_at.ToDatetime(dt.UTC),
        decision=message.decision,
        ranking=tuple(
            RankedOption(
                option_id=option.option_id,
                candidate_id=option.candidate_id,
                probability=option.probability,
                logprob=option.logprob,
            )
            for option in message.ranking
        ),
    )


def acknowledged(message: feedback_pb2.SubmitFeedbackResponse) -> Acknowledged:
    """The typed acknowledgement of a response."""
    return Acknowledged(message.feedback_id, message.interaction_id, message.accepted_at.ToDatetime(dt.UTC))


def drafts(handle: str, candidate_ids: Sequence[str] = ()) -> FeedbackGiver[feedback_pb2.Feedback]:
    """Acts as messages that are not sent yet, for the bulk call."""
    return FeedbackGiver(handle=handle, candidate_ids=tuple(candidate_ids), send=lambda act: act)


def _said(act: Any, **fields: Any) -> Any:
    """The message of an act; None is nothing that a person can say, and protobuf would take it for an empty value."""
    for name, value in fields.items():
        if value is None:
            raise InvalidField(f"{name} is None; give what the person said, or send no act", field=name)
    return filled(act, **fields)
