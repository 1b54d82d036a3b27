"""Decides about feedback what its handle and the domain's declaration can decide.

What enters: a Feedback message, or a withdrawal. What leaves: the act as the log keeps it, or a RequestRefused. Reads
nothing, so that the answer costs one durable append and nothing else; a withdrawal is given what it is checked against.

In order: 1 the handle, whether the caller may use its channel and whether the texts are kept; 2 who gives it, and how
often; 3 its id, texts and session; 4 the kind; 5 the candidates; 6 values, reasons and tags.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping, Sequence

from plaudit.access.limits import Limits
from plaudit.access.rights import caller, check_channel
from plaudit.domain import Declaration, DomainPlugin
from plaudit.errors import (
    HandleWrongRater,
    IncompleteRanking,
    InvalidField,
    NotStored,
    OutOfScale,
    RetractionByOther,
    UndeclaredKind,
    UndeclaredReason,
    UnknownCandidate,
    UnknownFeedback,
)
from plaudit.eventlog.codec import Retraction, act_from_proto, decode
from plaudit.serving.handle import HandleClaims, HandleSigner, pseudonym
from plaudit.serving.redacting import Redactor
from plaudit.serving.router import unknown_domain
from plaudit.serving.validate import (
    MAX_PERSON_BYTES,
    MAX_SESSION_BYTES,
    MAX_TEXT_BYTES,
    checked_tags,
    identifier,
    refused,
    short_text,
)
from plaudit.types import (
    KIND_OF_ACT,
    Act,
    Channel,
    Choice,
    Comment,
    Correction,
    Feedback,
    FeedbackKind,
    LabelAct,
    Ranking,
    Rating,
    Scale,
    Signal,
    Thumbs,
)
from plaudit.v1 import feedback_pb2

MAX_COMMENT_BYTES = 16_384
MAX_REASONS = 16
# Records of one interaction that a retraction reads; of more it reads none, and the join decides.
MOST_LOOKED_AT = 1_000


class Acts:
    """Turns messages into acts; may be called from any thread."""

    def __init__(
        self,
        plugins: Mapping[str, DomainPlugin],
        signer: HandleSigner,
        pseudonym_key: bytes,
        limits: Limits,
        redactor: Redactor,
    ) -> None:
        self._redactor = redactor
        self._limits = limits
        self._plugins = plugins
        self._signer = signer
        self._pseudonym_key = pseudonym_key

    def accept(self, message: feedback_pb2.Feedback, now: dt.datetime) -> Feedback:
        """The act, accepted at `now`; raises what is wrong with it."""
        claims, rater = self._who(message.handle, message.rater, now)
        plugin = self._plugins.get(claims.domain)
        if plugin is None:
            raise unknown_domain(claims.domain, self._plugins)
        feedback_id = identifier("feedback_id", message.feedback_id)
        session_id = short_text("session_id", message.session_id, MAX_SESSION_BYTES)
        if message.WhichOneof("act") is None:
            kinds = ", ".join(field.name for field in message.DESCRIPTOR.oneofs_by_name["act"].fields)
            raise InvalidField(f"the feedback says nothing; send one of {kinds}", field="act", limit=kinds)
        act = checked_act(named(act_from_proto(message), claims.candidate_ids), claims, plugin.declaration)
        channel = Channel(claims.domain, claims.tenant)
        return Feedback(
            feedback_id=feedback_id,
            interaction_id=claims.interaction_id,
            channel=channel,
            act=self._redactor.act(channel, act),
            accepted_at=now,
            rater=rater,
            session_id=session_id,
            reasons=_reasons(message.reasons, plugin.declaration),
            answer=claims.answer,
            whole_conversation=_whole_conversation(message, act, plugin.declaration),
            tags=checked_tags(message.tags),
        )

    def retraction(self, message: feedback_pb2.RetractFeedbackRequest, now: dt.datetime) -> Retraction:
        """The withdrawal, accepted at `now`. Who gave the act is in the log alone: see `check_retraction`."""
        claims, rater = self._who(message.handle, message.rater, now)
        if not message.feedback_id:
            raise refused("feedback_id", "empty", "the id of the act that is withdrawn")
        return Retraction(
            feedback_id=identifier("feedback_id", message.feedback_id),
            interaction_id=claims.interaction_id,
            channel=Channel(claims.domain, claims.tenant),
            accepted_at=now,
            rater=rater,
            session_id=short_text("session_id", message.session_id, MAX_SESSION_BYTES),
        )

    def check_retraction(self, retraction: Retraction, records: Sequence[bytes] | None) -> None:
        """Raises UnknownFeedback or RetractionByOther, if the interaction's feedback in the log tells.

        `records` is None or too long to be all of it, if the log cannot tell; then the join decides.
        """
        if records is None or len(records) >= MOST_LOOKED_AT:
            return
        acts = [act for act in map(decode, records) if isinstance(act, Feedback)]
        mine = [act for act in acts if act.feedback_id == retraction.feedback_id]
        if not mine:
            raise UnknownFeedback(
                f"no feedback {retraction.feedback_id} on interaction {retraction.interaction_id} was acknowledged; "
                "withdraw it under the handle that it was given under",
                feedback_id=retraction.feedback_id,
            )
        if all(act.who != retraction.who for act in mine):
            raise RetractionByOther(
                f"feedback {retraction.feedback_id} was given by another rater; only who gave it withdraws it"
            )

    def _who(self, handle: str, person: str, now: dt.datetime) -> tuple[HandleClaims, str]:
        """The handle's claims and the pseudonym of who acts."""
        if not handle:
            raise refused("handle", "missing", "the handle that came with the answer")
        claims = self._signer.verify(handle, now)
        check_channel(Channel(claims.domain, claims.tenant))
        if not claims.stored:
            raise NotStored()
        self._limits.tenant(claims.tenant)
        person = short_text("rater", person, MAX_PERSON_BYTES)
        own = caller().person
        if own and person not in ("", own):
            raise HandleWrongRater("these credentials are one rater's own: leave the rater empty, or send the same")
        person = own or person
        rater = pseudonym(self._pseudonym_key, claims.tenant, person)
        if claims.rater and rater and rater != claims.rater:
            raise HandleWrongRater()
        rater = rater or claims.rater
        self._limits.rater(claims.tenant, claims.interaction_id, rater)
        return claims, rater


def named(act: Act, ids: Sequence[str]) -> Act:
    """The act with every candidate by its id.

    A candidate may also be named by its place in the reply ("#0", "#1" and so on), and the only one of an interaction
    not at all: then a handle is all that feedback needs.
    """
    match act:
        case Choice(chosen, other):
            ours, others = _id(chosen, ids), _id(other, ids)
            if (ours, others) == (chosen, other):
                return act
            return dataclasses.replace(act, chosen_id=ours, other_id=others)
        case Ranking(candidates):
            return Ranking(tuple(_id(candidate, ids) for candidate in candidates))
        case Comment(""):
            return act  # on the whole interaction
        case _:
            candidate = _id(act.candidate_id or (ids[0] if len(ids) == 1 else ""), ids)
            return act if candidate == act.candidate_id else dataclasses.replace(act, candidate_id=candidate)


def _id(name: str, ids: Sequence[str]) -> str:
    if not name.startswith("#"):
        return name
    place = name[1:]
    if not (place.isascii() and place.isdigit() and len(place) < 4):
        return name
    return ids[int(place)] if int(place) < len(ids) else name


def checked_act(act: Act, claims: HandleClaims, declaration: Declaration) -> Act:
    """The act, if domain and handle allow it; raises what is wrong with it."""
    kind = KIND_OF_ACT[type(act)]
    if kind not in declaration.kinds:
        raise _undeclared(kind, declaration)
    match act:
        case Ranking(candidate_ids):
            _check_ranking(candidate_ids, claims.candidate_ids)
        case Choice(chosen, other):
            _check_candidates((chosen, other), claims, declaration)
            if chosen == other:
                raise refused("choice", "one candidate compared with itself", "two different candidates")
            # Who says tie was offered one: the likelihood of a tie counts on it.
            return dataclasses.replace(act, tie_offered=True) if act.tie else act
        case Comment(candidate, text):
            _check_candidates((candidate,) if candidate else (), claims, declaration)
            short_text("comment.text", text, MAX_COMMENT_BYTES, required=True)
        case Thumbs() | Correction() | Rating() | LabelAct() | Signal():
            _check_candidates((act.candidate_id,), claims, declaration)
            _check_value(act, declaration)
    return act


def _check_value(act: Thumbs | Correction | Rating | LabelAct | Signal, declaration: Declaration) -> None:
    match act:
        case Correction(_, text):
            short_text("correction.text", text, MAX_TEXT_BYTES, required=True)
        case Rating(_, value):
            _check_scale("rating.value", value, declaration.rating_scale)
        case LabelAct(_, value):
            if value not in declaration.labels:
                labels = ", ".join(sorted(declaration.labels))
                raise OutOfScale(f"label.value must be one of {labels}", value=value[:64], scale=labels)
        case Signal(_, name, strength):
            scales = dict(declaration.signals)
            if name not in scales:
                declared = ", ".join(sorted(scales)) or "none"
                raise UndeclaredKind(
                    f"{declaration.name} takes no signal {name[:64]!r}; it takes {declared}",
                    domain=declaration.name,
                    kind=f"signal {name[:64]!r}",
                    declared=declared,
                )
            _check_scale(f"signal.value of {name}", strength, scales[name])


def _check_scale(field: str, value: float, scale: Scale | None) -> None:
    low, high = (scale.low, scale.high) if scale else (0.0, 1.0)
    # Written as what must hold: comparisons with NaN are false.
    if not low <= value <= high:
        raise OutOfScale(
            f"{field} is {value:g}; the scale is {low:g} to {high:g}", value=value, scale=f"{low:g}..{high:g}"
        )


def _check_candidates(named: Iterable[str], claims: HandleClaims, declaration: Declaration) -> None:
    # A slate shows as many options as its places count; a verdict has one place and no slate.
    places = len(declaration.place_weights)
    not_shown = claims.candidate_ids[places:] if places > 1 else ()
    for candidate in named:
        if candidate in not_shown:
            raise UnknownCandidate(
                f"{candidate[:64]!r} is not among the first {places} options; a slate of {declaration.name} shows no "
                "others",
                candidate_id=candidate[:64],
            )
        if not candidate:
            raise UnknownCandidate(
                f"the feedback names no candidate, and the answer has {len(claims.candidate_ids)}; name one by its id "
                f"or its place, #0 to #{len(claims.candidate_ids) - 1}",
                candidate_id="",
            )
        if candidate not in claims.candidate_ids:
            raise UnknownCandidate(
                f"the interaction has no candidate {candidate[:64]!r}; use the candidate_ids of its reply, or places "
                f"from #0 to #{len(claims.candidate_ids) - 1}",
                candidate_id=candidate[:64],
            )


def _check_ranking(order: Sequence[str], candidates: Sequence[str]) -> None:
    unknown = sorted(set(order) - set(candidates))
    if unknown:
        raise UnknownCandidate(
            f"the interaction has no candidate {unknown[0][:64]!r}; use the candidate_ids of its reply",
            candidate_id=unknown[0][:64],
        )
    if len(order) != len(candidates) or set(order) != set(candidates):
        raise IncompleteRanking(
            f"the ranking names {len(set(order))} candidates in {len(order)} places; it must name each of the "
            f"{len(candidates)} once",
            expected=len(candidates),
            got=len(order),
        )


def _reasons(reasons: Sequence[str], declaration: Declaration) -> tuple[str, ...]:
    if len(reasons) > MAX_REASONS:
        raise refused("reasons", f"{len(reasons)} reasons", f"at most {MAX_REASONS}")
    for reason in reasons:
        if reason not in declaration.reasons:
            declared = ", ".join(sorted(declaration.reasons))
            raise UndeclaredReason(
                f"{declaration.name} declares no reason {reason[:64]!r}; it declares {declared or 'none'}",
                reason=reason[:64],
                declared=declared,
            )
    return tuple(reasons)


def _whole_conversation(message: feedback_pb2.Feedback, act: Act, declaration: Declaration) -> bool:
    """Whether the act is about the whole conversation; raises if domain or act cannot be."""
    if not message.whole_conversation:
        return False
    if not declaration.conversations:
        raise UndeclaredKind(
            f"{declaration.name} takes no feedback on whole conversations; leave whole_conversation out",
            domain=declaration.name,
            kind="whole_conversation",
        )
    if not isinstance(act, Thumbs | Rating):
        raise refused("whole_conversation", f"set on a {KIND_OF_ACT[type(act)]}", "thumbs or a rating")
    return True


def _undeclared(kind: FeedbackKind, declaration: Declaration) -> UndeclaredKind:
    declared = sorted(str(kind) for kind in declaration.kinds)
    return UndeclaredKind(
        f"{declaration.name} takes no feedback of kind {kind}; it takes {', '.join(declared)}",
        domain=declaration.name,
        kind=kind,
        declared=",".join(declared),
    )
