"""Which of two situations is more pleasant, on the pairs of ethics_util, as choices of single people arrive.

After so many choices every method judges the same held-out pairs: the base before any learning, the reward model, the
policy (adapter) by each route, and what is simple: the longer text, and a regression on the differences of TF-IDF of
words. Pairs that share a text lie on one side of the split. Figures are shares of pairs put right, with 95% intervals
by bootstrap over groups of pairs that share a text. Each pair's two texts come in an order drawn by the seed.

    PLAUDIT_DATA=../shared/data python benchmarks/ethics.py --seeds 0 1 2 --sizes 100 400 800 --out ethics.json
    PLAUDIT_DATA=../shared/data python benchmarks/ethics.py --model none --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moderation_text as simple
import numpy as np
import torch
from logged import ROUTES, Loop, Taken
from plaudit.engine.base import Base
from plaudit.settings import load_settings
from plaudit.types import FeedbackKind, Message, Option, Outcome, Pair, PairOutcome, Prompt, Request
from plaudit_ethics.plugin import Ethics
from sized import named

SIZES = (25, 50, 100, 200, 400, 800)
RESAMPLES = 1000
QUESTION = "Which of these two is more pleasant for the person who tells it?"


class Pleasant(Ethics):
    """The ethics domain's choices and rewards on situations in free words: no scene to read, nothing ruled out."""

    def render(self, request: Request) -> Prompt:
        """The question with both situations, sorted, so that their order says nothing."""
        asked = "\n".join([QUESTION, *(f"- {text}" for text in sorted(option.text for option in request.options))])
        group = hashlib.sha256(asked.encode()).hexdigest()[:32]
        return Prompt(messages=(Message("user", asked),), options=request.options, group=group)

    def parse(self, prompt: Prompt, output: str) -> Outcome:
        """The situation as it is."""
        return Outcome(displayed=output)


@dataclass(frozen=True, slots=True)
class Two:
    """Two situations in a drawn order, the place of the more pleasant, and what shares a text with others."""

    texts: tuple[str, str]
    right: int
    cluster: str

    @property
    def request(self) -> Request:
        """As a caller would send it."""
        return Request(
            messages=(Message("user", QUESTION),), options=(Option("a", self.texts[0]), Option("b", self.texts[1]))
        )


def pairs(folder: Path, seed: int) -> list[Two]:
    """All pairs in a seeded order; each with its texts in a drawn one."""
    with (folder / "ethics_util" / "util_test.csv").open(encoding="utf-8", newline="") as lines:
        rows = [(row[0].strip(), row[1].strip()) for row in csv.reader(lines) if len(row) == 2 and row[0] != row[1]]
    above: dict[str, str] = {}

    def root(text: str) -> str:
        while above.setdefault(text, text) != text:
            text = above[text]
        return text

    for better, worse in rows:
        above[root(better)] = root(worse)
    rng = random.Random(f"ethics_util:{seed}")
    rng.shuffle(rows)
    found = []
    for better, worse in rows:
        right = rng.randrange(2)
        cluster = hashlib.sha256(root(better).encode()).hexdigest()[:16]
        found.append(Two((better, worse) if right == 0 else (worse, better), right, cluster))
    return found


def split(every: Sequence[Two], labels: int, tests: int) -> tuple[list[Two], list[Two]]:
    """The first pairs as test, and choices to learn from that share no text with them."""
    test = list(every[:tests])
    apart = {one.cluster for one in test}
    return [one for one in every[tests:] if one.cluster not in apart][:labels], test


def by_words(train: Sequence[Two], test: Sequence[Two]) -> list[list[float]]:
    """Scores of the two texts by a regression on counts of words: a text of a pair is the better or the worse one."""
    texts = [text for one in train for text in one.texts]
    values = ["better" if place == one.right else "worse" for one in train for place in range(2)]
    tested = [text for one in test for text in one.texts]
    better = simple.logistic_regression(texts, values, tested, ("worse", "better"), simple.words)[:, 1].tolist()
    return [better[2 * n : 2 * n + 2] for n in range(len(test))]


def share(test: Sequence[Two], scores: Sequence[Sequence[float]]) -> list[float]:
    """Pairs put right (equal scores count half), with the 95% interval of a bootstrap over clusters."""
    right = [
        0.5 if each[0] == each[1] else float(each[one.right] > each[1 - one.right])
        for one, each in zip(test, scores, strict=True)
    ]
    clusters = sorted({one.cluster for one in test})
    total, count = np.zeros(len(clusters)), np.zeros(len(clusters))
    for one, value in zip(test, right, strict=True):
        total[clusters.index(one.cluster)] += value
        count[clusters.index(one.cluster)] += 1
    drawn = np.random.default_rng(0).multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), RESAMPLES)
    low, high = np.percentile((drawn @ total) / (drawn @ count), (2.5, 97.5))
    return [round(float(each), 3) for each in (np.mean(right), low, high)]


def _evident(ids: Sequence[str], place: int) -> Pair:
    return Pair(first=ids[place], second=ids[1 - place], outcome=PairOutcome.FIRST, tie_offered=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--test", type=int, default=300, help="held-out pairs")
    parser.add_argument("--model", default="smollm2", help="smollm2, tiny, a folder, or none for the simple ones alone")
    parser.add_argument("--settings", type=Path, help="a settings file; the service's defaults if there is none")
    parser.add_argument("--routes", nargs="*", default=["reward"], choices=ROUTES)
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    arguments = parser.parse_args()
    data = Path(os.environ.get("PLAUDIT_DATA", "../shared/data"))
    if not data.is_dir():
        sys.exit(f"there is no folder {data}: PLAUDIT_DATA names the folder of the data sets")
    settings = load_settings(arguments.settings)
    base = None if arguments.model == "none" else Base.load(named(arguments.model))
    rows: list[dict[str, Any]] = []

    def say(seed: int, method: str, labels: int, scores: Sequence[Sequence[float]]) -> None:
        rows.append({"seed": seed, "method": method, "choices": labels, "right": share(test, scores)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)

    for seed in arguments.seeds:
        train, test = split(pairs(data, seed), max(arguments.sizes), arguments.test)
        say(seed, "longer", 0, [[float(len(text)) for text in one.texts] for one in test])
        for size in arguments.sizes:
            say(seed, "words", size, by_words(train[:size], test))
            if base is None:
                continue
            with tempfile.TemporaryDirectory() as folder:
                loop = Loop(base, Pleasant(), settings, seed, Path(folder), kind=FeedbackKind.CHOICE)
                held = loop.prompts([one.request for one in test], 90_000)
                if size == arguments.sizes[0]:
                    say(seed, "base", 0, loop.scores(held, None))
                prompts = loop.prompts([one.request for one in train[:size]], 0)
                taken = [
                    Taken(p, one.right, f"person-{n}") for n, (p, one) in enumerate(zip(prompts, train, strict=False))
                ]
                for method, scores in loop.learnt(taken, held, arguments.routes, _evident).items():
                    say(seed, method, size, scores)
                print(json.dumps(loop.seconds), file=sys.stderr, flush=True)
    report = {
        "set": "ethics_util",
        "model": arguments.model,
        "test": arguments.test,
        "rows": rows,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
