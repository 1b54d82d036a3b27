"""Moderation on HateCheck and ConvAbuse as labels arrive: what the loop learns, beside what costs nothing or little.

Labels of single people come in seeded order; after 25, 50, 100, 200, 400 and 800 of them every method judges the same
held-out items, none of which shares a template (HateCheck) or its words (ConvAbuse) with a labelled one. Figures are
means over classes (29 functional tests; five severities) with 95% intervals by bootstrap over templates or wordings of
all seeds. The cost is that of the Bayes decisions per item under the domain's costs, with each class as frequent as in
the data: that is what the probabilities are about.

    PLAUDIT_DATA=../shared/data python benchmarks/moderation.py --set hatecheck --seeds 0 1 2 --out hatecheck.json
    PLAUDIT_DATA=../shared/data python benchmarks/moderation.py --set convabuse --seeds 0 1 2 --model none
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import moderation_data as sets
import moderation_text as simple
import numpy as np
import torch
from moderation_loop import Loop
from plaudit.deciding import cost_of, costs_of, decide
from plaudit.engine.base import Base
from sized import named

SIZES = (25, 50, 100, 200, 400, 800)
RESAMPLES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="name", choices=sorted(sets.SETS), default="hatecheck")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--model", default="smollm2", help="smollm2, tiny, a folder, or none for the simple ones alone")
    parser.add_argument("--layers", type=int, default=4, help="layers that carry the adapter")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the labels so far at each size")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    parser.add_argument("--keep", type=Path, help="append what each method made of each item to this file as it comes")
    parser.add_argument("--kept", type=Path, nargs="+", default=[], help="run nothing: figures of such files together")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("PLAUDIT_DATA", "../shared/data"))
    if not folder.is_dir():
        sys.exit(f"there is no folder {folder}: PLAUDIT_DATA names the folder of the data sets")
    data = sets.SETS[arguments.name](folder)
    base = None if arguments.model == "none" or arguments.kept else Base.load(named(arguments.model))
    judged = [Judged(**json.loads(line)) for path in arguments.kept for line in path.read_text().splitlines()]
    for seed in [] if arguments.kept else arguments.seeds:
        begun = time.process_time()
        loop = None if base is None else Loop(data, base, seed, layers=arguments.layers, epochs=arguments.epochs)
        for one in judgements(data, seed, arguments.sizes, loop):
            judged.append(one)
            if arguments.keep:
                with arguments.keep.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(one)) + "\n")
        print(f"seed {seed}: {time.process_time() - begun:.0f} s", file=sys.stderr, flush=True)
    report = {
        "set": data.name,
        "seeds": sorted({each.seed for each in judged}),
        "model": arguments.model,
        "layers": arguments.layers,
        "epochs": arguments.epochs,
        "figures": figures(data, judged),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a method made of one test item after so many labels. `cost`: of its Bayes decision."""

    method: str
    labels: int
    seed: int
    cluster: str
    kind: str
    right: bool
    cost: float
    passed_severe: bool


def judgements(data: sets.DataSet, seed: int, sizes: Sequence[int], loop: Loop | None) -> Iterator[Judged]:
    """Everything that every method says in one seed."""
    # Fewer sizes see the beginning of the same labels.
    split = sets.split(data, seed, max(*SIZES, *sizes))
    categories = data.plugin.categories
    tested = [item.request.messages[-1].content for item in split.test]
    if loop is not None:
        asked = loop.probabilities(split.test)
        for size in sizes:
            yield from _judged(data, split, seed, "base", size, asked)
    for size in sizes:
        labels = split.labels[:size]
        texts = [each.item.request.messages[-1].content for each in labels]
        values = [each.value for each in labels]
        yield from _judged(data, split, seed, "majority", size, simple.majority(values, categories, len(tested)))
        for name, pieces in (("words", simple.words), ("letters", simple.letters)):
            found = simple.logistic_regression(texts, values, tested, categories, pieces)
            yield from _judged(data, split, seed, name, size, found)
        if loop is not None:
            began = time.process_time()
            moved = loop.turn(labels)
            print(f"{size} labels: {time.process_time() - began:.0f} s, released: {moved}", file=sys.stderr, flush=True)
            yield from _judged(data, split, seed, "plaudit", size, loop.probabilities(split.test))


def _judged(
    data: sets.DataSet, split: sets.Split, seed: int, method: str, size: int, probabilities: torch.Tensor
) -> Iterator[Judged]:
    categories, costs = data.plugin.categories, costs_of(data.plugin.declaration)
    for item, row in zip(split.test, probabilities.tolist(), strict=True):
        likely = categories[decide(row)]
        decided = categories[decide(row, labels=categories, costs=costs)]
        yield Judged(
            method=method,
            labels=size,
            seed=seed,
            # A digest, since a cluster's name may be what somebody said.
            cluster=hashlib.sha256(item.cluster.encode()).hexdigest()[:16],
            kind=item.kind,
            right=likely == item.truth,
            cost=cost_of(costs, item.truth, decided),
            passed_severe=item.truth in data.plugin.severe and decided == categories[0],
        )


# Figures ----------------------------------------------------------------------------------------


def figures(data: sets.DataSet, judged: Sequence[Judged]) -> dict[str, Any]:
    """By method and number of labels: accuracy, the same weighted as the data are, cost, and accuracy per class."""
    clusters = {name: place for place, name in enumerate(sorted({(each.seed, each.cluster) for each in judged}))}
    kinds = sorted({each.kind for each in judged})
    frequency = Counter(item.kind for item in data.items if item.truth)
    as_in_data = np.array([frequency[kind] for kind in kinds], dtype=float)
    drawn = _resamples(len(clusters))
    found: dict[str, Any] = {}
    accuracies: dict[tuple[str, int], np.ndarray] = {}
    by_cell: dict[tuple[str, int], list[Judged]] = {}
    for each in judged:
        by_cell.setdefault((each.method, each.labels), []).append(each)
    for (method, labels), rows in by_cell.items():
        right, cost, count = (np.zeros((len(clusters), len(kinds))) for _ in range(3))
        for row in rows:
            at = clusters[row.seed, row.cluster], kinds.index(row.kind)
            right[at] += row.right
            cost[at] += row.cost
            count[at] += 1
        accuracy, costs = _per_kind(drawn, right, count), _per_kind(drawn, cost, count)
        accuracies[method, labels] = np.nanmean(accuracy, axis=1)
        found.setdefault(method, {})[labels] = {
            "accuracy": _interval(np.nanmean(accuracy, axis=1)),
            "accuracy_as_in_the_data": _interval(_weighted(accuracy, as_in_data)),
            "cost_as_in_the_data": _interval(_weighted(costs, as_in_data)),
            "severe_allowed": sum(row.passed_severe for row in rows),
            "per_class": {kind: _interval(accuracy[:, place]) for place, kind in enumerate(kinds)},
        }
    return {
        "classes": {kind: sum(row.kind == kind for row in next(iter(by_cell.values()))) for kind in kinds},
        "methods": found,
        "ahead_of_words": _ahead(accuracies),
    }


def _ahead(accuracies: Mapping[tuple[str, int], np.ndarray]) -> dict[str, dict[int, list[float]]]:
    """Accuracy of each method less that of the bag of words, on the same resamples."""
    found: dict[str, dict[int, list[float]]] = {}
    for (method, labels), accuracy in accuracies.items():
        if method != "words" and ("words", labels) in accuracies:
            found.setdefault(method, {})[labels] = _interval(accuracy - accuracies["words", labels])
    return found


def _resamples(clusters: int) -> np.ndarray:
    """How often each cluster is in each resample (R + 1, K); the first row is the sample itself."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES)
    return np.vstack([np.ones(clusters, dtype=counts.dtype), counts])


def _per_kind(drawn: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean per class in each resample, (R + 1, kinds); NaN if a resample has none of a class."""
    with np.errstate(invalid="ignore"):
        return (drawn @ total) / (drawn @ count)


def _weighted(accuracy: np.ndarray, weights: np.ndarray) -> np.ndarray:
    present = ~np.isnan(accuracy)
    return np.where(present, accuracy, 0.0) @ weights / (present @ weights)


def _interval(values: np.ndarray) -> list[float]:
    """The sample's own value and the 95% percentile interval of its resamples."""
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return [round(float(each), 3) for each in (values[0], low, high)]


if __name__ == "__main__":
    main()
