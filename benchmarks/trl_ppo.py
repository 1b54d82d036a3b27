"""TRL's side of benchmarks/ppo.py: its PPOTrainer, by its documented interface, in an environment that has no plaudit.

Started by ppo.py. A callback measures each of the trainer's steps and holds it until the other side has had its turn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import sides
import torch
import trl_set_up
from datasets import Dataset
from peft import LoraConfig, inject_adapter_in_model
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    rounds = sides.Rounds()
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="trl-ppo-") as scratch:
        trainer(arguments, Path(scratch), rounds).train()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("size", "models", "device", "dtype", "value"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("layers", "prompts", "samples", "prompt", "new", "epochs", "minibatch", "threads", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


class Turns(TrainerCallback):  # type: ignore[misc]
    """Waits for an order before each step of the trainer, and answers with what the step did."""

    def __init__(self, rounds: sides.Rounds) -> None:
        self._rounds = rounds
        self.completions = self.tokens = self.updates = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Before the first step."""
        self._rounds.wait(versions=trl_set_up.versions())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Behind each step."""
        done = {"completions": self.completions, "tokens": self.tokens, "updates": self.updates}
        self.completions = self.tokens = self.updates = 0
        self._rounds.wait(**done)


def trainer(arguments: argparse.Namespace, scratch: Path, rounds: sides.Rounds) -> PPOTrainer:
    folder = f"{arguments.models}/{arguments.size}"
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32) for _ in range(2)
    )
    last = policy.config.num_hidden_layers
    lora = LoraConfig(
        **trl_set_up.ADAPTERS,
        layers_to_transform=list(range(max(0, last - arguments.layers), last)),
        task_type="CAUSAL_LM",
    )
    if arguments.value == "adapters":
        value.requires_grad_(False)
        inject_adapter_in_model(lora, value.model)
        value.score.requires_grad_(True)
    reward.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    batch = arguments.prompts * arguments.samples
    generator = torch.Generator().manual_seed(0)
    total = (arguments.rounds + 1) * arguments.prompts
    ids = torch.randint(3, policy.config.vocab_size, (total, arguments.prompt), generator=generator).tolist()
    data = Dataset.from_dict({"input_ids": [each for each in ids for _ in range(arguments.samples)]})
    turns = Turns(rounds)
    register_optimizer_step_post_hook(lambda *_: setattr(turns, "updates", turns.updates + 1))

    def scored(_: Any, __: Any, given: dict[str, torch.Tensor]) -> None:
        rows, length = given["input_ids"].shape
        turns.completions += rows
        turns.tokens += rows * (length - arguments.prompt)

    reward.model.register_forward_pre_hook(scored, with_kwargs=True)
    return PPOTrainer(
        args=PPOConfig(
            output_dir=str(scratch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1,
            num_mini_batches=batch // arguments.minibatch,
            num_ppo_epochs=arguments.epochs,
            local_rollout_forward_batch_size=batch,
            response_length=arguments.new,
            temperature=0.7,
            stop_token=None,
            total_episodes=batch * (arguments.rounds + 1),
            num_sample_generations=0,
            use_cpu=arguments.device == "cpu",
            seed=0,
            **trl_set_up.PLAIN,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data.select(range(batch)),
        peft_config=lora,
        callbacks=[turns],
    )


if __name__ == "__main__":
    main()
