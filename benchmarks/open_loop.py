"""How long callers wait under load: requests come by chance, whether earlier ones are done or not.

First the capacity: as many completions as the widest batch has rows, kept full. Then, at a half and at four fifths of
it, requests of mixed lengths come as a Poisson process, on one release that stays, and on releases of which another
goes live every second while the one before ends its requests. Of each: the time to the first token, the delay between
two tokens of a completion, and failed requests. Prints JSON; with `--out` it is written, and the delays are drawn.
Other load on the machine is in these figures, and most of it in those at the 99th percentile.

    python benchmarks/open_loop.py --size 15M --seconds 30 --out benchmarks/results/open_loop.json

A GPU (`--device cuda`) has not been measured.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import sides
import torch
from plaudit.engine.base import Base
from plaudit.engine.protocol import EncodedPrompt, Job, PrefixFound, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import SlotsInUse
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.types import Sampling
from sized import ALPHA, RANK, adapter_folders, model_folder

ADAPTERS = 4
PROMPT_TOKENS, NEW_TOKENS = (16, 64, 64, 256), (16, 32, 64, 128)
SHARES = (0.5, 0.8)
DELAYS = ("first token, ms", "between tokens, ms")


class Seen:
    """An engine's Observer that keeps every delay."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.between: list[tuple[float, int]] = []

    def queued(self, seconds: float) -> None:
        """Part of the time to the first token."""

    def first_token(self, seconds: float) -> None:
        """See Observer."""
        self.first.append(seconds)

    def stepped(self, seconds: float | None, used: int, idle: int) -> None:
        """Each row that holds a completion waited so long for its token."""
        if seconds is not None:
            self.between.append((seconds, used))

    def prefix(self, found: PrefixFound) -> None:
        """Prompts here share nothing."""

    def report(self) -> dict[str, dict[str, float]]:
        """Milliseconds at the median and at the 99th percentile."""
        between = np.repeat([seconds for seconds, _ in self.between], [used for _, used in self.between])
        return {
            name: {f"p{share}": round(1e3 * float(np.percentile(values, share)), 2) for share in (50, 99)}
            for name, values in zip(DELAYS, (np.array(self.first), between), strict=True)
            if len(values)
        }


class Live:
    """The release that new requests are on; with `every` seconds another adapter goes live so often."""

    def __init__(self, engine: TorchEngine, adapters: list[Path], every: float | None) -> None:
        self._engine, self._adapters = engine, adapters
        self.swaps, self.refused = -1, 0
        self._stop = threading.Event()
        self._every = every
        self.go_on()
        self._thread = threading.Thread(target=self._swap, daemon=True)
        if every is not None:
            self._thread.start()

    def go_on(self) -> None:
        """Stage the next adapter, let it be live, and let go of the one before."""
        number = self.swaps + 1
        key = ReleaseKey("bench/default", number + 1, f"swap {number}")
        self._engine.stage(key, self._adapters[number % len(self._adapters)])
        self.swaps = number
        before, self.key = getattr(self, "key", None), key
        if before is not None:
            self._engine.unstage(before)

    def close(self) -> None:
        """No swap any more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _swap(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.go_on()
            except SlotsInUse:  # requests of so many releases are under way; the next second tries again
                self.refused += 1


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="plaudit-open-loop-") as scratch:
        report = measured(arguments.models or Path(scratch), arguments)
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": arguments.device}
    sides.write({"benchmark": "open loop", **report, **facts, **sides.machine()}, arguments.out)
    if arguments.out is not None:
        drawn(report["open loop"], arguments.out.with_suffix(".png"))


def drawn(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the delays at the median, with lines up to the 99th percentile."""
    bars = {
        f"{row['share of capacity']:.0%}{', swaps' if row['swaps'] else ''}": {
            name: {"median": row[name]["p50"], "min": row[name]["p50"], "max": row[name]["p99"]}
            for name in DELAYS
            if name in row
        }
        for row in rows
    }
    sides.draw(path, "Delays by load: median, and up to the 99th percentile", "ms", bars)


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="15M", help="tiny, 15M, 135M")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--adapter-layers", type=int, default=4)
    parser.add_argument("--dtype", default="float32", help="engine.dtype")
    parser.add_argument("--models", type=Path, help="folder that keeps the models; default a temporary one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the JSON here, and a PNG beside it")
    return parser.parse_args(given)


def measured(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The capacity, and a stretch of each share of it, with and without swaps."""
    with ExitStack() as cleanup:
        base = Base.load(model_folder(folder, arguments.size), device=arguments.device, dtype="float32")
        layers = min(arguments.adapter_layers, base.num_layers)
        paths = adapter_folders(base, folder / f"{arguments.size}-adapters", count=ADAPTERS, layers=layers)
        base.eos_ids = frozenset()  # Answers end at their length alone.
        engine = TorchEngine(
            base,
            EngineSettings(widths=tuple(arguments.widths), dtype=arguments.dtype, max_waiting=100_000),
            ModelSettings(adapter_layers=layers, adapter_rank=RANK, adapter_alpha=ALPHA),
        )
        cleanup.callback(engine.close)
        capacity = closed(engine, paths, arguments)
        rows = [
            opened(engine, paths, share, capacity, every, arguments.seconds)
            for share in SHARES
            for every in (None, 1.0)
        ]
    return {"size": arguments.size, "capacity, completions/s": round(capacity, 2), "open loop": rows}


def closed(engine: TorchEngine, paths: list[Path], arguments: argparse.Namespace) -> float:
    """Completions per second while every row of the widest batch has one; the first and the last do not count."""
    drawn, live = random.Random(0), Live(engine, paths, None)
    width, ended, waiting = max(arguments.widths), 0, []
    begun = time.monotonic()
    while time.monotonic() - begun < arguments.seconds / 2:
        waiting += engine.submit([job(engine, drawn, live.key) for _ in range(width - len(waiting))])
        waiting[0].result(120)
        open_ = [ticket for ticket in waiting if not ticket._done.done()]
        ended += len(waiting) - len(open_)
        waiting = open_
    spent = time.monotonic() - begun
    for ticket in waiting:
        ticket.result(120)
    return ended / spent


def opened(
    engine: TorchEngine, paths: list[Path], share: float, capacity: float, every: float | None, seconds: float
) -> dict[str, Any]:
    """One stretch of requests that come by chance."""
    drawn, live, seen, tickets = random.Random(1), Live(engine, paths, every), Seen(), []
    engine.observe(seen)
    begun = at = time.monotonic()
    while at < begun + seconds:
        at += drawn.expovariate(share * capacity)
        time.sleep(max(0.0, at - time.monotonic()))
        tickets += engine.submit([job(engine, drawn, live.key)])
    failed = 0
    for ticket in tickets:
        try:
            ticket.result(120)
        except Exception:  # whatever broke it, it is a failed request
            failed += 1
    live.close()
    return {
        "share of capacity": share,
        "swaps": live.swaps,
        "swaps without a free slot": live.refused,
        "requests": len(tickets),
        "failed": failed,
        "keys and values, MiB": engine.usage().kv_bytes // 2**20,
        **seen.report(),
    }


def job(engine: TorchEngine, drawn: random.Random, key: ReleaseKey) -> Job:
    prompt = [drawn.randrange(3, engine.base.vocab_size) for _ in range(drawn.choice(PROMPT_TOKENS))]
    sampling = Sampling(temperature=0.7, max_tokens=drawn.choice(NEW_TOKENS))
    return Job(prompt=EncodedPrompt(tuple(prompt)), release=key, sampling=sampling, seed=drawn.randrange(2**31))


if __name__ == "__main__":
    main()
