"""Between the frozen types and what the tables hold; each function has its inverse beside it. Pure.

Evidence becomes the deterministic bytes of `plaudit.v1.EvidenceRow`, over which a frozen data set's digest runs.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping

from plaudit.eventlog.codec import request_digest
from plaudit.evidence.tables import EPOCH, MICROSECOND, from_micros, to_micros
from plaudit.types import (
    Action,
    Binary,
    Candidate,
    Channel,
    Demo,
    Evidence,
    FeedbackKind,
    FinishReason,
    Interaction,
    Label,
    Message,
    Pair,
    PairOutcome,
    Passage,
    Purpose,
    RankingEvidence,
    Sampling,
    Scalar,
)
from plaudit.v1 import evidence_pb2 as pb

EVIDENCE_SCHEMA = 1  # written as 0, its absence, so that the same evidence has the same digest as ever


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvidence:
    """A row of evidence before the splits, which depend on the channel's salt."""

    interaction_id: str
    feedback_id: str
    index: int
    kind: FeedbackKind
    evidence: Evidence
    who: str
    accepted_at: dt.datetime
    prompt_group: str
    channel: Channel

    @property
    def order(self) -> tuple[str, str, int]:
        """The key that rows of a frozen data set are sorted by."""
        return (self.interaction_id, self.feedback_id, self.index)


def interaction_row(interaction: Interaction) -> dict[str, Any]:
    """The row of table interactions; of an EVALUATE interaction nothing but what tells that it was seen."""
    kept = interaction.purpose is not Purpose.EVALUATE
    return {
        "interaction_id": interaction.interaction_id,
        "domain": interaction.channel.domain,
        "tenant": interaction.channel.tenant,
        "purpose": interaction.purpose.value,
        "action": interaction.action.value,
        "session_id": interaction.session_id if kept else "",
        "end_user": interaction.end_user if kept else "",
        "rater": interaction.rater if kept else "",
        "messages": _json([(m.role, m.content) for m in interaction.messages] if kept else []),
        "passages": _json([(p.passage_id, p.text, p.source) for p in interaction.passages] if kept else []),
        "prompt_group": interaction.prompt_group if kept else "",
        "plugin_version": interaction.plugin_version,
        "base_digest": interaction.base_digest,
        "completed_at": to_micros(interaction.completed_at),
        "prompt_tokens": _pack("I", interaction.prompt_tokens if kept else ()),
        "order_logprob": interaction.order_logprob,
        "answers": _json(interaction.answers),
        "digest": request_digest(interaction),
    }


def candidate_rows(interaction: Interaction) -> list[dict[str, Any]]:
    """The rows of table candidates, in order; none for EVALUATE."""
    if interaction.purpose is Purpose.EVALUATE:
        return []
    return [
        {
            "interaction_id": interaction.interaction_id,
            "position": position,
            "candidate_id": candidate.candidate_id,
            "release_version": candidate.release_version,
            "release_digest": candidate.release_digest,
            "tokens": _pack("I", candidate.tokens),
            "logprobs_raw": _pack("f", candidate.logprobs_raw),
            "logprobs_sampled": _pack("f", candidate.logprobs_sampled),
            "text": candidate.text,
            "displayed_text": candidate.displayed_text,
            "finish_reason": candidate.finish_reason.value if candidate.finish_reason else "",
            "sampling": _json(_sampling_fields(candidate.sampling)),
            "seed": str(candidate.seed),
            "width": candidate.width,
            "probability": candidate.probability,
            "propensity": candidate.propensity,
            "redacted": candidate.redacted,
            "valid": candidate.valid,
            "option_id": candidate.option_id,
        }
        for position, candidate in enumerate(interaction.candidates)
    ]


def interaction_from_rows(row: RowMapping, candidates: Iterable[RowMapping]) -> Interaction:
    """The interaction of its row and its candidates' rows in order."""
    return Interaction(
        interaction_id=row["interaction_id"],
        channel=Channel(row["domain"], row["tenant"]),
        purpose=Purpose(row["purpose"]),
        action=Action(row["action"]),
        messages=messages_from_json(row["messages"]),
        passages=passages_from_json(row["passages"]),
        prompt_group=row["prompt_group"],
        candidates=tuple(_candidate(each) for each in candidates),
        completed_at=from_micros(row["completed_at"]),
        prompt_tokens=tokens_from_bytes(row["prompt_tokens"]),
        order_logprob=row["order_logprob"],
        answers=tuple(json.loads(row["answers"])),
        session_id=row["session_id"],
        end_user=row["end_user"],
        rater=row["rater"],
        plugin_version=row["plugin_version"],
        base_digest=row["base_digest"],
    )


def _candidate(row: RowMapping) -> Candidate:
    sampling = json.loads(row["sampling"])
    return Candidate(
        candidate_id=row["candidate_id"],
        release_version=row["release_version"],
        release_digest=row["release_digest"],
        tokens=tokens_from_bytes(row["tokens"]),
        logprobs_raw=_unpack("f", row["logprobs_raw"]),
        logprobs_sampled=_unpack("f", row["logprobs_sampled"]),
        text=row["text"],
        displayed_text=row["displayed_text"],
        finish_reason=FinishReason(row["finish_reason"]) if row["finish_reason"] else None,
        sampling=Sampling(**(sampling | {"stop": tuple(sampling["stop"])})),
        seed=int(row["seed"]),
        width=row["width"],
        probability=row["probability"],
        propensity=row["propensity"],
        redacted=row["redacted"],
        valid=row["valid"],
        option_id=row["option_id"],
    )


def messages_from_json(text: str) -> tuple[Message, ...]:
    """The conversation of column messages."""
    return tuple(Message(role, content) for role, content in json.loads(text))


def passages_from_json(text: str) -> tuple[Passage, ...]:
    """The passages of column passages."""
    return tuple(Passage(passage_id, content, source) for passage_id, content, source in json.loads(text))


def tokens_from_bytes(data: bytes) -> tuple[int, ...]:
    """Token ids of a little-endian uint32 array."""
    return _unpack("I", data)


def evidence_to_bytes(row: StoredEvidence) -> bytes:
    """Deterministic bytes of `plaudit.v1.EvidenceRow`."""
    message = pb.EvidenceRow(
        interaction_id=row.interaction_id,
        feedback_id=row.feedback_id,
        index=row.index,
        kind=row.kind.value,
        who=row.who,
        prompt_group=row.prompt_group,
        domain=row.channel.domain,
        tenant=row.channel.tenant,
    )
    message.accepted_at.FromDatetime(row.accepted_at)
    match row.evidence:
        case Pair() as pair:
            message.pair.CopyFrom(
                pb.PairEvidence(
                    first=pair.first,
                    second=pair.second,
                    outcome=_OUTCOMES[pair.outcome],
                    tie_offered=pair.tie_offered,
                    margin=pair.margin,
                )
            )
        case RankingEvidence(order=order):
            message.ranking.CopyFrom(pb.RankingEvidence(order=order))
        case Binary(candidate=candidate, positive=positive):
            message.binary.CopyFrom(pb.BinaryEvidence(candidate=candidate, positive=positive))
        case Scalar(candidate=candidate, value=number):
            message.scalar.CopyFrom(pb.ScalarEvidence(candidate=candidate, value=number))
        case Demo(candidate=candidate, text=text, margin=margin):
            message.demo.CopyFrom(pb.DemoEvidence(candidate=candidate, text=text, margin=margin))
        case Label(candidate=candidate, value=name):
            message.label.CopyFrom(pb.LabelEvidence(candidate=candidate, value=name))
    return message.SerializeToString(deterministic=True)


def evidence_from_bytes(data: bytes) -> StoredEvidence:
    """The row of its bytes."""
    message = pb.EvidenceRow.FromString(data)
    if (message.schema or 1) > EVIDENCE_SCHEMA:
        raise ValueError(f"evidence row of schema {message.schema}; this release reads up to {EVIDENCE_SCHEMA}")
    stamp = message.accepted_at
    return StoredEvidence(
        interaction_id=message.interaction_id,
        feedback_id=message.feedback_id,
        index=message.index,
        kind=FeedbackKind(message.kind),
        evidence=_atom(message),
        who=message.who,
        accepted_at=EPOCH + (stamp.seconds * 1_000_000 + stamp.nanos // 1000) * MICROSECOND,
        prompt_group=message.prompt_group,
        channel=Channel(message.domain, message.tenant),
    )


def _atom(message: pb.EvidenceRow) -> Evidence:
    match message.WhichOneof("atom"):
        case "pair":
            pair = message.pair
            return Pair(
                first=pair.first,
                second=pair.second,
                outcome=_OUTCOMES_BACK[pair.outcome],
                tie_offered=pair.tie_offered,
                margin=pair.margin,
            )
        case "ranking":
            return RankingEvidence(order=tuple(message.ranking.order))
        case "binary":
            return Binary(candidate=message.binary.candidate, positive=message.binary.positive)
        case "scalar":
            return Scalar(candidate=message.scalar.candidate, value=message.scalar.value)
        case "demo":
            return Demo(candidate=message.demo.candidate, text=message.demo.text, margin=message.demo.margin)
        case "label":
            return Label(candidate=message.label.candidate, value=message.label.value)
        case other:
            raise ValueError(f"evidence row of feedback {message.feedback_id!r} has the unknown atom {other!r}")


_OUTCOMES: dict[PairOutcome, pb.PairOutcome] = {
    PairOutcome.FIRST: pb.PAIR_OUTCOME_FIRST,
    PairOutcome.SECOND: pb.PAIR_OUTCOME_SECOND,
    PairOutcome.TIE: pb.PAIR_OUTCOME_TIE,
}
_OUTCOMES_BACK = {number: outcome for outcome, number in _OUTCOMES.items()}


def _sampling_fields(sampling: Sampling) -> dict[str, Any]:
    return {each.name: getattr(sampling, each.name) for each in dataclasses.fields(sampling)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _pack(code: str, values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


def _unpack(code: str, data: bytes) -> tuple[Any, ...]:
    return struct.unpack(f"<{len(data) // 4}{code}", data)
