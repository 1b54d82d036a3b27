"""What the client gives back, and how a reply turns into feedback.

What enters: protobuf replies. What leaves: frozen typed replies whose methods send feedback under their handle. The
same classes serve both clients: their type parameter is what sending gives, an `Acknowledged` or an awaitable of one.
Never imports torch, and never talks to the network itself.
"""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar

import uuid6

from plaudit.errors import InvalidField, UnknownCandidate
from plaudit.types import FinishReason, Message, Option, Passage, Purpose
from plaudit.v1 import assistant_pb2, feedback_pb2

Sent = TypeVar("Sent")
Prompt: TypeAlias = str | Sequence[Message | Mapping[str, str]]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyCompletion:
    """One completion; `text` is what people should see."""

    candidate_id: str
    text: str
    release_version: int
    release_digest: str
    finish_reason: FinishReason | None
    tokens: int
    logprob_raw: float
    valid: bool
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


@dataclass(frozen=True, kw_only=True)
class FeedbackGiver(Generic[Sent]):
    """Sends feedback under a handle, which is all that it needs: candidates are named by their place in the reply.

    `candidate_ids` may be empty if only the handle was kept; then the service finds the ids.
    """

    handle: str = field(repr=False)
    candidate_ids: tuple[str, ...] = ()
    send: Callable[[feedback_pb2.Feedback], Sent] = field(repr=False, compare=False)

    def thumbs_up(
        self,
        candidate: Which = 0,
        *,
        rater: str = "",
        session_id: str = "",
        reasons: Sequence[str] = (),
        whole_conversation: bool = False,
    ) -> Sent:
        """The candidate is good, or the whole conversation up to it."""
        act = feedback_pb2.Thumbs(candidate_id=self._id(candidate), up=True)
        body = feedback_pb2.Feedback(thumbs=act, whole_conversation=whole_conversation)
        return self._send(body, rater, session_id, reasons)

    def thumbs_down(
        self,
        candidate: Which = 0,
        *,
        rater: str = "",
        session_id: str = "",
        reasons: Sequence[str] = (),
        whole_conversation: bool = False,
    ) -> Sent:
        """The candidate is not good, or the whole conversation up to it is not."""
        act = feedback_pb2.Thumbs(candidate_id=self._id(candidate), up=False)
        body = feedback_pb2.Feedback(thumbs=act, whole_conversation=whole_conversation)
        return self._send(body, rater, session_id, reasons)

    def choose(
        self,
        chosen: Which,
        other: Which,
        *,
        tie: bool = False,
        tie_offered: bool = False,
        rater: str = "",
        session_id: str = "",
        reasons: Sequence[str] = (),
    ) -> Sent:
        """`chosen` is better than `other`, or neither is where `tie` is set."""
        act = feedback_pb2.Choice(
            chosen_id=self._id(chosen), other_id=self._id(other), tie=tie, tie_offered=tie or tie_offered
        )
        return self._send(feedback_pb2.Feedback(choice=act), rater, session_id, reasons)

    def rank(
        self, best_first: Sequence[Which], *, rater: str = "", session_id: str = "", reasons: Sequence[str] = ()
    ) -> Sent:
        """All candidates in order of merit."""
        act = feedback_pb2.Ranking(candidate_ids=[self._id(candidate) for candidate in best_first])
        return self._send(feedback_pb2.Feedback(ranking=act), rater, session_id, reasons)

    def correct(
        self, text: str, candidate: Which = 0, *, rater: str = "", session_id: str = "", reasons: Sequence[str] = ()
    ) -> Sent:
        """A better text for the candidate."""
        act = feedback_pb2.Correction(candidate_id=self._id(candidate), text=text)
        return self._send(feedback_pb2.Feedback(correction=act), rater, session_id, reasons)

    def rate(
        self,
        value: float,
        candidate: Which = 0,
        *,
        rater: str = "",
        session_id: str = "",
        reasons: Sequence[str] = (),
        whole_conversation: bool = False,
    ) -> Sent:
        """A value on the domain's scale, of the candidate or of the whole conversation up to it."""
        act = feedback_pb2.Rating(candidate_id=self._id(candidate), value=value)
        body = feedback_pb2.Feedback(rating=act, whole_conversation=whole_conversation)
        return self._send(body, rater, session_id, reasons)

    def label(
        self, value: str, candidate: Which = 0, *, rater: str = "", session_id: str = "", reasons: Sequence[str] = ()
    ) -> Sent:
        """The right verdict."""
        act = feedback_pb2.Label(candidate_id=self._id(candidate), value=value)
        return self._send(feedback_pb2.Feedback(label=act), rater, session_id, reasons)

    def signal(
        self, name: str, value: float = 1.0, candidate: Which = 0, *, rater: str = "", session_id: str = ""
    ) -> Sent:
        """Implicit behaviour."""
        act = feedback_pb2.Signal(candidate_id=self._id(candidate), name=name, value=value)
        return self._send(feedback_pb2.Feedback(signal=act), rater, session_id, ())

    def comment(self, text: str, candidate: Which | None = None, *, rater: str = "", session_id: str = "") -> Sent:
        """Free text about a candidate, or about the whole interaction."""
        named = "" if candidate is None else self._id(candidate)
        act = feedback_pb2.Comment(candidate_id=named, text=text)
        return self._send(feedback_pb2.Feedback(comment=act), rater, session_id, ())

    def _send(self, act: feedback_pb2.Feedback, rater: str, session_id: str, reasons: Sequence[str]) -> Sent:
        # The id is made here, before the first attempt, so that sending again is the same act.
        act.feedback_id = str(uuid6.uuid7())
        act.handle, act.rater, act.session_id = self.handle, rater, session_id
        act.reasons.extend(reasons)
        return self.send(act)

    def _id(self, candidate: Which) -> str:
        if isinstance(candidate, str):
            return candidate
        if not isinstance(candidate, int):
            return candidate.candidate_id
        known = len(self.candidate_ids)
        if candidate < 0 or (known and candidate >= known):
            raise UnknownCandidate(
                f"there is no candidate {candidate}{f' among {known}' if known else ''}; count from 0",
                candidate_id=candidate,
            )
        return self.candidate_ids[candidate] if known else f"#{candidate}"


@dataclass(frozen=True, kw_only=True)
class Begun(FeedbackGiver[Sent]):
    """The first of a stream: feedback can be given under it on what has gone out, even if the stream is stopped."""

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
        """The option to act on: the one that is expected to cost least."""
        # A service before this field named none: then it is the most probable one.
        likely = max(self.ranking, key=lambda option: option.probability)
        return next((option for option in self.ranking if option.option_id == self.decision), likely)


class AskOptions(TypedDict, total=False):
    """What every request may say beside its prompt; see assistant.proto."""

    tenant: str
    session_id: str
    end_user: str
    rater: str
    passages: Sequence[Passage]
    purpose: Purpose
    interaction_id: str


class GenerateOptions(AskOptions, total=False):
    """What a request for completions may say; see assistant.proto."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: Sequence[str]
    seed: int
    release_versions: Sequence[int]


class ChooseOptions(AskOptions, total=False):
    """What a request to rank options may say; see assistant.proto."""

    release_version: int


_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "stop")
_PURPOSES = {
    Purpose.SERVE: assistant_pb2.PURPOSE_SERVE,
    Purpose.EXPLORE: assistant_pb2.PURPOSE_EXPLORE,
    Purpose.EVALUATE: assistant_pb2.PURPOSE_EVALUATE,
}


def generate_request(domain: str, prompt: Prompt, options: GenerateOptions) -> assistant_pb2.GenerateRequest:
    """The message of a request, with its idempotency key."""
    fields: dict[str, Any] = _known(options, GenerateOptions)
    sampling = {key: fields.pop(key) for key in _SAMPLING if key in fields}
    request: assistant_pb2.GenerateRequest = _filled(
        assistant_pb2.GenerateRequest, domain=domain, **_common(prompt, fields)
    )
    request.sampling.MergeFrom(_filled(assistant_pb2.Sampling, **sampling))
    return request


def choose_request(
    domain: str,
    prompt: Prompt,
    choices: Sequence[str | Option],
    options: ChooseOptions,
) -> assistant_pb2.ChooseRequest:
    """The message of a request; a text alone is its own option_id."""
    offered = [Option(each, each) if isinstance(each, str) else each for each in choices]
    for option in offered:
        if not isinstance(option, Option):
            raise InvalidField(
                f"an option is a {type(option).__name__}; send texts, or Option(option_id, text)", field="options"
            )
    request: assistant_pb2.ChooseRequest = _filled(
        assistant_pb2.ChooseRequest,
        domain=domain,
        options=[_filled(assistant_pb2.Option, option_id=option.option_id, text=option.text) for option in offered],
        **_common(prompt, _known(options, ChooseOptions)),
    )
    return request


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


def _known(options: Any, kind: Any) -> dict[str, Any]:
    """`options` as a dictionary; raises InvalidField for a name that `kind` (a TypedDict) does not have."""
    names = tuple(kind.__annotations__)
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}"
            raise InvalidField(f"there is no option {name!r}; {hint}", field=name)
    return dict(options)


def _filled(message: Any, **fields: Any) -> Any:
    """A message with `fields`; raises InvalidField that names the field whose value protobuf refuses."""
    try:
        return message(**fields)
    except (TypeError, ValueError):
        for name, value in fields.items():
            try:
                message(**{name: value})
            except (TypeError, ValueError) as error:
                raise InvalidField(f"{name} is {value!r}, which cannot be sent: {error}", field=name) from error
        raise


def _messages(prompt: Any) -> list[assistant_pb2.Message]:
    """The conversation of a prompt: a text, or messages as Message or as {"role": ..., "content": ...}."""
    how = 'send a text, or a list of Message("user", "...") or of {"role": "user", "content": "..."}'
    if isinstance(prompt, str):
        return [_filled(assistant_pb2.Message, role="user", content=prompt)]
    if isinstance(prompt, Mapping | Message) or not isinstance(prompt, Iterable):
        raise InvalidField(f"the prompt is a {type(prompt).__name__}; {how}", field="messages")
    found = []
    for each in prompt:
        if isinstance(each, Mapping) and set(each) == {"role", "content"}:
            found.append(_filled(assistant_pb2.Message, role=each["role"], content=each["content"]))
        elif isinstance(each, Message):
            found.append(_filled(assistant_pb2.Message, role=each.role, content=each.content))
        else:
            raise InvalidField(f"a message of the prompt is a {type(each).__name__}; {how}", field="messages")
    return found


def _common(prompt: Prompt, fields: dict[str, Any]) -> dict[str, Any]:
    fields.setdefault("interaction_id", str(uuid6.uuid7()))
    passages = fields.pop("passages", ())
    purpose = fields.pop("purpose", Purpose.SERVE)
    return {
        **fields,
        "messages": _messages(prompt),
        "passages": [
            _filled(assistant_pb2.Passage, passage_id=each.passage_id, text=each.text, source=each.source)
            for each in passages
        ],
        "purpose": _PURPOSES[purpose],
    }
