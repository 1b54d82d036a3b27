"""The benchmark of a turn times functions that are there: one that moved would end it before its first figure."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_part_that_is_timed_is_where_the_benchmark_looks_for_it():
    spec = importlib.util.spec_from_file_location("turn_benchmark", ROOT / "benchmarks" / "turn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [f"{owner.__name__}.{name}" for owner, name, _ in module.PARTS if name not in vars(owner)]
    assert not missing
