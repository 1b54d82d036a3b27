"""Bodies of the records: each noun to its message and back, field by field.

Enters and leaves: frozen types on one side, messages of events.proto on the other. Translating back raises Undecodable
if a message lacks what its noun cannot be without, or holds a value that this release has no name for.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message as ProtoMessage
from google.protobuf.timestamp_pb2 import Timestamp

from plaudit import types
from plaudit.errors import Undecodable
from plaudit.eventlog.protocol import Headers
from plaudit.types import Act, Channel, Feedback, Interaction
from plaudit.v1 import assistant_pb2, errors_pb2, events_pb2, feedback_pb2, releases_pb2

REASON_PREFIX = "ERROR_REASON_"
# Version of each message's meaning that this release writes; it reads every version up to it (0, absent, is 1).
INTERACTION_SCHEMA = 2
FEEDBACK_SCHEMA = 1
RETRACTION_SCHEMA = 1
RELEASE_SCHEMA = 1
REJECTED_SCHEMA = 1
SEALED_SCHEMA = 1
STATE_PREFIX = "RELEASE_STATE_"
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NANOS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraction:
    """A withdrawal of an earlier act. `rater` is a pseudonym, empty if nobody was named."""

    feedback_id: str
    interaction_id: str
    channel: Channel
    accepted_at: dt.datetime
    rater: str = ""
    session_id: str = ""

    @property
    def who(self) -> str:
        """The rater, else the session, else the interaction, as of Feedback."""
        return self.rater or (f"session:{self.session_id}" if self.session_id else f"interaction:{self.interaction_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseChange:
    """A change of a channel: its state afterwards, and the release that it was about.

    `state` is the release's, in lower case as in plaudit.release ("live", "rolled_back").
    """

    channel: Channel
    generation: int
    live: int
    canary: int | None
    pinned: bool
    version: int
    digest: str
    state: str
    created_at: dt.datetime
    changed_at: dt.datetime
    decision_json: str = ""
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A record that the join could not use, as it was. `reason` is that of its error ("ID_CONFLICT")."""

    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    rejected_at: dt.datetime
    headers: Headers = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedRecord:
    """A record that nobody opened: its person's key is gone, or was not asked for."""

    key_id: str
    interaction_id: str
    channel: Channel


PURPOSES = {
    types.Purpose.SERVE: assistant_pb2.PURPOSE_SERVE,
    types.Purpose.EXPLORE: assistant_pb2.PURPOSE_EXPLORE,
    types.Purpose.EVALUATE: assistant_pb2.PURPOSE_EVALUATE,
    types.Purpose.IMPORTED: assistant_pb2.PURPOSE_IMPORTED,
}
ACTIONS = {
    types.Action.COMPLETION: events_pb2.ACTION_COMPLETION,
    types.Action.CHOICE: events_pb2.ACTION_CHOICE,
}
FINISH_REASONS = {
    None: assistant_pb2.FINISH_REASON_UNSPECIFIED,
    types.FinishReason.EOS: assistant_pb2.FINISH_REASON_EOS,
    types.FinishReason.STOP: assistant_pb2.FINISH_REASON_STOP,
    types.FinishReason.LENGTH: assistant_pb2.FINISH_REASON_LENGTH,
    types.FinishReason.CANCELLED: assistant_pb2.FINISH_REASON_CANCELLED,
}
PURPOSE_OF = {value: key for key, value in PURPOSES.items()} | {
    assistant_pb2.PURPOSE_UNSPECIFIED: types.Purpose.SERVE  # as assistant.proto documents it
}
ACTION_OF = {value: key for key, value in ACTIONS.items()}
FINISH_REASON_OF = {value: key for key, value in FINISH_REASONS.items()}


def timestamp(moment: dt.datetime) -> Timestamp:
    """The moment, which must know its zone, to the microsecond."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; times in the log are aware")
    since = moment - _EPOCH
    return Timestamp(seconds=86_400 * since.days + since.seconds, nanos=1000 * since.microseconds)


def moment(message: ProtoMessage, field: str) -> dt.datetime:
    """The aware time in a field; raises Undecodable if it is missing or outside the years 1 to 9999."""
    if not message.HasField(field):
        raise Undecodable(f"{message.DESCRIPTOR.name} has no {field}")
    stamp: Timestamp = getattr(message, field)
    try:
        if not 0 <= stamp.nanos < _NANOS:
            raise ValueError(f"{stamp.nanos} nanoseconds")
        return _EPOCH + dt.timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)
    except (ValueError, OverflowError) as error:
        raise Undecodable(f"{message.DESCRIPTOR.name}.{field} is not a time ({error})") from error


def interaction_to_proto(interaction: Interaction) -> events_pb2.InteractionRecorded:
    """The message of an interaction."""
    return events_pb2.InteractionRecorded(
        interaction_id=interaction.interaction_id,
        domain=interaction.channel.domain,
        tenant=interaction.channel.tenant,
        session_id=interaction.session_id,
        end_user=interaction.end_user,
        rater=interaction.rater,
        purpose=PURPOSES[interaction.purpose],
        action=ACTIONS[interaction.action],
        messages=[assistant_pb2.Message(role=m.role, content=m.content) for m in interaction.messages],
        passages=[
            assistant_pb2.Passage(passage_id=p.passage_id, text=p.text, source=p.source) for p in interaction.passages
        ],
        prompt_group=interaction.prompt_group,
        candidates=[_candidate_to_proto(candidate) for candidate in interaction.candidates],
        plugin_version=interaction.plugin_version,
        base_digest=interaction.base_digest,
        base_dtype=interaction.base_dtype,
        completed_at=timestamp(interaction.completed_at),
        schema=INTERACTION_SCHEMA,
        prompt_tokens=interaction.prompt_tokens,
        order_logprob=interaction.order_logprob,
        answers=[bytes.fromhex(answer) for answer in interaction.answers],
        policy_version=interaction.policy_version,
        decision=interaction.decision,
        tags=dict(interaction.tags),
        not_stored=not interaction.consent.store,
        not_trained=not interaction.consent.train,
    )


def interaction_from_proto(message: events_pb2.InteractionRecorded) -> Interaction:
    """The interaction that a message records.

    Schema 1 had the prompt in each candidate, and the probabilities of a choice as propensities of the order, which was
    not drawn.
    """
    schema = _schema(message, INTERACTION_SCHEMA)
    action = _named(ACTION_OF, message, "action")
    prompt_tokens: Sequence[int] = message.prompt_tokens
    candidates = [_candidate_from_proto(candidate) for candidate in message.candidates]
    if schema == 1:
        prompt_tokens = message.candidates[0].prompt_tokens if message.candidates else ()
        choice = action is types.Action.CHOICE
        candidates = [
            dataclasses.replace(
                candidate,
                probability=candidate.propensity if choice else 1.0,
                propensity=1.0 if choice else candidate.propensity,
            )
            for candidate in candidates
        ]
    return Interaction(
        interaction_id=_required(message, "interaction_id"),
        channel=_channel(message),
        session_id=message.session_id,
        end_user=message.end_user,
        rater=message.rater,
        purpose=_named(PURPOSE_OF, message, "purpose"),
        action=action,
        messages=tuple(types.Message(m.role, m.content) for m in message.messages),
        passages=tuple(types.Passage(p.passage_id, p.text, p.source) for p in message.passages),
        prompt_group=message.prompt_group,
        candidates=tuple(candidates),
        prompt_tokens=tuple(prompt_tokens),
        order_logprob=message.order_logprob,
        answers=tuple(answer.hex() for answer in message.answers),
        plugin_version=message.plugin_version,
        base_digest=message.base_digest,
        base_dtype=message.base_dtype,
        policy_version=message.policy_version,
        decision=message.decision,
        tags=_tags(message.tags),
        completed_at=moment(message, "completed_at"),
        consent=types.Consent(store=not message.not_stored, train=not message.not_trained),
    )


def _candidate_to_proto(candidate: types.Candidate) -> events_pb2.Candidate:
    sampling = candidate.sampling
    return events_pb2.Candidate(
        candidate_id=candidate.candidate_id,
        release_version=candidate.release_version,
        release_digest=candidate.release_digest,
        tokens=candidate.tokens,
        logprobs_raw=candidate.logprobs_raw,
        logprobs_sampled=candidate.logprobs_sampled,
        text=candidate.text,
        displayed_text=candidate.displayed_text,
        finish_reason=FINISH_REASONS[candidate.finish_reason],
        sampling=assistant_pb2.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
        ),
        seed=candidate.seed,
        width=candidate.width,
        probability=candidate.probability,
        propensity=candidate.propensity,
        redacted=candidate.redacted,
        valid=candidate.valid,
        option_id=candidate.option_id,
        place=candidate.place,
    )


def _candidate_from_proto(message: events_pb2.Candidate) -> types.Candidate:
    return types.Candidate(
        candidate_id=_required(message, "candidate_id"),
        release_version=message.release_version,
        release_digest=message.release_digest,
        tokens=tuple(message.tokens),
        logprobs_raw=tuple(message.logprobs_raw),
        logprobs_sampled=tuple(message.logprobs_sampled),
        text=message.text,
        displayed_text=message.displayed_text,
        finish_reason=_named(FINISH_REASON_OF, message, "finish_reason"),
        sampling=types.Sampling(
            temperature=_shortest(message.sampling.temperature),
            top_p=_shortest(message.sampling.top_p),
            top_k=message.sampling.top_k,
            max_tokens=message.sampling.max_tokens,
            stop=tuple(message.sampling.stop),
        ),
        seed=message.seed,
        width=message.width,
        probability=message.probability,
        propensity=message.propensity,
        redacted=message.redacted,
        valid=message.valid,
        option_id=message.option_id,
        place=message.place,
    )


def feedback_into(message: events_pb2.FeedbackRecorded, feedback: Feedback, accepted_at: Timestamp) -> None:
    """Writes an act into its empty message, without its id and the digest of its body.

    In place, as everything on the way of a piece of feedback: a message within another is copied otherwise.
    """
    body_into(message.feedback, feedback)
    message.interaction_id = feedback.interaction_id
    message.domain = feedback.channel.domain
    message.tenant = feedback.channel.tenant
    message.accepted_at.CopyFrom(accepted_at)
    message.schema = FEEDBACK_SCHEMA
    message.answer = bytes.fromhex(feedback.answer)


def body_into(body: feedback_pb2.Feedback, feedback: Feedback) -> None:
    """Writes what a person said into its empty message, without its id."""
    act_into(body, feedback.act)
    body.rater = feedback.rater
    body.session_id = feedback.session_id
    body.whole_conversation = feedback.whole_conversation
    if feedback.reasons:
        body.reasons.extend(feedback.reasons)
    if feedback.tags:
        body.tags.update(dict(feedback.tags))


def feedback_from_proto(message: events_pb2.FeedbackRecorded) -> Feedback:
    """The act that a message records."""
    _schema(message, FEEDBACK_SCHEMA)
    return Feedback(
        feedback_id=_required(message.feedback, "feedback_id"),
        interaction_id=_required(message, "interaction_id"),
        channel=_channel(message),
        act=act_from_proto(message.feedback),
        accepted_at=moment(message, "accepted_at"),
        rater=message.feedback.rater,
        session_id=message.feedback.session_id,
        reasons=tuple(message.feedback.reasons),
        answer=message.answer.hex(),
        whole_conversation=message.feedback.whole_conversation,
        tags=_tags(message.feedback.tags),
    )


def act_to_proto(act: Act) -> feedback_pb2.Feedback:
    """A Feedback message that carries this act and nothing else."""
    body = feedback_pb2.Feedback()
    act_into(body, act)
    return body


def act_into(body: feedback_pb2.Feedback, act: Act) -> None:
    """Writes an act into an empty Feedback message."""
    said: Any
    match act:
        case types.Choice():
            said = body.choice
            said.chosen_id, said.other_id = act.chosen_id, act.other_id
            said.tie, said.tie_offered = act.tie, act.tie_offered
        case types.Ranking():
            said = body.ranking
            said.candidate_ids.extend(act.candidate_ids)
        case types.Thumbs():
            said = body.thumbs
            said.candidate_id, said.up = act.candidate_id, act.up
        case types.Correction():
            said = body.correction
            said.candidate_id, said.text = act.candidate_id, act.text
        case types.Rating():
            said = body.rating
            said.candidate_id, said.value = act.candidate_id, act.value
        case types.LabelAct():
            said = body.label
            said.candidate_id, said.value = act.candidate_id, act.value
        case types.Signal():
            said = body.signal
            said.candidate_id, said.name, said.value = act.candidate_id, act.name, act.value
        case types.Comment():
            said = body.comment
            said.candidate_id, said.text = act.candidate_id, act.text
    said.SetInParent()  # which act it is, also if all its fields are empty


def act_from_proto(message: feedback_pb2.Feedback) -> Act:
    """The act that a message carries; raises Undecodable if it carries none that this release knows."""
    match message.WhichOneof("act"):
        case "thumbs":
            return types.Thumbs(message.thumbs.candidate_id, message.thumbs.up)
        case "choice":
            choice = message.choice
            return types.Choice(choice.chosen_id, choice.other_id, choice.tie, choice.tie_offered)
        case "ranking":
            return types.Ranking(tuple(message.ranking.candidate_ids))
        case "correction":
            return types.Correction(message.correction.candidate_id, message.correction.text)
        case "rating":
            return types.Rating(message.rating.candidate_id, message.rating.value)
        case "label":
            return types.LabelAct(message.label.candidate_id, message.label.value)
        case "signal":
            return types.Signal(message.signal.candidate_id, message.signal.name, message.signal.value)
        case "comment":
            return types.Comment(message.comment.candidate_id, message.comment.text)
        case _:
            raise Undecodable(f"the feedback {message.feedback_id!r} carries no act that this release knows")


def retraction_to_proto(retraction: Retraction) -> events_pb2.FeedbackRetracted:
    """The message of a withdrawal."""
    return events_pb2.FeedbackRetracted(
        feedback_id=retraction.feedback_id,
        interaction_id=retraction.interaction_id,
        domain=retraction.channel.domain,
        tenant=retraction.channel.tenant,
        rater=retraction.rater,
        session_id=retraction.session_id,
        accepted_at=timestamp(retraction.accepted_at),
        schema=RETRACTION_SCHEMA,
    )


def retraction_from_proto(message: events_pb2.FeedbackRetracted) -> Retraction:
    """The withdrawal that a message records."""
    _schema(message, RETRACTION_SCHEMA)
    return Retraction(
        feedback_id=_required(message, "feedback_id"),
        interaction_id=_required(message, "interaction_id"),
        channel=_channel(message),
        accepted_at=moment(message, "accepted_at"),
        rater=message.rater,
        session_id=message.session_id,
    )


def release_change_to_proto(change: ReleaseChange) -> events_pb2.ReleaseChanged:
    """The message of a channel's change; its time is the envelope's."""
    channel = str(change.channel)
    state = releases_pb2.ChannelState(
        channel=channel, generation=change.generation, live=change.live, pinned=change.pinned
    )
    if change.canary is not None:
        state.canary = change.canary
    return events_pb2.ReleaseChanged(
        state=state,
        release=releases_pb2.Release(
            channel=channel,
            version=change.version,
            digest=change.digest,
            state=STATE_PREFIX + change.state.upper(),
            created_at=timestamp(change.created_at),
            decision_json=change.decision_json,
        ),
        actor=change.actor,
        reason=change.reason,
        schema=RELEASE_SCHEMA,
    )


def release_change_from_proto(message: events_pb2.ReleaseChanged, changed_at: dt.datetime) -> ReleaseChange:
    """The channel's change that a message records."""
    _schema(message, RELEASE_SCHEMA)
    state, release = message.state, message.release
    try:
        channel = Channel.parse(state.channel)
        name = releases_pb2.ReleaseState.Name(release.state)
    except ValueError as error:
        raise Undecodable(f"ReleaseChanged: {error}") from error
    return ReleaseChange(
        channel=channel,
        generation=state.generation,
        live=state.live,
        canary=state.canary if state.HasField("canary") else None,
        pinned=state.pinned,
        version=release.version,
        digest=release.digest,
        state=name.removeprefix(STATE_PREFIX).lower(),
        created_at=moment(release, "created_at"),
        changed_at=changed_at,
        decision_json=release.decision_json,
        actor=message.actor,
        reason=message.reason,
    )


def rejected_to_proto(rejected: Rejected) -> events_pb2.RecordRejected:
    """The message of a rejected record; its time is the envelope's."""
    return events_pb2.RecordRejected(
        reason=REASON_PREFIX + rejected.reason,
        message=rejected.message,
        topic=rejected.topic,
        partition=rejected.partition,
        offset=rejected.offset,
        key=rejected.key,
        value=rejected.value,
        schema=REJECTED_SCHEMA,
        headers=headers_to_proto(rejected.headers),
    )


def rejected_from_proto(message: events_pb2.RecordRejected, rejected_at: dt.datetime) -> Rejected:
    """The rejected record that a message carries."""
    _schema(message, REJECTED_SCHEMA)
    try:
        reason = errors_pb2.ErrorReason.Name(message.reason)
    except ValueError as error:
        raise Undecodable(f"RecordRejected: {error}") from error
    return Rejected(
        reason=reason.removeprefix(REASON_PREFIX),
        message=message.message,
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=message.key,
        value=message.value,
        rejected_at=rejected_at,
        headers=headers_of(message),
    )


def headers_to_proto(headers: Headers) -> list[events_pb2.RecordHeader]:
    """The messages of headers."""
    return [events_pb2.RecordHeader(name=name, value=value) for name, value in headers]


def headers_of(message: events_pb2.RecordRejected) -> Headers:
    """The headers that a message names."""
    return tuple((each.name, each.value) for each in message.headers)


def sealed_from_proto(message: events_pb2.Sealed) -> SealedRecord:
    """What a sealed record says in the clear."""
    _schema(message, SEALED_SCHEMA)
    return SealedRecord(
        key_id=_required(message, "key_id"),
        interaction_id=_required(message, "interaction_id"),
        channel=_channel(message),
    )


def _schema(message: Any, known: int) -> int:
    """Version of a message's meaning; raises Undecodable if a later release wrote it."""
    schema: int = message.schema or 1
    if schema > known:
        raise Undecodable(f"{message.DESCRIPTOR.name} has schema {schema}; this release reads up to {known}")
    return schema


def _required(message: ProtoMessage, field: str) -> str:
    value: str = getattr(message, field)
    if not value:
        raise Undecodable(f"{message.DESCRIPTOR.name} has no {field}")
    return value


def _channel(message: Any) -> Channel:
    return Channel(_required(message, "domain"), _required(message, "tenant"))


def _tags(tags: Mapping[str, str]) -> types.Tags:
    return tuple(sorted(tags.items())) if tags else ()


def _named(names: dict[Any, Any], message: ProtoMessage, field: str) -> Any:
    value = getattr(message, field)
    if value not in names:
        raise Undecodable(f"{message.DESCRIPTOR.name}.{field} is {value}, which this release has no name for")
    return names[value]


def _shortest(value: float) -> float:
    """The shortest decimal that this 32-bit value stands for, so that a temperature of 0.7 comes back as 0.7."""
    return _shortest_above_zero(value) if value > 0 else value  # 0 and -0 would be one key of the cache


@functools.lru_cache(maxsize=1024)  # a channel samples with few temperatures
def _shortest_above_zero(value: float) -> float:
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        try:
            if struct.unpack("<f", struct.pack("<f", short))[0] == value:
                return short
        except OverflowError:  # rounded up beyond the greatest 32-bit value
            continue
    return value
