"""Measures where the reward model should read: heads by layer, and the whole fit, on a kept demo's evidence.

For each layer a reward model is fitted on train raters and train groups, and judged on what it never saw: base answers
to prompts of gate groups, ordered by the hidden gold, and calibration raters' comparisons. Prints JSON (docs/adr/0013).

    make demo ARGS=--keep-data
    python benchmarks/reward_layer.py demo-report --layers 15 20 25 30
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plaudit.engine.base import Base
from plaudit.evidence.splits import Split, group_split
from plaudit.evidence.store import EvidenceStore, FrozenDataSet
from plaudit.release.registry import Registry
from plaudit.reward.calibration import calibrate
from plaudit.reward.completion import Completion
from plaudit.reward.fit import fit_reward
from plaudit.reward.model import RewardModel
from plaudit.reward.shown import shown_tokens
from plaudit.settings import RewardSettings, Settings, load_settings
from plaudit.simulate.population import Population, load_population
from plaudit.types import Channel

CHANNEL = Channel("instruction", "default")
CLEAR = 0.25  # Golds that differ by less are a tie to people too.

Judged = dict[str, list[tuple[Completion, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="folder of a demo that ran with --keep-data")
    parser.add_argument("--population", default="instruction")
    parser.add_argument("--layers", type=int, nargs="+", default=[15, 20, 25, 30])
    arguments = parser.parse_args()
    settings = load_settings(arguments.report / "plaudit.toml")
    torch.set_num_threads(settings.model.threads or torch.get_num_threads())
    base = Base.of(settings)
    with Registry(settings.store_url, settings.registry_root) as registry:
        salt = registry.salt(CHANNEL)
    store = EvidenceStore(settings.store_url)
    data = store.freeze(CHANNEL, salt)
    store.close()
    held_out = golds(base, data, salt, load_population(arguments.population))
    heads = settings.reward.model_copy(update={"adapter": False})
    rows = [
        row(f"heads, layer {layer}", base, data, settings, at(heads, layer), held_out) for layer in arguments.layers
    ]
    rows.append(row("heads and adapter, as set", base, data, settings, settings.reward, held_out))
    print(json.dumps({"rows": rows, "torch": torch.__version__, "python": platform.python_version()}, indent=1))


def at(settings: RewardSettings, layer: int) -> RewardSettings:
    return settings.model_copy(update={"layer": layer})


def golds(base: Base, data: FrozenDataSet, salt: bytes, population: Population) -> Judged:
    prompts = {prompt.text: prompt for prompt in population.channel_prompts()}
    found: dict[str, dict[Completion, float]] = {}
    for interaction in data.interactions.values():
        prompt = prompts.get(interaction.messages[-1].content)
        if prompt is None or group_split(salt, interaction.prompt_group) is not Split.GATE:
            continue
        for candidate in interaction.candidates:
            if candidate.release_version == 0:
                completion = Completion(interaction.prompt_tokens, shown_tokens(base, candidate))
                gold = population.gold(prompt, candidate.displayed_text)
                found.setdefault(interaction.prompt_group, {})[completion] = gold
    return {group: list(several.items()) for group, several in found.items() if len(several) > 1}


def row(
    name: str, base: Base, data: FrozenDataSet, settings: Settings, reward: RewardSettings, held_out: Judged
) -> dict[str, Any]:
    started = time.perf_counter()
    model = fit_reward(base, data, {}, reward, settings.model, seed=0, name="measured")
    seconds = time.perf_counter() - started
    report = calibrate(model, data)
    right, correlation = against_gold(model, held_out)
    model.close()
    return {
        "fit": name,
        "gold_pairs_ordered_right": round(float(np.mean(right)), 3),
        "gold_pairs": len(right),
        "gold_correlation_within_prompt": round(correlation, 3),
        "calibration_accuracy": round(report.accuracy, 3),
        "calibration_comparisons": report.comparisons,
        "calibration_nll": round(report.nll, 3),
        "seconds": round(seconds, 1),
    }


def against_gold(model: RewardModel, held_out: Judged) -> tuple[list[bool], float]:
    right: list[bool] = []
    pairs: list[tuple[float, float]] = []
    for several in held_out.values():
        scores = model.scores([completion for completion, _ in several]).mean(1).tolist()
        gold = [value for _, value in several]
        right += [
            (scores[i] - scores[j]) * (gold[i] - gold[j]) > 0
            for i in range(len(gold))
            for j in range(i)
            if abs(gold[i] - gold[j]) >= CLEAR
        ]
        pairs += zip(np.subtract(scores, np.mean(scores)), np.subtract(gold, np.mean(gold)), strict=True)
    return right, float(np.corrcoef(np.array(pairs).T)[0, 1])


if __name__ == "__main__":
    main()
