"""Adapters and tasks of training for tests: a tiny model, few prompts, rewards that need no people."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.protocol import Engine
from plaudit.evidence.store import FrozenDataSet
from plaudit.policy.optimizer import CompletionTask, Rewarded
from plaudit.policy.rollout import Sample, TrainPrompt
from plaudit.settings import ModelSettings, PolicySettings
from plaudit.types import Channel, Message, Prompt, Sampling

CHANNEL = Channel("toy", "default")
AS_OF = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)


class NoReferences:
    """References of a reward that is centred on nothing."""

    def complete(self, prompts: Sequence[TrainPrompt], least: int) -> None:
        """Samples nothing."""


class Letters:
    """A tokenizer whose tokens are the characters of a text."""

    eos_ids: frozenset[int] = frozenset()

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Tokens of a text."""
        return tuple(map(ord, text))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""
        return "".join(map(chr, tokens))


def random_adapter(base: Base, name: str, *, layers: int, seed: int, spread: float = 0.3) -> None:
    """Add an adapter of rank 8 whose weights are drawn with this standard deviation: it changes the model clearly."""
    adapters.inject(base, name, layers=layers, rank=8, alpha=16, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapters.parameters(base, name):
        parameter.data = spread * torch.randn(parameter.shape, generator=generator)


def saved_adapter(base: Base, folder: Path, *, layers: int = 2, seed: int = 1, spread: float = 0.3) -> Path:
    """The same in files of PEFT's format; the base is as it was."""
    random_adapter(base, "made", layers=layers, seed=seed, spread=spread)
    try:
        adapters.save(base, "made", folder)
    finally:
        adapters.remove(base, "made")
    return folder


def book_prompts(engine: Engine, count: int, options: Sequence[str] = ()) -> list[TrainPrompt]:
    """Prompts that differ in a number, each a group of its own."""
    found = []
    for number in range(count):
        messages = (Message("user", f"list {number} of your kind books"),)
        found.append(
            TrainPrompt(
                rendered=Prompt(messages=messages, group=str(number)),
                encoded=engine.encode(messages),
                options=tuple(engine.encode_text(option) for option in options),
            )
        )
    return found


def share_of_even(samples: Sequence[Sample]) -> Rewarded:
    """A reward that PPO can raise: the share of generated tokens with an even id. It foresees nothing."""
    shares = [sum(t % 2 == 0 for t in s.generated.tokens) / len(s.generated.tokens) for s in samples]
    return Rewarded(torch.tensor(shares), [torch.full((len(s.generated.tokens),), 0.5) for s in samples])


def completion_task(
    base: Base, engine: Engine, folder: Path, settings: PolicySettings, *, layers: int, **others: Any
) -> CompletionTask:
    """A task of PPO with `share_of_even` as its reward and no prompts; `others` are fields of it with other values."""
    task = CompletionTask(
        channel=CHANNEL,
        engine=engine,
        base=base,
        live=None,
        data=FrozenDataSet(channel=CHANNEL, as_of=AS_OF, digest="", offsets=(), rows=(), interactions={}),
        references=NoReferences(),
        train=(),
        held_out=(),
        reward=share_of_even,
        sampling=Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens or 12),
        model=ModelSettings(adapter_layers=layers),
        settings=settings,
        seed=0,
        folder=folder,
        progress=lambda line: None,
    )
    return dataclasses.replace(task, **others)
