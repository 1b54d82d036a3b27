"""A release's card: what it is, what it learnt from, what was measured of it and for whom, as a page for people. Pure.

Enters: a release as `plaudit release show` prints it. Leaves: Markdown. It holds numbers and names of checks, never
what people wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SLICE, _HARM, _TERM = "slice_", "harm_", "term_"
_REWARD = ("reward_comparisons", "reward_raters", "reward_accuracy", "reward_against_live")


def card(release: Mapping[str, Any]) -> str:
    """The card of a release: its row with `decision` (None for the base) and `manifest`, in plain JSON types."""
    manifest, decision = release["manifest"], release.get("decision") or {}
    checks: Sequence[Mapping[str, Any]] = decision.get("checks", [])
    slices = [check for check in checks if check["name"].startswith(_SLICE)]
    learnt = bool(manifest["evidence_counts"])
    lines = [
        f"# {release['channel']}, version {release['version']}: {release['state']}",
        "",
        *_facts(release, manifest, decision),
        "",
        "## What it learnt from",
        "",
        *(_table(("evidence", "items"), sorted(manifest["evidence_counts"].items())) if learnt else ["Nothing."]),
    ]
    if slices:
        worst = min(slices, key=lambda check: check["value"])
        lines += [
            "",
            "## For whom it is right",
            "",
            "How often its reward model orders two answers as held-out raters do. What raters do not agree on, no",
            "model gets right: if two groups differ, it follows the larger share of votes.",
            "",
            *_table(
                ("slice", "accuracy", "95% from", "to", "what was counted"), [_row(check, _SLICE) for check in slices]
            ),
            "",
            f"Worst: {worst['name'].removeprefix(_SLICE)}, {_number(worst['value'])}.",
        ]
    for title, wanted in (
        ("Harm and the domain's own terms", lambda name: name.startswith((_HARM, _TERM)) or name == "missed_severe"),
        ("Its reward model", lambda name: name in _REWARD),
        ("The gate's other checks", lambda name: True),
    ):
        chosen = [check for check in checks if wanted(check["name"])]
        checks = [check for check in checks if check not in chosen]
        rows = [
            (check["name"], "passed" if check["passed"] else "failed", *map(_number, _values(check)), check["note"])
            for check in chosen
            if not check["name"].startswith(_SLICE)
        ]
        if rows:
            lines += ["", f"## {title}", "", *_table(("check", "", "value", "bound", "note"), rows)]
    return "\n".join([*lines, ""])


def _facts(release: Mapping[str, Any], manifest: Mapping[str, Any], decision: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest["versions"].items()))
    facts = [
        ("digest", release["digest"]),
        ("made", manifest["created_at"]),
        ("began from version", manifest["parent"]),
        ("base", manifest["base_digest"]),
        ("evidence until", manifest.get("newest_feedback_at")),
        ("evidence digest", manifest["evidence_digest"]),
        ("KL to the base, nats", None if manifest["kl"] is None else _number(manifest["kl"])),
        ("gate", _verdict(decision)),
        ("versions", versions or None),
    ]
    return [f"- {name}: {value}" for name, value in facts if value is not None]


def _verdict(decision: Mapping[str, Any]) -> str:
    if not decision:
        return "none: the base is not judged"
    return "accepted" if decision["accepted"] else "refused"


def _row(check: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    note = check["note"].removeprefix("for information: ")
    return (check["name"].removeprefix(prefix), *map(_number, (check["value"], check["low"], check["high"])), note)


def _values(check: Mapping[str, Any]) -> tuple[Any, Any]:
    return check["value"], check["threshold"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines]
