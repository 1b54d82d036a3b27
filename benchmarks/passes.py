"""What single passes cost: training on plain, packed and bfloat16 linears; decoding on the base and on eight adapters.

By CPU time of one thread, so that a machine that others use gives about the same; each figure is the median of rounds
in which all contenders take turns. Attention is left out of decode steps, whose batch stands at one position. The
difference in log-probs from the plain pass is printed beside. Prints JSON.

    python benchmarks/passes.py --size 135M --adapter-layers 10 --rows 64 8 1
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from plaudit.engine import adapter_files, adapters, bank, frozen, kernels
from plaudit.engine.bank import AdapterBank, Gathered
from plaudit.engine.base import Base
from plaudit.engine.fused import Fused
from plaudit.engine.packed import multiplies_bfloat16
from plaudit.policy.ppo import token_logprobs
from sized import ALPHA, RANK, adapter_folders, model_folder

ADAPTERS = 8
PROMPTS, TOKENS, COMPLETION = 8, 160, 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="15M", help="15M or 135M")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 8, 1])
    parser.add_argument("--adapter-layers", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, help="folder that keeps the models; default a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="plaudit-passes-") as scratch:
        folder = arguments.models or Path(scratch)
        found = {"training": training(folder, arguments), "decoding": decoding(folder, arguments)}
    facts = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1, "clock": "cpu"}
    print(json.dumps({**vars(arguments), "models": None, **found, **facts}, indent=1))


def milliseconds(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median of each contender's rounds; all take turns, after one round that counts for nothing."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            if turn:
                spent[name].append(1e3 * (time.process_time() - begun))
    return {name: round(statistics.median(each), 2) for name, each in spent.items()}


def training(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The parts of a step of training, per kind of linears, each on a base of its own."""
    formats: dict[str, torch.dtype | None] = {"plain": None, "packed": torch.float32}
    if multiplies_bfloat16():
        formats["bfloat16"] = torch.bfloat16
    steps = {name: _Step(folder, arguments, dtype) for name, dtype in formats.items()}
    times = {
        part: milliseconds({name: getattr(step, part) for name, step in steps.items()}, arguments.rounds)
        for part in ("trunk", "forward", "forward_and_back")
    }
    plain = steps["plain"].logprobs.detach()
    apart = {name: (step.logprobs.detach() - plain).abs() for name, step in steps.items() if name != "plain"}
    return {
        "milliseconds": times,
        "difference in log-probs": {
            name: {"mean": float(f"{each.mean():.2g}"), "largest": float(f"{each.max():.2g}")}
            for name, each in apart.items()
        },
    }


class _Step:
    """Trunk, upper layers with head, and the way back, for completions of one batch."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, dtype: torch.dtype | None) -> None:
        self._base = Base.load(model_folder(folder, arguments.size), device="cpu", dtype="float32", context_length=256)
        if dtype is not None:
            assert frozen.quicken(self._base, dtype), "these linears are not packed here"
        layers = min(arguments.adapter_layers, self._base.num_layers)
        self._start = self._base.num_layers - layers
        adapters.inject(self._base, "trained", layers=layers, rank=RANK, alpha=ALPHA, seed=0)
        generator = torch.Generator().manual_seed(0)
        for parameter in adapters.parameters(self._base, "trained"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
        self._ids = torch.randint(3, self._base.vocab_size, (PROMPTS, TOKENS), generator=generator)
        self.trunk()

    def trunk(self) -> None:
        """The layers below the adapters."""
        self._hidden = self._base.trunk(self._ids, self._start)

    def forward(self) -> None:
        """The layers with adapters, and the head at completion tokens."""
        base, begin = self._base, TOKENS - COMPLETION
        with adapters.active(base, "trained"), torch.enable_grad():
            states = base.upper(self._hidden, self._start)[:, begin - 1 : -1].flatten(0, 1)
            self.logprobs = token_logprobs(base, states, self._ids[:, begin:].flatten(), 0.7)

    def forward_and_back(self) -> None:
        """Forward and back again."""
        self.forward()
        # On again: weights that are switched off take no gradient.
        with adapters.active(self._base, "trained"):
            self.logprobs.mean().backward()
        for parameter in adapters.parameters(self._base, "trained"):
            parameter.grad = None


class _NoPast:
    """Stands in the place of attention."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        return query


@torch.no_grad()
def decoding(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a step without attention, by rows."""
    base = Base.load(model_folder(folder, arguments.size), device="cpu", dtype="float32", context_length=256)
    layers = min(arguments.adapter_layers, base.num_layers)
    paths = adapter_folders(base, folder / f"{arguments.size}-adapters", count=ADAPTERS, layers=layers)
    with prepared(base, layers, paths, torch.float32) as (runner, adapted):
        found = {rows: _step(runner, adapted, base, rows, arguments.rounds) for rows in arguments.rows}
    if multiplies_bfloat16():
        with prepared(base, layers, paths, torch.bfloat16) as (runner, adapted):
            for rows, times in found.items():
                again = _step(runner, adapted, base, rows, arguments.rounds)
                times |= {f"{name}, bfloat16": spent for name, spent in again.items()}
    return {"milliseconds": found}


@contextmanager
def prepared(base: Base, layers: int, paths: list[Path], dtype: torch.dtype) -> Iterator[tuple[Fused, AdapterBank]]:
    adapted = AdapterBank(base, layers=layers, rank=RANK, slots=ADAPTERS)
    runner = Fused(base, adapted, base.num_layers - layers, dtype, kernels.load())
    for slot, path in enumerate(paths, start=1):
        adapted.write(slot, *adapter_files.read(path))
    yield runner, adapted
    gc.collect()


def _step(runner: Fused, adapted: AdapterBank, base: Base, rows: int, rounds: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(rows)
    tokens, positions = torch.randint(3, base.vocab_size, (rows,), generator=generator), torch.full((rows,), 70)
    slots = torch.arange(rows) % ADAPTERS + 1

    def step(which: torch.Tensor | None, copies: Gathered | None) -> Callable[[], torch.Tensor]:
        return lambda: runner.logits(runner.run(tokens, positions, _NoPast(), which, copies=copies)[1])

    runs = {"base": step(None, None), "mixed, masked": step(slots, None)}
    size = sum(each.row_bytes for each in adapted._groups.values())
    if rows * size <= 4 * bank.MOST_COPIES:
        copies = Gathered(adapted._groups.values(), rows)
        for row, slot in enumerate(slots.tolist()):
            copies.fill(row, slot)
        runs["mixed, gathered"] = step(slots, copies)
    return milliseconds(runs, 4 * rounds)


if __name__ == "__main__":
    main()
