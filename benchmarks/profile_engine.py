"""Where the time of the engine's steps goes: linears, attention, cache writes, adapters, drawing, Python.

A batch decodes on a random or real model as in `serving.py`, twice: once with a clock around the parts of the engine's
loop, once under torch's profiler, whose operators are put together by kind. Times are of one decode step or, for
prompts, of the whole run. `between operators` is what is left of a step: Python, and the way from one operator to the
next. `hand-over` is what passes between the end of the last step and the moment at which the caller has the results.
Prints JSON.

    python benchmarks/profile_engine.py --size 15M --rows 32 --adapters 8 --models /tmp/models
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from plaudit.engine import torch_engine
from plaudit.engine.base import Base
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.types import Sampling
from sized import ALPHA, RANK, adapter_folders, model_folder
from torch.profiler import ProfilerActivity, profile

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
KINDS = {
    "linears": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot_product"),
    "cache writes and copies": (
        "aten::_index_put_impl_",
        "aten::index_copy_",
        "aten::copy_",
        "aten::cat",
        "aten::clone",
    ),
    "masks": ("aten::where", "aten::masked_fill", "aten::gt", "aten::fill_"),
    "norms": ("aten::_fused_rms_norm", "aten::pow", "aten::mean", "aten::rsqrt", "aten::div_"),
    "element by element": ("aten::mul", "aten::add", "aten::silu", "aten::neg"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="15M", help="15M or 135M")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=0, help="adapters among which the rows take turns; 0: the base")
    parser.add_argument("--adapter-layers", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="time that passes, or that this process computes"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", type=Path, help="folder that keeps the models; default a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or len(os.sched_getaffinity(0)))
    with (
        tempfile.TemporaryDirectory(prefix="plaudit-profile-") as scratch,
        running(arguments.models or Path(scratch), arguments) as (engine, jobs),
    ):
        finish(engine, jobs)
        parts = clocked(engine, jobs, CLOCKS[arguments.clock])
        kinds = profiled(engine, jobs)
    steps = parts.pop("steps")
    per_step = ("forward pass of a step", "draw")
    report = {name: round(1e3 * s / (steps if name in per_step else 1), 2) for name, s in parts.items()}
    print(json.dumps({"steps": steps, "milliseconds": report, "operators, milliseconds": kinds}, indent=1))


@contextmanager
def running(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[TorchEngine, list[Job]]]:
    base = Base.load(model_folder(folder, arguments.size), device=arguments.device, dtype="float32")
    layers = min(arguments.adapter_layers, base.num_layers)
    count = max(2, arguments.adapters)
    paths = adapter_folders(base, folder / f"{arguments.size}-adapters", count=count, layers=layers)
    base.eos_ids = frozenset()
    engine = TorchEngine(
        base,
        EngineSettings(widths=(arguments.rows,), adapter_slots=count),
        ModelSettings(adapter_layers=layers, adapter_rank=RANK, adapter_alpha=ALPHA),
    )
    keys = [ReleaseKey("bench/default", number, "") for number in range(count + 1)]
    for key, path in zip(keys, [None, *paths], strict=True):
        engine.stage(key, path)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, base.vocab_size, (arguments.rows, arguments.prompt), generator=generator)
    jobs = [
        Job(
            prompt=EncodedPrompt(tuple(map(int, ids[row]))),
            release=keys[1 + row % arguments.adapters] if arguments.adapters else keys[0],
            sampling=Sampling(temperature=0.0, max_tokens=arguments.new),
            seed=row,
        )
        for row in range(arguments.rows)
    ]
    try:
        yield engine, jobs
    finally:
        engine.close()


def finish(engine: TorchEngine, jobs: list[Job]) -> None:
    for ticket in engine.submit(jobs):
        ticket.result()


def clocked(engine: Any, jobs: list[Job], clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of the parts of the loop; the functions are put back afterwards."""
    spent: dict[str, float] = collections.defaultdict(float)
    ended_at = 0.0

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any, **more: Any) -> Any:
            nonlocal ended_at
            begun = clock()
            try:
                return function(*args, **more)
            finally:
                ended_at = clock()
                spent[name] += ended_at - begun

        return inner

    (lane,) = engine._lanes.values()
    draw = torch_engine.draw
    engine._admission.prefill = timed("prompts", engine._admission.prefill)
    lane.step = timed("forward pass of a step", lane.step)
    torch_engine.draw = timed("draw", draw)  # type: ignore[assignment]
    before, begun = engine.steps, clock()
    try:
        finish(engine, jobs)
    finally:
        del engine._admission.prefill, lane.step
        torch_engine.draw = draw
    ended = clock()
    return {
        "steps": engine.steps - before,
        "all": ended - begun,
        **spent,
        "hand-over": ended - ended_at,
        "rest of the loop": ended_at - begun - sum(spent.values()),
    }


def profiled(engine: TorchEngine, jobs: list[Job]) -> dict[str, float]:
    """Milliseconds of operators by kind, over the whole run, prompts included."""
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=every_thread) as found:
        begun = time.perf_counter()
        finish(engine, jobs)
        wall = time.perf_counter() - begun
    spent: dict[str, float] = collections.defaultdict(float)
    for event in found.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "other operators")
        spent[kind] += event.self_cpu_time_total / 1e3
    spent["between operators"] = 1e3 * wall - sum(spent.values())
    return {kind: round(ms, 1) for kind, ms in sorted(spent.items(), key=lambda item: -item[1])}


if __name__ == "__main__":
    main()
