"""Where the time of one turn goes, on evidence that a data directory holds: sampling, features, updates, judging.

A turn is run on a copy of the directory, so that the original stays as it is and may be in use. Times are exclusive:
what a part calls that is a part itself counts there alone. Per step of the turn, the seconds of its parts; and the
tokens that the engine sampled. Settings are given as for `plaudit`; the same turn is run once per `--set-each`, one
after another, so that two settings are compared in one run. Prints JSON, with what the gate measured of a candidate;
`--keep` keeps its folder, whose `policy` is the adapter.

    plaudit demo --out /tmp/demo --keep-data
    python benchmarks/turn.py --config /tmp/demo/plaudit.toml --set-each model.threads=1 --set-each model.threads=2
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import plaudit
import torch
import transformers
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.torch_engine import TorchEngine
from plaudit.learner import kept, loop, measure
from plaudit.learner.outcome import Result
from plaudit.learner.rewards import ModelReward
from plaudit.learner.status import Status
from plaudit.learner.turn import new_turn, run
from plaudit.policy import shares, train
from plaudit.reward import fit, heads
from plaudit.reward.trunk import TrunkCache
from plaudit.settings import load_settings
from plaudit.types import Channel

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# (owner, name, part): functions that are timed; a name that several modules imported is timed in each.
PARTS: tuple[tuple[Any, str, str], ...] = (
    (Base, "of", "load the base"),
    (TorchEngine, "__init__", "make the engine"),
    (loop, "quicken", "pack the base's linears"),
    (kept, "sample", "sample: the base's answers"),
    (shares, "sample", "sample: rollouts and held-out prompts"),
    (measure, "sample", "sample: gate prompts, probes, proof"),
    (TrunkCache, "fill", "features: trunk"),
    (TrunkCache, "pooled", "features: upper layers"),
    (TrunkCache, "states", "features: upper layers"),
    (fit, "_train", "reward: adapter"),
    (fit, "_fit_heads", "reward: heads"),
    (fit, "choose_treatment", "reward: heads"),
    (heads, "fit_heads", "reward: heads"),
    (ModelReward, "__call__", "rewards of samples"),
    (train.PolicyTrainer, "_update", "policy: updates"),
    (train.PolicyTrainer, "logprobs_under", "log-probs of samples"),
    (measure, "logprobs_of", "log-probs of samples"),
    (adapters, "inject", "adapters on and off the base"),
    (adapters, "load", "adapters on and off the base"),
    (adapters, "remove", "adapters on and off the base"),
)


class Clock:
    """Exclusive times of parts, by step."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last = now()
        self._open = ["everything else"]
        self._step = "start"
        self.again()

    def again(self) -> None:
        """Begin with nothing spent."""
        self.spent: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
        self.tokens: dict[str, int] = collections.defaultdict(int)

    def charge(self) -> None:
        """Give the time since the last charge to the innermost part."""
        now = self._now()
        self.spent[self._step][self._open[-1]] += now - self._last
        self._last = now

    def step(self, name: str) -> None:
        """Begin a step of the turn."""
        self.charge()
        self._step = name

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, whose time is the part's."""

        @functools.wraps(function)
        def inner(*args: Any, **more: Any) -> Any:
            self.charge()
            self._open.append(part)
            try:
                found = function(*args, **more)
            finally:
                self.charge()
                self._open.pop()
            if part.startswith("sample"):
                self.tokens[part] += sum(len(each.generated.tokens) for each in found)
            return found

        return inner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the settings of the data directory")
    parser.add_argument("--data", type=Path, help="data directory; default the one that the settings name")
    parser.add_argument("--channel", default="instruction/default")
    parser.add_argument("--seed", type=int, default=1, help="of all that the turn draws")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.name=value")
    parser.add_argument("--set-each", action="append", default=[], metavar="section.name=value[,...]")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the candidates of runs are kept, by number")
    parser.add_argument("--turns", type=int, default=1, help="one after another on the same copy and evidence")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="time that passes, or that the process computes"
    )
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.rounds):
        for own in arguments.set_each or [""]:
            for found in several(arguments, own, arguments.keep and arguments.keep / str(len(runs))):
                runs.append(found)
                print(json.dumps(found), file=sys.stderr, flush=True)
    facts = {
        "plaudit": plaudit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
    }
    print(json.dumps({"runs": runs, **facts}, indent=1))


def several(arguments: argparse.Namespace, own: str, keep: Path | None) -> Iterator[dict[str, Any]]:
    """So many turns of one learner on one copy; what loading takes is the first one's."""
    overrides = [*arguments.overrides, *(each for each in own.split(",") if each)]
    clock = Clock(CLOCKS[arguments.clock])
    with copied(arguments) as folder, watched(clock):
        learner = loop.open_learner(load_settings(arguments.config, [f"data_dir={folder}", *overrides]))
        try:
            channel = Channel.parse(arguments.channel)
            for number in range(arguments.turns):
                gate: list[dict[str, Any]] = []
                # The channel's own lease may be held by the process that the copy was taken from.
                with (
                    learner.leases.take("benchmark") as lease,
                    new_turn(learner, channel, arguments.seed + number, lease) as turn,
                ):
                    result = run(turn)
                if result.version is not None:
                    decided = learner.registry.release(channel, result.version).decision_json
                    gate = json.loads(decided)["checks"] if decided else []
                    if keep is not None:
                        learner.registry.fetch(channel, result.version, keep / str(number + 1))
                yield {"settings": overrides, "turn": number + 1, **described(clock, result, gate)}
                clock.again()
        finally:
            learner.close()


def described(clock: Clock, result: Result, gate: list[dict[str, Any]]) -> dict[str, Any]:
    """One turn's outcome and its parts."""
    clock.charge()
    steps = {
        step: {part: round(s, 2) for part, s in sorted(parts.items(), key=lambda each: -each[1]) if s >= 0.005}
        for step, parts in clock.spent.items()
    }
    return {
        "outcome": str(result.outcome),
        "reason": result.reason[:300],
        "gate": {check["name"]: [check["value"], check["threshold"], check["note"]] for check in gate},
        "seconds": {step: round(sum(parts.values()), 1) for step, parts in clock.spent.items()},
        "all": round(sum(sum(parts.values()) for parts in clock.spent.values()), 1),
        "parts": steps,
        "tokens sampled": dict(clock.tokens),
    }


@contextmanager
def copied(arguments: argparse.Namespace) -> Iterator[Path]:
    """A data directory of its own: the stores as they are at this moment, and the registry's files."""
    source = arguments.data or load_settings(arguments.config).data_dir
    with tempfile.TemporaryDirectory(prefix="plaudit-turn-benchmark-") as scratch:
        for path in source.iterdir():
            target = Path(scratch) / path.name
            if path.suffix == ".sqlite":
                with closing(sqlite3.connect(path)) as there, closing(sqlite3.connect(target)) as here:
                    there.backup(here)
                    if path.name == "evidence.sqlite":
                        # A turn that was refused on this evidence would not be run again.
                        here.execute("DELETE FROM turn_outcome")
                        here.commit()
            elif path.is_dir():
                shutil.copytree(path, target)
            elif path.suffix == ".key":
                shutil.copy(path, target)
        yield Path(scratch)


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Time the parts; the functions are put back afterwards."""
    before: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        held = vars(owner)[name]
        before.append((owner, name, held))
        if isinstance(held, classmethod):
            setattr(owner, name, classmethod(wrap(held.__func__)))
        else:
            setattr(owner, name, wrap(held))

    def began(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def step(self: Status, number: int, name: str) -> None:
            clock.step(name)
            function(self, number, name)

        return step

    try:
        for owner, name, part in PARTS:
            put(owner, name, functools.partial(clock.timed, part=part))
        put(Status, "step", began)
        yield
    finally:
        for owner, name, held in reversed(before):
            setattr(owner, name, held)


if __name__ == "__main__":
    main()
