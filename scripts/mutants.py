"""Breaks lines that matter, one at a time, and sees that a named test fails: `make mutants`.

Enters: tests/mutants.toml, a list of one-line changes with the tests that must catch them. Leaves: a line per change;
exit code 1 if one survives. Works in a copy of the checkout and never touches the checkout itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "mutants.toml"
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider")
NO_TESTS_RAN = 5


class Mutant(NamedTuple):
    """One change: the text `before` stands once in `file` and becomes `after`; one of `tests` must fail then."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """`text` with the change; raises ValueError unless `before` stands in it exactly once."""
        if text.count(self.before) != 1:
            raise ValueError(
                f"{self.name}: {self.before!r} stands {text.count(self.before)} times in {self.file}, and must stand "
                "once; bring tests/mutants.toml up to date"
            )
        return text.replace(self.before, self.after)


def mutants(path: Path = LIST) -> list[Mutant]:
    """The list of a file."""
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**row, "tests": tuple(row["tests"])}) for row in rows]


def copied(folder: Path) -> Path:
    """A copy of every file that git tracks."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return folder


def passes(copy: Path, tests: Sequence[str]) -> bool:
    """Whether all of `tests` pass in the copy; raises RuntimeError if none was found."""
    packages = [copy / "service", *sorted(copy.glob("plugins/*/"))]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages)), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run([*PYTEST, *tests], cwd=copy, env=environ, capture_output=True, text=True, check=False)
    if found.returncode == NO_TESTS_RAN or "ERROR: not found" in found.stdout + found.stderr:
        raise RuntimeError(f"no test is called {' '.join(tests)}; bring tests/mutants.toml up to date")
    return found.returncode == 0


def main() -> int:
    """Run the list; 1 if a change survives or the unchanged code fails."""
    parser = argparse.ArgumentParser(description="Break lines that matter and see that their tests fail.")
    parser.add_argument("names", nargs="*", help="only changes whose name contains one of these")
    wanted = parser.parse_args().names
    chosen = [one for one in mutants() if not wanted or any(part in one.name for part in wanted)]
    with tempfile.TemporaryDirectory(prefix="plaudit-mutants-") as folder:
        copy = copied(Path(folder))
        every = sorted({test for one in chosen for test in one.tests})
        if not passes(copy, every):
            print("the tests fail without any change; fix that first")
            return 1
        survivors = 0
        for number, one in enumerate(chosen, 1):
            path, began = copy / one.file, time.monotonic()
            whole = path.read_text(encoding="utf-8")
            path.write_text(one.applied(whole), encoding="utf-8")
            survived = passes(copy, one.tests)
            path.write_text(whole, encoding="utf-8")
            survivors += survived
            verdict = "SURVIVES" if survived else "caught"
            print(f"[{number}/{len(chosen)}] {verdict:8} {one.name} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{len(chosen) - survivors} caught, {survivors} survive")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
