"""What the simulator saw, kept apart from the service's own books so that the two can be compared.

Threads of the simulator write, reports read. Counts only what it was told: an act is acknowledged when the service
said so.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plaudit.types import FeedbackKind, Message, Purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRecord:
    """One completion or option as it came. `seed` is a completion's own, so that it can be made again."""

    candidate_id: str
    release_version: int
    release_digest: str
    seed: int
    token_ids: tuple[int, ...]
    text: str
    option_id: str = ""
    probability: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRecord:
    """One answered request: what was asked, what came back in the order shown, when.

    `temperature` None is the release's own. `decision`: candidate id of the option decided; empty for completions.
    """

    interaction_id: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float | None
    started_at: dt.datetime
    ended_at: dt.datetime
    attempts: int
    candidates: tuple[CandidateRecord, ...]
    purpose: Purpose = Purpose.SERVE
    decision: str = ""

    @property
    def latency_seconds(self) -> float:
        """Time from the first attempt to the reply."""
        return (self.ended_at - self.started_at).total_seconds()

    @property
    def versions(self) -> tuple[int, ...]:
        """Release of each candidate."""
        return tuple(candidate.release_version for candidate in self.candidates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request or an act that the service did not take, however often it was sent."""

    what: str
    at: dt.datetime
    reason: str
    message: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgedAct:
    """An act that the service called durable."""

    feedback_id: str
    interaction_id: str
    rater: str
    kind: FeedbackKind
    sent_at: dt.datetime
    acknowledged_at: dt.datetime


class SimulationLedger:
    """Requests and acts of one simulation. Safe for threads: it can be read while it grows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._replies: list[ReplyRecord] = []
        self._acknowledged: list[AcknowledgedAct] = []
        self._failures: list[Failure] = []
        self._requests = 0
        self._acts = 0
        self._retries = 0

    def asked(self) -> None:
        """Counts a request that goes out."""
        with self._lock:
            self._requests += 1

    def sent(self) -> None:
        """Counts an act that goes out."""
        with self._lock:
            self._acts += 1

    def replied(self, reply: ReplyRecord) -> None:
        """Keeps a reply."""
        with self._lock:
            self._replies.append(reply)
            self._retries += reply.attempts - 1

    def acknowledged_act(self, act: AcknowledgedAct, attempts: int) -> None:
        """Keeps an acknowledgement."""
        with self._lock:
            self._acknowledged.append(act)
            self._retries += attempts - 1

    def failed(self, failure: Failure) -> None:
        """Keeps a failure."""
        with self._lock:
            self._failures.append(failure)

    @property
    def requests(self) -> int:
        """Requests so far."""
        return self._requests

    @property
    def replies(self) -> Sequence[ReplyRecord]:
        """Replies so far, in order of arrival."""
        with self._lock:
            return tuple(self._replies)

    @property
    def acknowledged(self) -> Sequence[AcknowledgedAct]:
        """Acknowledged acts so far, in order of acknowledgement."""
        with self._lock:
            return tuple(self._acknowledged)

    @property
    def failures(self) -> Sequence[Failure]:
        """Failures so far."""
        with self._lock:
            return tuple(self._failures)

    @property
    def feedback_ids(self) -> frozenset[str]:
        """Ids of the acknowledged acts: each must be found once in the log, and in the evidence store."""
        return frozenset(act.feedback_id for act in self.acknowledged)

    def counts(self) -> dict[str, Any]:
        """Numbers for reports: requests and acts sent, answered, failed, sent again, and acts by kind."""
        with self._lock:
            kinds = Counter(act.kind.value for act in self._acknowledged)
            versions = Counter(version for reply in self._replies for version in reply.versions)
            what = Counter(failure.what for failure in self._failures)
            return {
                "requests": self._requests,
                "replies": len(self._replies),
                "requests_failed": what["request"],
                "acts": self._acts,
                "acknowledged": len(self._acknowledged),
                "acts_failed": what["act"],
                "retries": self._retries,
                "kinds": dict(sorted(kinds.items())),
                "candidates_by_version": {str(version): versions[version] for version in sorted(versions)},
            }

    def audit(self, stored: Mapping[str, int]) -> dict[str, int]:
        """Acts lost and doubled; `stored` counts how often each feedback id was found downstream."""
        ids = self.feedback_ids
        return {
            "lost": sum(stored.get(feedback_id, 0) == 0 for feedback_id in ids),
            "doubled": sum(stored.get(feedback_id, 0) > 1 for feedback_id in ids),
        }

    def traffic(self) -> list[dict[str, Any]]:
        """For each reply its time of arrival, latency and versions, as plain JSON types."""
        return [
            {"at": reply.ended_at.timestamp(), "latency": reply.latency_seconds, "versions": list(reply.versions)}
            for reply in self.replies
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON types with times in ISO 8601."""
        return {
            "counts": self.counts(),
            "replies": [_plain(reply) for reply in self.replies],
            "acknowledged": [_plain(act) for act in self.acknowledged],
            "failures": [_plain(failure) for failure in self.failures],
        }


def _plain(record: ReplyRecord | AcknowledgedAct | Failure) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, dt.datetime) else value for name, value in asdict(record).items()
    }
