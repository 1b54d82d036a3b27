"""The simulated people as the demo sees them: command lines, and what they wrote down.

Enters: sizes and file names; the ledgers and judgements that the simulator's process wrote. Leaves: arguments of
`plaudit simulate`, `evaluate`, `judge` and `judge-states`, and plain values. Never imports a population: the gold
preference lives in the simulator's process alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.demo.audit import Act


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What people wrote down: requests sent and failed, and the acts that were acknowledged to them."""

    sent: int = 0
    failed: int = 0
    acknowledged: tuple[Act, ...] = ()

    def __add__(self, other: Ledger) -> Ledger:
        """Both together."""
        return Ledger(
            sent=self.sent + other.sent,
            failed=self.failed + other.failed,
            acknowledged=self.acknowledged + other.acknowledged,
        )


def simulate_arguments(
    *,
    population: str,
    target: str,
    events: int,
    seed: int,
    concurrency: int,
    temperature: float,
    ledger: Path,
    acts_per_interaction: float = 3.3,
    base_share: float = 0.0,
    round_: int = 0,
    pause: float = 0.0,
    after: Path | None = None,
) -> list[str]:
    """Arguments of `plaudit simulate`; 0 events go on until the process is asked to end."""
    return [
        *("simulate", "--population", population, "--target", target),
        *("--events", str(events), "--acts-per-interaction", f"{acts_per_interaction:g}"),
        *(
            "--seed",
            str(seed),
            "--round",
            str(round_),
            "--concurrency",
            str(concurrency),
            "--temperature",
            f"{temperature:g}",
        ),
        *("--base-share", f"{base_share:g}", "--pause", f"{pause:g}", "--ledger", str(ledger)),
        *(("--after", str(after)) if after else ()),
    ]


def evaluate_arguments(
    *,
    population: str,
    target: str,
    versions: Sequence[int],
    seed: int,
    concurrency: int,
    temperature: float,
    prompts: int,
    samples: int,
    out: Path,
    answers: Path,
) -> list[str]:
    """Arguments of `plaudit evaluate`."""
    return [
        *("evaluate", "--population", population, "--target", target),
        *("--releases", ",".join(str(version) for version in versions), "--seed", str(seed)),
        *("--concurrency", str(concurrency), "--temperature", f"{temperature:g}"),
        *("--prompts", str(prompts), "--samples", str(samples)),
        *("--out", str(out), "--answers", str(answers)),
    ]


def judge_arguments(*, population: str, seed: int, answers: Path, picks: Path, out: Path) -> list[str]:
    """Arguments of `plaudit judge`."""
    return [
        *("judge", "--population", population, "--seed", str(seed)),
        *("--answers", str(answers), "--picks", str(picks), "--out", str(out)),
    ]


def judge_states_arguments(*, population: str, seed: int, states: Sequence[Path], out: Path) -> list[str]:
    """Arguments of `plaudit judge-states`."""
    files = [part for path in states for part in ("--states", str(path))]
    return ["judge-states", "--population", population, "--seed", str(seed), *files, "--out", str(out)]


def read_ledger(path: Path) -> Ledger:
    """The ledger in a file; raises OSError if the process wrote none."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Ledger(
        sent=content["counts"]["requests"],
        failed=content["counts"]["requests_failed"],
        acknowledged=tuple((act["interaction_id"], act["feedback_id"]) for act in content["acknowledged"]),
    )
