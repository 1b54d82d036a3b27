"""The page of results: what stands in the file of runs stands in the page, and nothing is made better than it is."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("results", ROOT / "scripts" / "results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)


def rate(estimate, half=0.05):
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half, "n": 80}


def source(gold, gain, **more):
    return {"gold": rate(gold), "gold_gain": rate(gain), "gold_win_rate": rate(0.5 + gain / 4), **more}


def run(seed, gain, *outcomes, failed=()):
    return {
        "population": "people",
        "domain": "verdicts",
        "seed": seed,
        "prompts": 80,
        "turns": [{"outcome": each, "reason": "", "version": 1, "failed": list(failed)} for each in outcomes],
        "base": source(1.0, 0.0),
        "last": source(1.0 + gain, gain),
        "baselines": {"first_listed": source(0.9, -0.1), "shortest_option": source(1.3, 0.3)},
        "versions": {"plaudit": "0.1.0"},
        "cpu_seconds": 50,
        "command": f"python benchmarks/domains.py --population people --seeds {seed} --turns 2",
    }


def test_the_page_is_what_the_runs_make_of_it():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "results.py", "--check"], check=False)
    assert done.returncode == 0, "python scripts/results.py writes it anew"


def test_seeds_that_gain_nothing_and_baselines_that_win_are_told():
    refused = run(1, 0.0, "rejected", "no_progress", failed=["reward_base 0.1 (0.2)", "choice_share 0.9 (0.8)"])
    part = results.part([run(0, 0.2, "promoted", "no_progress"), refused])
    assert "| [people](#people) | 1 of 2 | 1 of 2 | 1.000 | 1.100 | +0.100 | 1.300 (shortest option) |" in part
    assert "rejected: reward_base, choice_share, no_progress: reward_base, choice_share" in part
    assert (
        "| 0 | promoted, no_progress | 1.000 [0.950, 1.050] | 1.200 [1.150, 1.250] | +0.200 [+0.150, +0.250] |" in part
    )
    # Best first: the baseline stands above the release that it beats.
    assert part.index("| shortest option |") < part.index("| **last release** |") < part.index("| first listed |")
    assert "`python benchmarks/domains.py --population people --seeds 0 1 --turns 2`" in part


def test_only_what_stands_between_the_marks_is_written():
    page = f"before {results.BEGIN}old{results.END} after"
    assert results.filled(page, "new") == f"before {results.BEGIN}\nnew\n{results.END} after"
    with pytest.raises(ValueError, match="needs the marks"):
        results.filled("no marks", "new")
