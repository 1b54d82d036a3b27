"""Retrieval, learning from feedback, and both: answers to questions about shops that no model can know.

Two populations of the instruction domain ask the same questions and like the same answers; one sends two passages with
each question, of which one is about another shop. Each lives one turn of the loop with SmolLM2-135M; then the base and
the release answer questions about shops that nobody asked about, without passages and with them. Per way: the share of
right answers, of answers without a made-up fact, words per answer, and the hidden gold; 95% intervals by bootstrap over
questions. Beside them the first passage echoed, and the taste told to the base as a system message.

    python benchmarks/retrieval.py --seeds 0 --out retrieval.json
    python benchmarks/retrieval.py --turns 0            # the ways that need no training
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from loop import PEOPLE_AT_ONCE, Life, lived
from plaudit.demo import plan
from plaudit.demo.orchestrate import versions
from plaudit.simulate.judge import rate_over_prompts
from plaudit.simulate.panel import EvaluateSettings, Panel
from plaudit.simulate.population import SimPrompt, described

POPULATIONS = {"alone": "instruction-shops", "with passages": "instruction-shops-passages"}
SAMPLES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.name=value")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    people = {each.name: each for each in plan.people_of(described(lambda line: print(line, file=sys.stderr)))}
    runs = []
    for seed in arguments.seeds:
        for asked, name in POPULATIONS.items():
            begun = time.process_time()
            run = lived(people[name], seed, arguments.turns, arguments.overrides, judge)
            run |= {"seed": seed, "asked": asked, "cpu_seconds": round(time.process_time() - begun)}
            print(json.dumps(run), file=sys.stderr, flush=True)
            runs.append(run)
    text = json.dumps({"runs": runs, "versions": versions()}, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def judge(life: Life) -> dict[str, Any]:
    """Outcomes of the turns, and the figures of each way to answer."""
    settings = EvaluateSettings(
        target=life.server.target,
        releases=life.promoted,
        population=life.who.name,
        seed=life.seed,
        samples=SAMPLES,
        concurrency=PEOPLE_AT_ONCE,
    )
    panel = Panel(settings, lambda name: None)
    try:
        ways = {"base": panel.answers(panel.prompts, 0, "base")}
        ways["told"] = panel.answers(panel.prompts, 0, "told", system=panel.told())
        for version in life.promoted:
            ways[f"release {version}"] = panel.answers(panel.prompts, version, f"release-{version}")
        texts = {name: [[one.text for one in each.shown] for each in given] for name, given in ways.items()}
        if panel.prompts[0].passages:
            texts["first passage echoed"] = [[prompt.passages[0].text] for prompt in panel.prompts]
        return {
            "turns": [[str(each.outcome), each.reason] for each in life.results],
            "ways": {name: figures(panel, panel.prompts, given) for name, given in texts.items()},
        }
    finally:
        panel.close()


def figures(panel: Panel, prompts: Sequence[SimPrompt], given: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Means over the answers of a question, then over questions."""
    found: dict[str, list[float]] = {}
    for prompt, answers in zip(prompts, given, strict=True):
        parts = [panel.population.parts(prompt, text) for text in answers]
        row = {
            "right": [part["right"] for part in parts],
            "nothing made up": [part["nothing_made_up"] for part in parts],
            "words": [float(len(text.split())) for text in answers],
            "gold": [panel.population.gold(prompt, text) for text in answers],
        }
        for name, values in row.items():
            found.setdefault(name, []).append(sum(values) / len(values))
    rates = {name: rate_over_prompts(values) for name, values in found.items()}
    return {name: [round(each, 3) for each in (rate.estimate, rate.low, rate.high)] for name, rate in rates.items()}


if __name__ == "__main__":
    main()
