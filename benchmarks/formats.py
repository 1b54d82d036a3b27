"""What engine.dtype costs and saves: tokens per second of processor time, and the memory of a process that serves.

Each figure is of a process of its own, opened as `plaudit serve` opens its engine, with one thread; formats take turns.
Rows decode side by side, greedy, with nothing else in their lane; the prompt is one of 512 tokens. Memory is what the
process holds once all of that was done: its own pages, pages of files (weights that are read from a file are such, and
the system takes them back when it needs them), and the greatest it ever held, mostly while it loads. Prints JSON.

    python benchmarks/formats.py --model ~/.cache/plaudit/smollm2 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FORMATS = ("float32", "bfloat16", "int8")
TOKENS, PROMPT, LONG = 64, 64, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help="(within) measure this format and print it")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.model, arguments.one, arguments.rows)))
        return
    runs: dict[str, list[dict[str, float]]] = {each: [] for each in arguments.formats}
    for _ in range(arguments.rounds):
        for each in arguments.formats:
            rows = [str(count) for count in arguments.rows]
            command = [sys.executable, __file__, "--model", str(arguments.model), "--one", each, "--rows", *rows]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[each].append(json.loads(said.splitlines()[-1]))
            print(each, runs[each][-1], file=sys.stderr, flush=True)
    found: dict[str, Any] = {
        each: {
            what: [round(f([run[what] for run in several]), 3) for f in (statistics.median, min, max)]
            for what in several[0]
        }
        for each, several in runs.items()
    }
    print(
        json.dumps({"median, lowest, highest": found, "rounds": arguments.rounds, "cpu": platform.machine()}, indent=1)
    )


def measured(folder: Path, dtype: str, rows: list[int]) -> dict[str, float]:
    """Figures of one format in this process."""
    import torch
    from plaudit.engine.opening import open_engine
    from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
    from plaudit.settings import EngineSettings, ModelSettings, Settings
    from plaudit.types import Sampling

    torch.set_num_threads(1)
    model = ModelSettings(path=str(folder), device="cpu")
    engine = open_engine(Settings(model=model, engine=EngineSettings(dtype=dtype, widths=tuple(sorted(rows)))))  # type: ignore[arg-type]
    found = {}
    try:
        engine.stage(key := ReleaseKey("formats/default", 0, ""), None)

        def spent(count: int, prompt: int, tokens: int, seed: int) -> float:
            how = Sampling(temperature=0.0, max_tokens=tokens)
            drawn = torch.randint(100, 20_000, (count, prompt), generator=torch.Generator().manual_seed(seed))
            jobs = [
                Job(prompt=EncodedPrompt(tuple(line)), release=key, sampling=how, seed=0, width=max(rows[0], count))
                for line in drawn.tolist()
            ]
            begun = time.process_time()
            made = [ticket.result(600) for ticket in engine.submit(jobs)]
            whole = time.process_time() - begun
            return whole / sum(len(each.tokens) for each in made)

        spent(rows[0], PROMPT, 4, 0)
        for count in rows:
            found[f"tokens per second, {count} rows"] = 1 / min(spent(count, 8, TOKENS, seed) for seed in (1, 2))
        found[f"milliseconds, prompt of {LONG}"] = 1000 * min(spent(1, LONG, 1, seed) for seed in (3, 4))
    finally:
        engine.close()
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    for name, what in (("RssAnon", "own"), ("RssFile", "of files"), ("VmHWM", "greatest")):
        found[f"MiB, {what}"] = int(status[name].split()[0]) / 1024
    return found


if __name__ == "__main__":
    main()
