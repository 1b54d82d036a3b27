"""TRL's side of benchmarks/reward.py: its RewardTrainer, by its documented interface, where there is no plaudit.

Started by reward.py. Each round makes a trainer of its own on the round's pairs, in their tokens; only its training
counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import sides
import torch
import trl_set_up
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

JUDGED_AT_ONCE = 50


def main() -> None:
    rounds = sides.Rounds()
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    rounds.wait(versions=trl_set_up.versions())
    for number in range(arguments.rounds + 1):
        pairs = json.loads((arguments.side / f"pairs-{number}.json").read_text())
        with tempfile.TemporaryDirectory(prefix="trl-reward-") as scratch:
            trainer = made(arguments, pairs, arguments.seed + number, scratch)
            rounds.start()
            trainer.train()
            rounds.stop()
            rounds.wait(right=judged(trainer, pairs))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("size", "models", "device", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("threads", "rounds", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--side", type=Path, required=True)
    return parser.parse_args()


def made(arguments: argparse.Namespace, pairs: dict[str, Any], seed: int, scratch: str) -> RewardTrainer:
    folder = f"{arguments.models}/{arguments.size}"
    torch.manual_seed(seed)
    return RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32),
        args=RewardConfig(
            output_dir=scratch,
            learning_rate=arguments.lr,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            use_cpu=arguments.device == "cpu",
            seed=seed,
            **trl_set_up.PLAIN,
        ),
        train_dataset=Dataset.from_dict(
            {name: [whole(pairs, each, side) for each in pairs["train"]] for side, name in names()}
        ),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(**trl_set_up.ADAPTERS, modules_to_save=["score"], task_type="SEQ_CLS"),
    )


def names() -> tuple[tuple[int, str], tuple[int, str]]:
    """Where in a pair what was taken stands, and what the trainer calls it; the same of the other."""
    return (1, "chosen_ids"), (2, "rejected_ids")


def whole(pairs: dict[str, Any], pair: list[list[int]], side: int) -> list[int]:
    return [*pair[0], *pair[side], pairs["end"]]


@torch.no_grad()
def judged(trainer: RewardTrainer, pairs: dict[str, Any]) -> list[int]:
    """Of each held-out pair 1 if the model orders it rightly, else 0."""
    trainer.model.eval()
    found: list[int] = []
    held_out = pairs["held_out"]
    for begin in range(0, len(held_out), JUDGED_AT_ONCE):
        several = held_out[begin : begin + JUDGED_AT_ONCE]
        rows = [{name: whole(pairs, each, side) for side, name in names()} for each in several]
        inputs = {key: value.to(trainer.args.device) for key, value in trainer.data_collator(rows).items()}
        taken, other = trainer.model(**inputs).logits.squeeze(-1).chunk(2)
        found += [int(each) for each in taken > other]
    return found


if __name__ == "__main__":
    main()
