"""Off-policy estimates on Open Bandit data, against the known value of the other policy.

Open Bandit (Saito et al. 2020, arXiv:2008.07146; Apache-2.0, st-tech/zr-obp) logged two policies of a shop side by
side, each with its true propensities: uniformly random, and Bernoulli Thompson sampling. What one's log says about the
other can be held against what the other really got. Two tables:

1. Real clicks. Each policy's value from the other's log by every estimator, with its 95% interval and effective sample
   size, beside the mean that the policy itself got, with its own (exact) interval. Thompson sampling's target is how
   often it showed each item in each position, for its propensities are known only for what it showed.
2. Known exactly. The same users and policies; a click has a chance that is a fixed function of user and item, and what
   is shown and clicked is drawn anew a few hundred times. The true value is then known, and so is how often a 95%
   interval holds it.

    PLAUDIT_DATA=../shared/data python benchmarks/estimators.py
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from plaudit.release.estimate import Estimates, Shown, TooLittleOverlap, estimate
from plaudit.release.intervals import Interval, share_bounds

Floats = NDArray[np.float64]
ITEMS, POSITIONS, FOLDS = 34, 3, 5
LEVEL = 0.975  # One-sided: the two bounds together are a 95% interval.
SHRINK = 50.0  # An item's click rate begins as the mean of so many rows.
NAMES = ("ips", "snips", "dr")


class Log(NamedTuple):
    """One policy's log, (N,) each. `users`: what is known of the user, as one number."""

    items: NDArray[np.int64]
    positions: NDArray[np.int64]
    clicks: Floats
    propensities: Floats
    users: NDArray[np.int64]

    @property
    def shares(self) -> Floats:
        """How often the policy showed each item in each position: (positions, items)."""
        found = np.zeros((POSITIONS, ITEMS))
        np.add.at(found, (self.positions, self.items), 1.0)
        shares: Floats = found / found.sum(axis=1, keepdims=True)
        return shares


def read(path: Path) -> Log:
    """A log of the data set."""
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    users = ["|".join(row[f"user_feature_{i}"] for i in range(4)) for row in rows]
    return Log(
        np.array([int(row["item_id"]) for row in rows]),
        np.array([int(row["position"]) - 1 for row in rows]),
        np.array([float(row["click"]) for row in rows]),
        np.array([float(row["propensity_score"]) for row in rows]),
        np.array([int.from_bytes(hashlib.sha256(user.encode()).digest()[:6], "big") for user in users]),
    )


def shown(log: Log, target: Floats) -> list[Shown]:
    """The log as `estimate` takes it. target: probability of each item by position.

    The reward estimate of a row is its item's click rate in the other folds, shrunk to the mean: no row is predicted
    from itself.
    """
    folds = np.arange(len(log.items)) % FOLDS
    rates = np.zeros((FOLDS, ITEMS))
    for fold in range(FOLDS):
        others = folds != fold
        clicks = np.bincount(log.items[others], log.clicks[others], ITEMS)
        rates[fold] = (clicks + SHRINK * log.clicks[others].mean()) / (
            np.bincount(log.items[others], minlength=ITEMS) + SHRINK
        )
    expected = (rates @ target.T)[folds, log.positions]
    weights = target[log.positions, log.items]
    return [
        Shown(
            unit=str(row),
            rewards=(float(log.clicks[row]),),
            logged=(float(log.propensities[row]),),
            target=(float(weights[row]),),
            predicted=(float(rates[folds[row], log.items[row]]),),
            expected=(float(expected[row]),),
        )
        for row in range(len(log.items))
    ]


def real(logs: Mapping[str, Log], targets: Mapping[str, Floats], min_ess: float) -> list[dict[str, Any]]:
    """Each policy's value from the other's log, beside what it got itself."""
    found = []
    for policy, other in (("thompson", "random"), ("random", "thompson")):
        own = logs[policy].clicks
        low, high = share_bounds(int(own.sum()), len(own), level=LEVEL)
        row: dict[str, Any] = {
            "policy": policy,
            "log": other,
            "known": {"value": float(own.mean()), "low": low, "high": high},
            "observed": float(logs[other].clicks.mean()),
        }
        try:
            row |= _told(estimate(shown(logs[other], targets[policy]), min_ess=min_ess, level=LEVEL))
        except TooLittleOverlap as error:
            row["refused"] = str(error)
        found.append(row)
    return found


def _told(found: Estimates) -> dict[str, Any]:
    intervals: dict[str, Interval | None] = {name: getattr(found, name) for name in NAMES}
    return {"ess": found.ess} | {
        name: {"value": each.value, "low": each.low, "high": each.high} for name, each in intervals.items() if each
    }


def redrawn(
    logs: Mapping[str, Log], policies: Mapping[str, Floats], rows: int, trials: int, seed: int
) -> list[dict[str, Any]]:
    """Bias and coverage on logs that are drawn anew, with chances of a click that are known."""
    rng = np.random.default_rng(seed)
    users = np.unique(np.concatenate([log.users for log in logs.values()]))
    # What Thompson sampling shows more is liked more, as it would be; the rest is each user's own taste.
    liked = 0.5 * np.log(ITEMS * policies["thompson"].mean(axis=0))
    taste = 1 / (1 + np.exp(-(-2.5 + liked + rng.normal(0, 0.7, (len(users), ITEMS)))))
    found = []
    for policy, other in (("thompson", "random"), ("random", "thompson")):
        log, drawing, target = logs[other], policies[other], policies[policy]
        at = np.searchsorted(users, log.users)
        truth = float((target[log.positions] * taste[at]).sum(axis=1).mean())
        told: dict[str, list[tuple[float, bool]]] = {name: [] for name in NAMES}
        effective, refused = [], 0
        for trial in range(trials):
            picked = rng.integers(0, len(log.items), rows)
            positions, at_row = log.positions[picked], at[picked]
            items = (drawing[positions].cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
            clicks = (rng.random(rows) < taste[at_row, items]).astype(np.float64)
            drawn = Log(items, positions, clicks, drawing[positions, items], log.users[picked])
            try:
                estimates = estimate(shown(drawn, target), level=LEVEL, draws=500, seed=trial)
            except TooLittleOverlap:
                refused += 1
                continue
            effective.append(estimates.ess)
            for name in NAMES:
                each = getattr(estimates, name)
                told[name].append((each.value, each.low <= truth <= each.high))
        row: dict[str, Any] = {"policy": policy, "log": other, "rows": rows, "truth": truth, "refused": refused}
        row["observed"] = float((drawing[log.positions] * taste[at]).sum(axis=1).mean())
        row["ess"] = float(np.mean(effective)) if effective else None
        for name, several in told.items():
            if several:
                values = np.array([value for value, _ in several])
                row[name] = {
                    "mean": float(values.mean()),
                    "rmse": float(np.sqrt(((values - truth) ** 2).mean())),
                    "held": float(np.mean([held for _, held in several])),
                }
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("PLAUDIT_DATA", "../shared/data")) / "open_bandit"
    if not folder.is_dir():
        sys.exit(f"there is no {folder}; name the folder with open_bandit/ in PLAUDIT_DATA")
    logs = {"random": read(folder / "random_men.csv"), "thompson": read(folder / "bts_men.csv")}
    policies = {"random": np.full((POSITIONS, ITEMS), 1 / ITEMS), "thompson": logs["thompson"].shares}
    # To draw from Thompson sampling anew, every item needs a chance: those that it never showed get half a row's.
    counts = policies["thompson"] * np.bincount(logs["thompson"].positions, minlength=POSITIONS)[:, None] + 0.5
    drawing = {**policies, "thompson": counts / counts.sum(axis=1, keepdims=True)}
    report = {
        "real": real(logs, policies, min_ess=2),
        "redrawn": [
            row for rows in (1000, 3000) for row in redrawn(logs, drawing, rows, arguments.trials, arguments.seed)
        ],
    }
    text = json.dumps(report, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
