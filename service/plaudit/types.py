"""The nouns of Plaudit as frozen types, free of I/O, tensors and gRPC.

Words are those of docs/glossary.md. Everything that a plugin sees is defined here.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True, order=True)
class Channel:
    """A domain and a tenant: the unit that learns and is released. Written "domain/tenant"."""

    domain: str
    tenant: str

    def __str__(self) -> str:
        """Return the written form, "domain/tenant"."""
        return f"{self.domain}/{self.tenant}"

    @classmethod
    def parse(cls, text: str) -> Channel:
        """Read "domain/tenant"; raises ValueError if it is anything else."""
        domain, slash, tenant = text.partition("/")
        if not (domain and slash and tenant) or "/" in tenant:
            raise ValueError(f"channel {text!r} is not of the form domain/tenant")
        return cls(domain, tenant)


class Purpose(enum.StrEnum):
    """What an interaction is for; EVALUATE is logged, never joined or replayed.

    IMPORTED was made and judged elsewhere: it is learnt from, and no release of ours answered it. No request has it.
    """

    SERVE = "serve"
    EXPLORE = "explore"
    EVALUATE = "evaluate"
    IMPORTED = "imported"


class Action(enum.StrEnum):
    """The two kinds of action."""

    COMPLETION = "completion"
    CHOICE = "choice"


class FinishReason(enum.StrEnum):
    """Why a completion ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved passage."""

    passage_id: str
    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Option:
    """An option that a domain of choices ranks."""

    option_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; all fields in force.

    A temperature below 0.001 is greedy; top_p 1 and top_k 0 leave the distribution untruncated.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """What people agreed to: that their texts are kept, and that something is learnt from them.

    Nothing is learnt from what is not kept.
    """

    store: bool = True
    train: bool = True

    def __post_init__(self) -> None:
        if self.train and not self.store:
            object.__setattr__(self, "train", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller asks of a domain. `options` is empty for completions."""

    messages: tuple[Message, ...]
    passages: tuple[Passage, ...] = ()
    options: tuple[Option, ...] = ()

    @classmethod
    def of_plain(cls, value: Mapping[str, Sequence[Mapping[str, str]]]) -> Request:
        """Read what `dataclasses.asdict` makes of a request, as it comes back from JSON."""
        return cls(
            messages=tuple(Message(**each) for each in value["messages"]),
            passages=tuple(Passage(**each) for each in value["passages"]),
            options=tuple(Option(**each) for each in value["options"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a plugin renders: the messages that the model reads, the options, and the group for the splits.

    `passages` are those in the messages, as the plugin will want them again when it parses or rewards an answer.
    """

    messages: tuple[Message, ...]
    options: tuple[Option, ...] = ()
    passages: tuple[Passage, ...] = ()
    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What people see of an output. Invalid is an outcome (it gets a reward), not an error."""

    displayed: str
    valid: bool = True
    why_invalid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One completion or option as it was made.

    Log-probs are in nats, one per token of `tokens` (the ending token included). `probability`: of an option, that it
    is the first. `propensity`: with which it was shown in its place, given those before it (1 if nothing was drawn).
    `place`: of an option, its index in the request.
    """

    candidate_id: str
    release_version: int
    release_digest: str
    tokens: tuple[int, ...]
    logprobs_raw: tuple[float, ...]
    logprobs_sampled: tuple[float, ...]
    text: str
    displayed_text: str
    finish_reason: FinishReason | None
    sampling: Sampling
    seed: int
    width: int
    probability: float = 1.0
    propensity: float = 1.0
    redacted: bool = False
    valid: bool = True
    option_id: str = ""
    place: int = 0


# A caller's own tags on an interaction or an act, in order of their keys.
Tags: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One request, its prompt and its candidates in the order shown. `end_user` and `rater` are pseudonyms.

    `order_logprob`: exact log-probability (nats) of that order under what drew it, 0 if nothing did. `answers`: marks
    (hex) of what was shown, as its handles carry them; feedback under another mark is about another text. `decision`:
    id of the option that was decided (of a drawn order the first), empty for completions. `policy_version`: as the
    domain declared it then. `consent`: what the people in it agreed to; one that is not stored has no texts.
    """

    interaction_id: str
    channel: Channel
    purpose: Purpose
    action: Action
    messages: tuple[Message, ...]
    prompt_group: str
    candidates: tuple[Candidate, ...]
    completed_at: dt.datetime
    prompt_tokens: tuple[int, ...] = ()
    order_logprob: float = 0.0
    answers: tuple[str, ...] = ()
    session_id: str = ""
    end_user: str = ""
    rater: str = ""
    passages: tuple[Passage, ...] = ()
    plugin_version: str = ""
    base_digest: str = ""
    base_dtype: str = ""
    policy_version: str = ""
    decision: str = ""
    tags: Tags = ()
    consent: Consent = Consent()

    @property
    def options(self) -> tuple[Option, ...]:
        """Options of a choice in the request's order (records of 0.1.0: as shown); empty for completions."""
        if self.action is not Action.CHOICE:
            return ()
        return tuple(Option(each.option_id, each.text) for each in sorted(self.candidates, key=lambda c: c.place))


def without_text(interaction: Interaction) -> Interaction:
    """What tells that an interaction was, and by which releases; nothing that anybody wrote, and nobody's name."""
    return Interaction(
        interaction_id=interaction.interaction_id,
        channel=interaction.channel,
        purpose=interaction.purpose,
        action=interaction.action,
        messages=(),
        prompt_group="",
        candidates=tuple(
            Candidate(
                candidate_id=each.candidate_id,
                release_version=each.release_version,
                release_digest=each.release_digest,
                tokens=(),
                logprobs_raw=(),
                logprobs_sampled=(),
                text="",
                displayed_text="",
                finish_reason=each.finish_reason,
                sampling=Sampling(),
                seed=0,
                width=0,
                valid=each.valid,
            )
            for each in interaction.candidates
        ),
        completed_at=interaction.completed_at,
        plugin_version=interaction.plugin_version,
        base_digest=interaction.base_digest,
        base_dtype=interaction.base_dtype,
        policy_version=interaction.policy_version,
        consent=interaction.consent,
    )


# Acts of feedback, one class per kind. -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Thumbs:
    """Thumb up or down on one candidate."""

    candidate_id: str
    up: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate preferred over another, or a tie between them."""

    chosen_id: str
    other_id: str
    tie: bool = False
    tie_offered: bool = False


@dataclass(frozen=True, slots=True)
class Ranking:
    """All candidates, best first."""

    candidate_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Correction:
    """A better text for one candidate."""

    candidate_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Rating:
    """A value on the domain's scale."""

    candidate_id: str
    value: float


@dataclass(frozen=True, slots=True)
class LabelAct:
    """A verdict confirmed or overridden."""

    candidate_id: str
    value: str


@dataclass(frozen=True, slots=True)
class Signal:
    """Implicit behaviour."""

    candidate_id: str
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Comment:
    """Free text; never trained on by itself."""

    candidate_id: str
    text: str


Act = Thumbs | Choice | Ranking | Correction | Rating | LabelAct | Signal | Comment


class FeedbackKind(enum.StrEnum):
    """Names of the kinds, as settings, metrics and declarations write them."""

    THUMBS = "thumbs"
    CHOICE = "choice"
    RANKING = "ranking"
    CORRECTION = "correction"
    RATING = "rating"
    LABEL = "label"
    SIGNAL = "signal"
    COMMENT = "comment"


KIND_OF_ACT: dict[type, FeedbackKind] = {
    Thumbs: FeedbackKind.THUMBS,
    Choice: FeedbackKind.CHOICE,
    Ranking: FeedbackKind.RANKING,
    Correction: FeedbackKind.CORRECTION,
    Rating: FeedbackKind.RATING,
    LabelAct: FeedbackKind.LABEL,
    Signal: FeedbackKind.SIGNAL,
    Comment: FeedbackKind.COMMENT,
}


# Who gave an act that has neither a rater nor a session: see `nameless`.
NAMELESS = "nameless"


def nameless(end_user: str) -> str:
    """The name that all acts without a rater and a session share: one per end user of the interaction, if known.

    One name is one split and one cap on weight, so that whoever names nobody cannot be many.
    """
    return f"{NAMELESS}:{end_user}" if end_user else NAMELESS


def is_rater(who: str) -> bool:
    """Whether acts under this name are one person's: pseudonyms and sessions are, a shared name may be of many."""
    return not who.startswith(NAMELESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One human act about one interaction. `rater` is a pseudonym, empty if nobody was named.

    `answer`: mark (hex) of the answer that the rater saw, from the handle; empty in records of 0.1.0.
    `whole_conversation`: the act is about all turns up to its candidate, not about the candidate alone.
    """

    feedback_id: str
    interaction_id: str
    channel: Channel
    act: Act
    accepted_at: dt.datetime
    rater: str = ""
    session_id: str = ""
    reasons: tuple[str, ...] = ()
    answer: str = ""
    whole_conversation: bool = False
    tags: Tags = ()

    @property
    def kind(self) -> FeedbackKind:
        """The kind of the act."""
        return KIND_OF_ACT[type(self.act)]

    @property
    def who(self) -> str:
        """Tells apart who acts about one interaction: the rater, else the session, else anybody who names neither."""
        return self.rater or (f"session:{self.session_id}" if self.session_id else f"interaction:{self.interaction_id}")

    @property
    def subject(self) -> str:
        """What the act is about: a newer act by the same rater on the same subject replaces the older."""
        act = self.act
        match act:
            case Choice():
                return "choice:" + ":".join(sorted((act.chosen_id, act.other_id)))
            case Ranking() | LabelAct():
                # A ranking is of all candidates, and a label the true class of the whole interaction.
                return str(self.kind)
            case Signal():
                return f"signal:{act.candidate_id}:{act.name}"
            case _:
                about = "conversation:" if self.whole_conversation else ""
                return f"{about}{self.kind}:{act.candidate_id}"


# Evidence: what a plugin derives from feedback. The reward model sees nothing else. --------------


class PairOutcome(enum.StrEnum):
    """Which of a pair was preferred."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Candidate `first` compared with `second` of the same interaction."""

    first: str
    second: str
    outcome: PairOutcome
    tie_offered: bool = False
    margin: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingEvidence:
    """Candidates best first; only the first `observed` are in order (None: all), the others are known to follow.

    The choice of one among several is a ranking of which one place is observed.
    """

    order: tuple[str, ...]
    observed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """A candidate found good or bad by one rater.

    `source` names the behaviour that it was read from (such as "skip"): how often each errs is learnt by itself.
    """

    candidate: str
    positive: bool
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """A candidate's value in [0, 1]; it counts by its position among its rater's other values of the same `source`.

    Give values that cannot be compared with each other sources of their own: how much is watched of short items and
    of long ones.
    """

    candidate: str
    value: float
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A person's text, preferred over `candidate` by `margin` (score units)."""

    candidate: str
    text: str
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The true class of a verdict."""

    candidate: str
    value: str


Evidence = Pair | RankingEvidence | Binary | Scalar | Demo | Label


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Closed interval of a rating or signal."""

    low: float
    high: float


MOST_REWARD = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTerms:
    """Named bounded terms that a plugin makes of the shaped score; |total| <= MOST_REWARD."""

    terms: tuple[tuple[str, float], ...] = field(default=())

    @property
    def total(self) -> float:
        """Sum of the terms."""
        return sum(value for _, value in self.terms)
