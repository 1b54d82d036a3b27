"""Manifests and gate decisions as messages, for those who read them over the wire.

Enters: a Manifest or a Decision. Leaves: its message. The JSON of both stays what is stored and digested; nothing is
ever read back from a message. The salt of a channel's splits and the proof's token ids never leave.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.release.decision import Decision
from plaudit.release.manifest import Manifest
from plaudit.v1 import releases_pb2


def manifest_message(manifest: Manifest) -> releases_pb2.ReleaseManifest:
    """The manifest, typed."""
    message = releases_pb2.ReleaseManifest(
        channel=str(manifest.channel),
        version=manifest.version or 0,
        parent=manifest.parent,
        generation=manifest.generation,
        base_digest=manifest.base_digest,
        base_dtype=manifest.base_dtype or "",
        temperature=manifest.temperature,
        reward_model=manifest.reward_model or "",
        as_of=_stamp(manifest.as_of),
        newest_feedback_at=_stamp(manifest.newest_feedback_at),
        offsets=[releases_pb2.CoveredOffsets(**dict(each)) for each in manifest.offsets],
        evidence_digest=manifest.evidence_digest or "",
        evidence_counts=manifest.evidence_counts,
        seeds=manifest.seeds,
        versions=manifest.versions,
        kl=manifest.kl,
        created_at=_stamp(manifest.created_at),
        probes=len(manifest.probes),
        artifacts=manifest.artifacts,
    )
    if manifest.adapter is not None:
        message.adapter.CopyFrom(releases_pb2.ReleaseAdapter(**dict(manifest.adapter)))
    message.settings.update(manifest.settings)
    return message


def gate_message(decision_json: str) -> releases_pb2.GateReport | None:
    """The gate's decision, typed; None before the gate, or if the text is none of this version's."""
    if not decision_json:
        return None
    try:
        decision = Decision.from_json(decision_json)
    except (KeyError, TypeError, ValueError):
        return None
    return releases_pb2.GateReport(
        accepted=decision.accepted,
        decided_at=_stamp(decision.decided_at),
        checks=[
            releases_pb2.GateCheck(
                name=check.name,
                passed=check.passed,
                value=_measured(check.value),
                threshold=_measured(check.threshold),
                low=_measured(check.low),
                high=_measured(check.high),
                note=check.note,
            )
            for check in decision.checks
        ],
    )


def _measured(number: Any) -> float | None:
    return float(number) if number is not None and math.isfinite(number) else None


def _stamp(moment: dt.datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
