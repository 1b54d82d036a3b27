r"""Tokens per second of this engine beside transformers' `generate` and PEFT's `adapter_names`, in one process.

Beside them OpenVINO GenAI and vLLM on the base, in processes and environments of their own, if these are named. Every
round runs each contender once, one after another, so that other load on the machine meets all of them alike;
what counts are the ratios of a round, as median and spread over rounds. Prompts are random tokens, decoding is greedy
and ends at the length alone, and the tokens are compared. Cases:

    base     every row on the base, against `generate`, OpenVINO GenAI and vLLM
    mixed    rows take turns among eight adapters, against PEFT's `generate(adapter_names=...)` and against base
    prefill  prompts of 512 tokens and one new token, one row
    options  fifty options of one prompt scored together, against each by itself (the model's own pass)

Prints JSON; with `--out` it is written, and the ratios are drawn. A machine that others use too is best measured on one
thread by its CPU time (`--threads 1 --clock cpu`). A GPU (`--device cuda`) has not been measured.

    python -m venv /tmp/openvino && /tmp/openvino/bin/pip install torch openvino-genai "optimum-intel[openvino]"
    python scripts/vllm_environment.py /tmp/vllm
    python benchmarks/serving.py --sizes 15M 135M --rows 1 8 32 --rounds 5 --out benchmarks/results/serving.json \
        --openvino-python /tmp/openvino/bin/python --vllm-python /tmp/vllm/bin/python
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import sides
import torch
import transformers
from peft import PeftModel
from plaudit.engine.base import Base
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.threads import release_team
from plaudit.engine.torch_engine import TorchEngine
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.types import Sampling
from sized import ALPHA, RANK, adapter_folders, model_folder
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
ADAPTERS = 8
LONG = 512
OPTIONS, OPTION_TOKENS = 50, 8
BASE = ReleaseKey("bench/default", 0, "base")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CASES = ("base", "mixed", "prefill", "options")

# What a contender gives: token ids or log-probs, comparable with its rivals'.
Run = Callable[[], list[Sequence[float]]]


@dataclass(frozen=True)
class Setup:
    """What all runs of one size share."""

    engine: TorchEngine
    plain: Any
    mixed: Any
    new: int
    device: str

    def prompts(self, rows: int, length: int) -> list[list[int]]:
        """Random token ids, the same for all contenders."""
        generator = torch.Generator().manual_seed(rows)
        ids = torch.randint(3, self.engine.base.vocab_size, (rows, length), generator=generator)
        return [[int(token) for token in row] for row in ids]


class Peer:
    """A contender in a process of its own, which measures itself."""

    def __init__(self, command: Sequence[str | Path], threads: int) -> None:
        self._side = sides.Side(command, threads)
        self.versions = self._side.facts["versions"]
        self.spent: dict[str, float] = {}

    def __call__(self) -> list[Sequence[float]]:
        """One round: its tokens; what it spent is in `spent`."""
        answer = self._side.round()
        self.spent = {clock: answer[clock] for clock in CLOCKS}
        found: list[Sequence[float]] = answer["found"]
        return found

    def close(self) -> None:
        """No more rounds."""
        self._side.close()


def main() -> None:
    arguments = parsed()
    for name in ("openvino", "vllm"):
        if getattr(arguments, f"{name}_python") is None:
            print(f"NO PEER: --{name}-python was not given", file=sys.stderr)
    # Never the environment's: a limit set there for tests would measure something else.
    torch.set_num_threads(arguments.threads or len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="plaudit-serving-") as scratch:
        folder = arguments.models or Path(scratch)
        rows = []
        for size in arguments.sizes:
            for row in measure(folder, size, arguments):
                print(json.dumps(row), file=sys.stderr, flush=True)
                rows.append(row)
    facts = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "threads": torch.get_num_threads(),
        "device": arguments.device,
        "dtype": arguments.dtype,
        "clock": arguments.clock,
        "prompt_tokens": arguments.prompt,
        "new_tokens": arguments.new,
    }
    sides.write({"benchmark": "serving", "rows": rows, **facts, **sides.machine()}, arguments.out)
    if arguments.out is not None:
        bars = {
            row["case"].replace(" ", "\n", 1): {
                name.removeprefix("ours / "): value for name, value in row.items() if name.startswith("ours / ")
            }
            for row in rows
        }
        sides.draw(
            arguments.out.with_suffix(".png"), "Speed of this engine, by what it is compared with", "times", bars
        )


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["15M"], help="tiny, 15M, 135M")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--adapter-layers", type=int, default=1024, help="upper layers with adapters; default all")
    parser.add_argument("--dtype", default="float32", help="engine.dtype of ours; the others compute in float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="time that passes, or that this process computes"
    )
    parser.add_argument("--models", type=Path, help="folder that keeps the models; default a temporary one")
    parser.add_argument("--openvino-python", type=Path, help="interpreter of an environment that has OpenVINO GenAI")
    parser.add_argument("--vllm-python", type=Path, help="interpreter of an environment that has vLLM")
    parser.add_argument("--out", type=Path, help="write the JSON here, and a PNG beside it")
    return parser.parse_args(given)


def measure(folder: Path, size: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with setup(folder, size, arguments) as made:
        for rows in arguments.rows:
            if "base" in arguments.cases:
                runs: dict[str, Run] = {"ours": ours(made, rows, arguments.prompt, adapters=False)}
                runs["generate"] = generate(made, rows, arguments.prompt)
                with elsewhere(folder / size, made.prompts(rows, arguments.prompt), arguments) as others:
                    yield compared(f"{size} base {rows}", runs | others, rows * made.new, "tokens/s", arguments)
            if "mixed" in arguments.cases:
                runs = {"ours": ours(made, rows, arguments.prompt, adapters=True)}
                runs["peft"] = generate(made, rows, arguments.prompt, adapters=True)
                runs["ours on base"] = ours(made, rows, arguments.prompt, adapters=False)
                row = compared(f"{size} mixed {rows}", runs, rows * made.new, "tokens/s", arguments)
                yield row | {"adapter_layers": made.engine.base.num_layers - made.engine.capture_layer}
        if "prefill" in arguments.cases:
            runs = {"ours": ours(made, 1, LONG, adapters=False, new=1), "generate": generate(made, 1, LONG, new=1)}
            yield compared(f"{size} prefill {LONG}", runs, LONG, "tokens/s", arguments)
        if "options" in arguments.cases:
            yield compared(f"{size} options {OPTIONS}", options(made, arguments.prompt), 1, "choices/s", arguments)


@contextmanager
def elsewhere(model: Path, prompts: list[list[int]], arguments: argparse.Namespace) -> Iterator[dict[str, Run]]:
    """Contenders that need environments of their own, on the same prompts."""
    named = {"OpenVINO GenAI": "openvino", "vLLM": "vllm"}
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="plaudit-prompts-") as scratch, ExitStack() as cleanup:
        path = Path(scratch) / "prompts.json"
        path.write_text(json.dumps(prompts), encoding="utf-8")
        work = ["--model", model, "--prompts", path, f"--new={arguments.new}", f"--threads={threads}"]
        found: dict[str, Run] = {}
        for name, short in named.items():
            python = getattr(arguments, f"{short}_python")
            if python is not None:
                peer = Peer([python, HERE / f"{short}_side.py", *work], threads)
                cleanup.callback(peer.close)
                found[name] = peer
        yield found


@contextmanager
def setup(folder: Path, size: str, arguments: argparse.Namespace) -> Iterator[Setup]:
    """The engine with all adapters staged, and the same model and adapters in transformers and PEFT."""
    source = model_folder(folder, size)
    base = Base.load(source, device=arguments.device, dtype="float32")
    layers = min(arguments.adapter_layers, base.num_layers)
    paths = adapter_folders(base, folder / f"{size}-adapters", count=ADAPTERS, layers=layers)
    # Answers end at their length alone, here as there.
    base.eos_ids = frozenset()
    widths = tuple(sorted(set(arguments.rows) | {1}))
    settings = EngineSettings(widths=widths, adapter_slots=ADAPTERS, dtype=arguments.dtype)
    engine = TorchEngine(base, settings, ModelSettings(adapter_layers=layers, adapter_rank=RANK, adapter_alpha=ALPHA))
    engine.stage(BASE, None)
    for number, path in enumerate(paths):
        engine.stage(release(number), path)
    plain, wrapped = (
        AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32).eval().to(arguments.device)
        for _ in range(2)
    )
    mixed = PeftModel.from_pretrained(wrapped, str(paths[0]), adapter_name="a0")
    for number, path in enumerate(paths[1:], start=1):
        mixed.load_adapter(str(path), adapter_name=f"a{number}")
    try:
        yield Setup(engine, plain, mixed.eval(), arguments.new, arguments.device)
    finally:
        engine.close()
        gc.collect()


def release(number: int) -> ReleaseKey:
    return ReleaseKey("bench/default", number + 1, f"adapter {number}")


def ours(made: Setup, rows: int, length: int, *, adapters: bool, new: int | None = None) -> Run:
    """The engine's tokens, all rows submitted at once."""
    jobs = [
        Job(
            prompt=EncodedPrompt(tuple(prompt)),
            release=release(row % ADAPTERS) if adapters else BASE,
            sampling=Sampling(temperature=0.0, max_tokens=new or made.new),
            seed=row,
            width=rows,
        )
        for row, prompt in enumerate(made.prompts(rows, length))
    ]
    return lambda: [ticket.result().tokens for ticket in made.engine.submit(jobs)]


def generate(made: Setup, rows: int, length: int, *, adapters: bool = False, new: int | None = None) -> Run:
    """The tokens of transformers or, with adapters, of PEFT."""
    ids = torch.tensor(made.prompts(rows, length), device=made.device)
    more: dict[str, Any] = {"adapter_names": [f"a{row % ADAPTERS}" for row in range(rows)]} if adapters else {}
    count = new or made.new

    def run() -> list[Sequence[float]]:
        with torch.inference_mode():
            found = (made.mixed if adapters else made.plain).generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **more,
            )
        release_team()
        return [row[length:].tolist() for row in found]

    return run


def options(made: Setup, length: int) -> dict[str, Run]:
    """Log-probs of options behind a prompt: together, and one by one with the model's own pass."""
    prompt = made.prompts(1, length)[0]
    texts = made.prompts(OPTIONS, OPTION_TOKENS)

    def together() -> list[Sequence[float]]:
        return list(made.engine.score(EncodedPrompt(tuple(prompt)), texts, BASE))

    def one_by_one() -> list[Sequence[float]]:
        found = []
        with torch.inference_mode():
            for text in texts:
                logits = made.plain(input_ids=torch.tensor([[*prompt, *text[:-1]]], device=made.device)).logits[0]
                logprobs = torch.log_softmax(logits[len(prompt) - 1 :].float(), dim=-1)
                found.append(logprobs.gather(1, torch.tensor(text, device=made.device)[:, None])[:, 0].tolist())
        release_team()
        return found

    return {"ours": together, "one by one": one_by_one}


def compared(name: str, runs: dict[str, Run], work: int, unit: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternating rounds of all contenders: what each does per second, and by how much the first beats each other."""
    seconds: dict[str, list[float]] = {contender: [] for contender in runs}
    results = {contender: run() for contender, run in runs.items()}
    clock = CLOCKS[arguments.clock]
    for _ in range(arguments.rounds):
        for contender, run in runs.items():
            begun = clock()
            run()
            spent = clock() - begun
            seconds[contender].append(run.spent[arguments.clock] if isinstance(run, Peer) else spent)
    first, *others = runs
    row: dict[str, Any] = {"case": name, "unit": unit}
    row |= {contender: sides.spread([work / s for s in times], 1) for contender, times in seconds.items()}
    for other in others:
        ratios = [theirs / mine for mine, theirs in zip(seconds[first], seconds[other], strict=True)]
        row[f"{first} / {other}"] = sides.spread(ratios, 2)
    versions = [run.versions for run in runs.values() if isinstance(run, Peer)]
    equal = {
        f"equal to {other}": round(agreement(results[first], results[other]), 4)
        for other in others
        if other != "ours on base"
    }
    return row | equal | {name: version for each in versions for name, version in each.items()}


def agreement(ours: list[Sequence[float]], theirs: list[Sequence[float]]) -> float:
    """Share of tokens that are equal, or of log-probs within 1e-4."""
    pairs = [pair for mine, other in zip(ours, theirs, strict=True) for pair in zip(mine, other, strict=True)]
    return sum(abs(a - b) <= 1e-4 for a, b in pairs) / len(pairs)


if __name__ == "__main__":
    main()
