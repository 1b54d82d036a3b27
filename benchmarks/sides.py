"""Contenders in processes of their own, measured in turns: each round every one of them does the same work once.

A side is a program that prepares itself, calls `Rounds.wait`, does a round of work whenever that returns, and calls it
again. The other end is `Side`. What counts are the ratios within a round, since other load on the machine meets all
sides of it alike; the processor's time is less disturbed by it than the clock on the wall. Only the standard library is
imported here until something is drawn: a peer's environment has no plaudit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

MIB = 2**20
CLOCKS = ("cpu", "wall")
OURS, THEIRS = "plaudit", "TRL"


class Rounds:
    """A side's end: takes orders on standard input and answers on standard output, which prints no longer reach."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.imported = memory("VmRSS")
        self._begun: dict[str, float] | None = None
        self._spent: dict[str, float] = {}

    def start(self) -> None:
        """The work of the round begins here: what was prepared since the order does not count."""
        self._begun = {"wall": time.perf_counter(), "cpu": time.process_time()}

    def stop(self) -> None:
        """The work of the round is done; what follows before `wait` does not count."""
        if self._begun is not None:
            now = {"wall": time.perf_counter(), "cpu": time.process_time()}
            self._spent = {clock: now[clock] - since for clock, since in self._begun.items()}
            self._begun = None

    def wait(self, **facts: Any) -> None:
        """Answer with `facts` and the seconds spent, and wait for the next order; ends the program if none comes."""
        self.stop()
        held = {"peak_mib": memory("VmHWM"), "imported_mib": self.imported}
        print(json.dumps({**facts, **self._spent, **held}), file=self._out, flush=True)
        if not sys.stdin.readline():
            raise SystemExit(0)
        self.start()


def memory(field: str) -> float:
    """MiB of this process, by the kernel: VmRSS now, VmHWM the highest so far; 0 where there is no /proc.

    Not getrusage: a started program inherits its parent's highest.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((round(int(line.split()[1]) * 1024 / MIB, 1) for line in lines if line.startswith(field + ":")), 0.0)


class Side:
    """A contender's process; `facts` is its first answer."""

    def __init__(self, command: Sequence[str | Path], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._command = [str(each) for each in command]
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.facts = self._answer()

    def round(self) -> dict[str, Any]:
        """One round of its work."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """No more rounds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._command)} ended with exit code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


def options(parser: argparse.ArgumentParser) -> None:
    """What a benchmark beside a peer may be told."""
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment that has TRL and PEFT")
    parser.add_argument("--size", default="15M", help="tiny, 15M, 135M")
    parser.add_argument("--dtype", default="float32", help="engine.dtype of ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", type=Path, help="folder that keeps the models; default a temporary one")
    parser.add_argument("--out", type=Path, help="write the JSON here, and a PNG beside it")


def commands(
    peer: Path | None, ours: Sequence[str | Path], theirs: Sequence[str | Path]
) -> dict[str, list[str | Path]]:
    """Commands of both sides, given without their interpreters; without a peer's interpreter of ours alone."""
    if peer is None:
        print("NO PEER: --peer-python was not given, so that ours is measured alone", file=sys.stderr)
        return {OURS: [sys.executable, *ours]}
    return {OURS: [sys.executable, *ours], THEIRS: [peer, *theirs]}


def in_turns(
    commands: Mapping[str, Sequence[str | Path]], *, rounds: int, warm: int, threads: int
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """First answers of all sides, and their answers round by round; the first `warm` rounds are left out."""
    with ExitStack() as open_:
        sides: dict[str, Side] = {}
        for name, command in commands.items():
            sides[name] = Side(command, threads)
            open_.callback(sides[name].close)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for number in range(warm + rounds):
            for name, side in sides.items():
                answer = side.round()
                print(json.dumps({"side": name, **answer}), file=sys.stderr, flush=True)
                if number >= warm:
                    found[name].append(answer)
        return {name: side.facts for name, side in sides.items()}, found


def compared(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Seconds and memory of each side, and how many times as much every other needs as the first."""
    first, *others = found
    row: dict[str, Any] = {
        name: {
            **{f"{clock} seconds": spread([each[clock] for each in several], 2) for clock in CLOCKS},
            "peak MiB": round(max(each["peak_mib"] for each in several)),
            "MiB once imported": round(several[0]["imported_mib"]),
        }
        for name, several in found.items()
    }
    for other in others:
        ratios = {
            clock: spread([b[clock] / a[clock] for a, b in zip(found[first], found[other], strict=True)], 2)
            for clock in CLOCKS
        }
        peaks = [max(each["peak_mib"] for each in found[name]) for name in (first, other)]
        row[f"{other} / {first}"] = {**ratios, "peak memory": round(peaks[1] / peaks[0], 2)}
    return row


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median, lowest and highest."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def machine() -> dict[str, Any]:
    """What figures depend on, besides versions; `load` is the number of programs that wanted a processor meanwhile."""
    return {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": [round(each, 1) for each in os.getloadavg()],
        # Paths without their folders, which are this machine's own.
        "command": " ".join(["python", *(Path(each).name if each.startswith("/") else each for each in sys.argv)]),
    }


def write(report: Mapping[str, Any], out: Path | None) -> None:
    """The report as JSON on standard output, and in a file if one is named."""
    text = json.dumps(report, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")


def draw(path: Path, title: str, unit: str, bars: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """A PNG: for each case a group of bars, one a contender, of medians with lines from the lowest to the highest."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for several in bars.values() for name in several))
    figure, axes = pyplot.subplots(figsize=(max(6.0, 1.4 * len(bars) + 2), 4))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        at = [place + width * (number - (len(names) - 1) / 2) for place, case in enumerate(bars) if name in bars[case]]
        shown = [case[name] for case in bars.values() if name in case]
        middle = [each["median"] for each in shown]
        below = [each["median"] - each["min"] for each in shown]
        above = [each["max"] - each["median"] for each in shown]
        axes.bar(at, middle, width, yerr=[below, above], label=name, capsize=3)
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of the library, so that equal figures are equal files.
    figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
