"""Turns what the run left behind (registry, log, evidence, judgements) into the rows of report.json.

Enters: rows of the registry, replies of the log, judgements by gold. Leaves: plain JSON types. Pure but for reading
the registry and the store that it is given.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.demo.audit import Reply
from plaudit.evidence.store import FrozenDataSet
from plaudit.release.moves import ChangeRow
from plaudit.release.registry import Registry
from plaudit.types import Channel

# Seconds shown before and after a swap; more before it, up to the second number, if staging took longer.
_AROUND, _AROUND_MAX = 10, 30
_EXAMPLES = 5
# Names that a gate may give to its check of the win-rate against the base, as its reward model sees it.
_SCORE_CHECK = "win_base"


def releases(
    registry: Registry, channel: Channel, judged: Mapping[int, Mapping[str, Any]], replies: Sequence[Reply]
) -> list[dict[str, Any]]:
    """Rows of "releases", the base first; `judged` are the evaluation's figures by version."""
    history = registry.history(channel)
    rows = []
    for release in registry.releases(channel):
        manifest = registry.manifest(channel, release.version)
        decision = json.loads(release.decision_json) if release.decision_json else None
        began, ended = _live(history, release.version)
        figures = dict(judged.get(release.version, {}))
        rows.append(
            {
                "version": release.version,
                "state": str(release.state),
                "as_of": _iso(manifest.as_of),
                "live_from": _iso(began),
                "live_until": _iso(ended),
                "gold_win_rate": figures.pop("gold_win_rate", None),
                "kl_nats_per_sequence": 0.0 if release.version == 0 else manifest.kl,
                "mean_tokens": figures.pop("mean_tokens", None) or _mean_tokens(replies, release.version),
                "gate": decision,
                "score_win_rate": _score_win_rate(decision),
                "evidence_counts": dict(manifest.evidence_counts),
                "iterates": manifest.settings.get("iterates") or [],
                "chosen": manifest.settings.get("chosen"),
                **figures,
            }
        )
    return rows


def freshness(
    registry: Registry, channel: Channel, frozen: FrozenDataSet, replies: Sequence[Reply]
) -> dict[str, float | None]:
    """Seconds from an act's acceptance to the first reply by a release that was trained on it.

    An act counts for the first release that went live among those whose evidence (as of its manifest) has it.
    """
    accepted: dict[tuple[str, str], dt.datetime] = {
        (row.interaction_id, row.feedback_id): row.accepted_at for row in frozen.rows
    }
    first_reply: dict[int, dt.datetime] = {}
    for reply in replies:
        if not reply.evaluation:
            for candidate in reply.candidates:
                version = candidate.release_version
                first_reply[version] = min(first_reply.get(version, reply.completed), reply.completed)
    waits: list[float] = []
    since = dt.datetime.min.replace(tzinfo=dt.UTC)
    for release in registry.releases(channel):
        as_of = registry.manifest(channel, release.version).as_of
        served = first_reply.get(release.version)
        if release.version == 0 or as_of is None or served is None:
            continue
        waits += [(served - moment).total_seconds() for moment in accepted.values() if since < moment <= as_of]
        since = as_of
    if not waits:
        return {"p50": None, "max": None}
    return {"p50": statistics.median(waits), "max": max(waits)}


def swaps(history: Sequence[ChangeRow], replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """What was asked around each swap, by the second in which a request began and the release that answered.

    Second 0 begins with the first request that this replica answered with the new release; `promoted` is when the
    channel's state changed, which is earlier by the time that a replica takes to stage and prove a release. A reply
    whose completions are of two releases counts for both. Evaluations are left out.
    """
    served = [reply for reply in replies if not reply.evaluation]
    found = []
    for change in swaps_of(history):
        new = [
            reply.started
            for reply in served
            if reply.started >= change.at and change.live in {each.release_version for each in reply.candidates}
        ]
        if not new:
            continue
        first = min(new)
        promoted = (change.at - first).total_seconds()
        seconds = list(range(max(-_AROUND_MAX, min(-_AROUND, math.floor(promoted) - 2)), _AROUND))
        by_version: dict[str, list[int]] = defaultdict(lambda seconds=seconds: [0] * len(seconds))  # type: ignore[misc]
        for reply in served:
            place = math.floor((reply.started - first).total_seconds()) - seconds[0]
            if 0 <= place < len(seconds):
                for version in {candidate.release_version for candidate in reply.candidates}:
                    by_version[str(version)][place] += 1
        found.append(
            {
                "version": change.live,
                "promoted": promoted if promoted >= seconds[0] else None,
                "seconds": seconds,
                "by_version": dict(by_version),
            }
        )
    return found


def pick_examples(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Five examples by rule: the least and the greatest change of gold, and those at the quarters between.

    `examples`: one per evaluation prompt, with the gold `before` and `after`. The order of prompts decides between
    equal changes. Fewer than five are all taken.
    """
    ordered = sorted(examples, key=lambda each: float(each["gold_after"]) - float(each["gold_before"]))
    if len(ordered) <= _EXAMPLES:
        return [dict(each) for each in ordered]
    last = len(ordered) - 1
    return [dict(ordered[round(last * place / (_EXAMPLES - 1))]) for place in range(_EXAMPLES)]


def swaps_of(history: Sequence[ChangeRow]) -> list[ChangeRow]:
    """The changes after which another version was live."""
    return [change for before, change in itertools.pairwise(history) if change.live != before.live]


def _live(history: Sequence[ChangeRow], version: int) -> tuple[dt.datetime | None, dt.datetime | None]:
    """When a version first went live, and when it last ceased to be."""
    began = ended = None
    for change in history:
        if change.live == version:
            began, ended = began or change.at, None
        elif began is not None and ended is None:
            ended = change.at
    return began, ended


def _mean_tokens(replies: Sequence[Reply], version: int) -> float | None:
    lengths = [
        len(candidate.tokens)
        for reply in replies
        for candidate in reply.candidates
        if candidate.release_version == version
    ]
    return statistics.fmean(lengths) if lengths else None


def _score_win_rate(decision: Mapping[str, Any] | None) -> dict[str, Any] | None:
    for check in (decision or {}).get("checks", []):
        if check["name"] == _SCORE_CHECK and check.get("low") is not None:
            high = check.get("high")
            return {
                "estimate": check["value"],
                "low": check["low"],
                "high": check["value"] if high is None else high,
            }
    return None


def _iso(moment: dt.datetime | None) -> str | None:
    return moment.isoformat() if moment else None
