"""How far log-probs move if the frozen weights are rounded: int8 with a scale per row or per group of inputs, bfloat16.

Texts: answers that the model itself draws to a dozen questions (what proofs are about), and an English passage. Each
variant rounds the linears of the layers, some the head, too; everything is computed in float32 but for the row that
says otherwise. Differences are those of log-probs of tokens at temperature 1, in nats. Prints JSON.

`plaudit model prepare smollm2` reads weights of four bits, so that some variants would keep them exactly and look
better than they are. So there are two kinds of weights: as they are, and spread evenly over their steps (each by up to
half a step, seeded), which is another model nearby, whose weights are numbers like those of any published model.

    python benchmarks/rounding.py --model ~/.cache/plaudit/smollm2
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plaudit.engine.base import Base
from plaudit.engine.frozen import quicken
from plaudit.engine.protocol import Job, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.types import Message, Sampling

Rounding = Callable[[torch.Tensor], torch.Tensor]

QUESTIONS = (
    "How do I boil an egg so that the yolk stays soft?",
    "Write a short poem about the sea in winter.",
    "What is the difference between a virus and a bacterium?",
    "Plan a weekend in Lisbon for two people.",
    "Explain recursion to a child.",
    "My flight was cancelled. Write a polite complaint to the airline.",
    "Write a Python function that reverses a linked list.",
    "Which countries border Switzerland?",
    "Give me three tips against stage fright.",
    "Summarise the plot of Romeo and Juliet.",
    "Why is the sky blue?",
    "Write a job advertisement for a baker.",
)
LEVELS = 127


def symmetric(group: int, scales: torch.dtype = torch.float32) -> Rounding:
    """Whole numbers from -127 to 127 times a scale per `group` inputs; 0 is a group per row."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        parts = weight.view(-1, group or weight.shape[1])
        scale = (parts.abs().amax(1, keepdim=True) / LEVELS).clamp_min(1e-30)
        scale = scale.to(scales).float()
        return ((parts / scale).round().clamp(-LEVELS, LEVELS) * scale).view_as(weight)

    return rounded


def asymmetric(group: int) -> Rounding:
    """Whole numbers from 0 to 255 times a scale, from the smallest weight of the group up."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        parts = weight.view(-1, group or weight.shape[1])
        low, high = parts.amin(1, keepdim=True), parts.amax(1, keepdim=True)
        scale = ((high - low) / 255).clamp_min(1e-30)
        return (((parts - low) / scale).round() * scale + low).view_as(weight)

    return rounded


def zero_point(group: int) -> Rounding:
    """As asymmetric, with a scale in bfloat16 and 0 at a whole number, so that eight bits more tell where it is."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        parts = weight.view(-1, group)
        low, high = parts.amin(1, keepdim=True).clamp_max(0), parts.amax(1, keepdim=True).clamp_min(0)
        scale = ((high - low) / 255).clamp_min(1e-30).bfloat16().float()
        zero = (-low / scale).round().clamp(0, 255)
        return (((parts / scale).round() + zero).clamp(0, 255) - zero).mul(scale).view_as(weight)

    return rounded


def to_bfloat16(weight: torch.Tensor) -> torch.Tensor:
    """What bfloat16 keeps."""
    return weight.bfloat16().float()


def variants() -> dict[str, tuple[Rounding, Rounding | None]]:
    """By name: how linears of layers are rounded, and the head."""
    fine = symmetric(32)
    return {
        "int8, a scale per row": (symmetric(0), None),
        "int8, 64 inputs": (symmetric(64), None),
        "int8, 64 inputs, asymmetric": (asymmetric(64), None),
        "int8, 32 inputs": (fine, None),
        "int8, 32 inputs, scales in bfloat16": (symmetric(32, torch.bfloat16), None),
        "int8, 32 inputs, asymmetric": (asymmetric(32), None),
        "int8, 32 inputs, zero at a whole number": (zero_point(32), None),
        "int8, 32 inputs; down_proj in bfloat16": (fine, None),
        "int8, 32 inputs; head in bfloat16": (fine, to_bfloat16),
        "int8, 32 inputs; head as well": (fine, fine),
        "int8, 16 inputs": (symmetric(16), None),
        "int8, 16 inputs, scales in bfloat16": (symmetric(16, torch.bfloat16), None),
        "weights in bfloat16": (to_bfloat16, None),
    }


def spread(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Weights of four bits (a step per 32 inputs) as one that was never rounded to them would have them."""
    parts = weight.view(-1, 32)
    gaps = parts.sort(1).values.diff(dim=1)
    size = (parts.amax(1, keepdim=True) - parts.amin(1, keepdim=True)).clamp_min(1e-30)
    step = gaps.masked_fill(gaps < size / 100, torch.inf).amin(1, keepdim=True)
    step = torch.where(step.isfinite(), step, 0.0)
    return (parts + (torch.rand(parts.shape, generator=generator) - 0.5) * step).view_as(weight)


@torch.no_grad()
def answers(base: Base, tokens: int) -> list[tuple[list[int], int]]:
    """Token ids of prompts with the answers that the base draws, and the answers' lengths."""
    engine = TorchEngine(base, EngineSettings(widths=(len(QUESTIONS),)), ModelSettings(adapter_layers=1))
    try:
        engine.stage(key := ReleaseKey("rounding/default", 0, ""), None)
        how = Sampling(temperature=1.0, max_tokens=tokens)
        prompts = [engine.encode([Message("user", each)]) for each in QUESTIONS]
        jobs = [Job(prompt=p, release=key, sampling=how, seed=i) for i, p in enumerate(prompts)]
        made = [ticket.result(600) for ticket in engine.submit(jobs)]
    finally:
        engine.close()
    return [([*p.tokens, *each.tokens], len(each.tokens)) for p, each in zip(prompts, made, strict=True)]


@torch.no_grad()
def logprobs(base: Base, texts: list[tuple[list[int], int]]) -> torch.Tensor:
    """Log-probs of the last tokens of each text, one after the other."""
    found = []
    for ids, count in texts:
        tokens = torch.tensor([ids])
        hidden = base.upper(base.trunk(tokens, 0), 0)[0, -count - 1 : -1]
        found.append(base.logits(hidden).log_softmax(-1).gather(1, tokens[0, -count:, None])[:, 0])
    return torch.cat(found)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--weights", nargs="+", default=["as they are", "spread"], choices=["as they are", "spread"])
    parser.add_argument("--tokens", type=int, default=90, help="of each answer, at most")
    arguments = parser.parse_args()
    base = Base.load(arguments.model, device="cpu", dtype="float32")
    texts = answers(base, arguments.tokens)
    passage = list(base.encode_text((Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")))
    texts.append((passage[:401], 400))
    parts = {"answers": sum(count for _, count in texts[:-1]), "passage": 400}
    found: dict[str, dict[str, Any]] = {}
    if "as they are" in arguments.weights:
        found["as they are"] = measured(base, texts, list(parts.values()))
    if "spread" in arguments.weights:
        generator = torch.Generator().manual_seed(0)
        for weight in linears(base).values():
            weight.copy_(spread(weight, generator))
        found["spread"] = measured(base, texts, list(parts.values()))
    print(json.dumps({"tokens": parts, "torch": torch.__version__, "nats": found}, indent=1))


def linears(base: Base) -> dict[str, torch.Tensor]:
    """The weights of the layers' linears."""
    return {name: p.data for name, p in base.model.named_parameters() if name.endswith("_proj.weight")}


@torch.no_grad()
def measured(base: Base, texts: list[tuple[list[int], int]], parts: list[int]) -> dict[str, Any]:
    """Differences from the base's log-probs, by variant; the base is afterwards what it was."""
    exact = logprobs(base, texts)
    weights, own = linears(base), base.model.lm_head.weight
    # The head has a weight of its own, so that the embedding stays as it is.
    head = base.model.lm_head.weight = torch.nn.Parameter(own.clone(), requires_grad=False)
    kept, kept_head = {place: p.clone() for place, p in weights.items()}, own.clone()

    def differences() -> dict[str, Any]:
        apart = (logprobs(base, texts) - exact).abs()
        return {
            "mean": round(float(apart.mean()), 4),
            "greatest": round(float(apart.max()), 3),
            "by part": [round(float(part.mean()), 4) for part in apart.split(parts)],
        }

    found = {}
    for name, (layers, of_head) in variants().items():
        for place, weight in weights.items():
            other = "down_proj in bfloat16" in name and "down_proj" in place
            weight.copy_((to_bfloat16 if other else layers)(kept[place]))
        head.copy_(kept_head if of_head is None else of_head(kept_head))
        found[name] = differences()
        print(name, found[name], file=sys.stderr, flush=True)
    for place, weight in weights.items():
        weight.copy_(kept[place])
    base.model.lm_head.weight = own
    if quicken(base, torch.bfloat16):
        found["weights, inputs and products in bfloat16"] = differences()
        print(found["weights, inputs and products in bfloat16"], file=sys.stderr, flush=True)
        for module in base.model.modules():
            vars(module).pop("forward", None)
        base.packs.clear()
        base.format = base.dtype
    return found


if __name__ == "__main__":
    main()
