"""Between a row of evidence and its bytes, the deterministic `plaudit.v1.EvidenceRow` that digests run over. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from plaudit.evidence.tables import EPOCH, MICROSECOND
from plaudit.types import (
    Binary,
    Channel,
    Demo,
    Evidence,
    FeedbackKind,
    Label,
    Pair,
    PairOutcome,
    RankingEvidence,
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
        case RankingEvidence(order=order, observed=observed):
            message.ranking.CopyFrom(pb.RankingEvidence(order=order, observed=observed or 0))
        case Binary(candidate=candidate, positive=positive, source=source):
            message.binary.CopyFrom(pb.BinaryEvidence(candidate=candidate, positive=positive, source=source))
        case Scalar(candidate=candidate, value=number, source=source):
            message.scalar.CopyFrom(pb.ScalarEvidence(candidate=candidate, value=number, source=source))
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
            ranking = message.ranking
            return RankingEvidence(order=tuple(ranking.order), observed=ranking.observed or None)
        case "binary":
            binary = message.binary
            return Binary(candidate=binary.candidate, positive=binary.positive, source=binary.source)
        case "scalar":
            scalar = message.scalar
            return Scalar(candidate=scalar.candidate, value=scalar.value, source=scalar.source)
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
