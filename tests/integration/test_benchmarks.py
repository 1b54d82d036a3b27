"""Benchmarks against peers: our half of each runs, on tiny sizes; the peers' halves need environments of their own."""

import json
import runpy
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from plaudit.reward.shown import shown_tokens

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """What a benchmark's file defines."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="measured")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_an_iteration_does_the_work_that_it_is_measured_by(benchmark, models, tmp_path, dtype):
    ppo = benchmark("ppo")
    sizes = ["--prompts", "2", "--samples", "2", "--prompt", "6", "--new", "5", "--minibatch", "2", "--epochs", "3"]
    arguments = ppo["parsed"](["--size", "tiny", "--layers", "2", "--models", str(models), "--dtype", dtype, *sizes])
    with ExitStack() as cleanup:
        done = ppo["Ours"](arguments, tmp_path, cleanup).iterate(0)
    assert done == {"completions": 4, "tokens": 20, "updates": 6}


def test_a_fit_learns_what_people_took(benchmark, models):
    reward = benchmark("reward")
    arguments = reward["parsed"](["--size", "tiny", "--pairs", "60", "--held-out", "60", "--prompt", "4"])
    source = reward["model_folder"](models, "tiny")
    pairs = reward["preferences"](source, arguments, 0)
    data = reward["frozen"](base := reward["Base"].load(source), pairs["train"])
    shown = [shown_tokens(base, each) for one in data.interactions.values() for each in one.candidates]
    # Both sides read the same tokens.
    assert shown == [tuple(own) for _, *both in pairs["train"] for own in both]
    assert len(reward["fitted"](base, pairs, 0)) == 60
    # Of what it was fitted on it must know most.
    right = reward["fitted"](base, pairs | {"held_out": pairs["train"]}, 0)
    assert sum(right) > 45


def test_requests_come_whether_earlier_ones_are_done_or_not(benchmark, models):
    loop = benchmark("open_loop")
    wanted = ["--size", "tiny", "--seconds", "0.2", "--widths", "4", "--adapter-layers", "2"]
    report = loop["measured"](models, loop["parsed"](wanted))
    rows = report["open loop"]
    assert [row["share of capacity"] for row in rows] == [0.5, 0.5, 0.8, 0.8]
    assert not any(row["failed"] for row in rows)
    assert all(row["first token, ms"]["p99"] >= row["first token, ms"]["p50"] > 0 for row in rows)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, at what PEFT asks of it
def test_the_engine_is_compared_with_what_gives_the_same_tokens(benchmark, models):
    serving = benchmark("serving")
    work = ["--cases", "base", "mixed", "--rows", "2", "--rounds", "1", "--prompt", "6", "--new", "4", "--threads", "1"]
    rows = list(serving["measure"](models, "tiny", serving["parsed"](work)))
    assert [row["case"] for row in rows] == ["tiny base 2", "tiny mixed 2"]
    assert [row[f"equal to {peer}"] for row, peer in zip(rows, ("generate", "peft"), strict=True)] == [1.0, 1.0]


def _answers(**done):
    spent = [{"cpu": 1.0 + n, "wall": 2.0, "peak_mib": 100.0, "imported_mib": 50.0, **done} for n in range(2)]
    facts = {name: {"versions": {}} for name in ("plaudit", "TRL")}
    return lambda *_, **__: (facts, {"plaudit": spent, "TRL": [each | {"cpu": 6.0} for each in spent]})


def test_reports_say_by_how_much_a_peer_needs_more(benchmark, models, tmp_path, monkeypatch):
    ppo, reward = benchmark("ppo"), benchmark("reward")
    sides = sys.modules["sides"]
    monkeypatch.setattr(sides, "in_turns", _answers(completions=4, tokens=20, updates=6))
    row = ppo["measured"](models, 2, ppo["parsed"](["--peer-python", "python"]))
    assert row["TRL / plaudit"]["cpu"] == {"median": 4.5, "min": 3.0, "max": 6.0}
    assert row["work of a round"] == {"completions": 4, "tokens": 20, "updates": 6}
    monkeypatch.setattr(sides, "in_turns", _answers(right=[1, 0, 1]))
    for number in range(3):
        (tmp_path / f"pairs-{number}.json").write_text(json.dumps({"ceiling": 0.8, "longer": 0.5}))
    report = reward["measured"](models, tmp_path, reward["parsed"](["--peer-python", "python", "--rounds", "2"]))
    assert report["accuracy"]["TRL"]["mean"] == 0.667
    assert report["accuracy, plaudit less TRL"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    sides.write(report, tmp_path / "reward.json")
    assert json.loads((tmp_path / "reward.json").read_text())["ceiling"] == 0.8


SIDE = """
import sides
rounds = sides.Rounds()
print("a library's own line")
rounds.wait(versions={})
while True:
    sum(range(10_000))
    rounds.wait(did=1)
"""


def test_sides_take_turns(benchmark, tmp_path, capsys):
    sides = benchmark("sides")
    (tmp_path / "side.py").write_text(f"import sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\n{SIDE}")
    command = [sys.executable, tmp_path / "side.py"]
    facts, found = sides["in_turns"]({"one": command, "other": command}, rounds=2, warm=1, threads=1)
    assert list(facts) == ["one", "other"]
    assert [[each["did"] for each in own] for own in found.values()] == [[1, 1], [1, 1]]
    turns = [json.loads(line)["side"] for line in capsys.readouterr().err.splitlines()]
    assert turns == ["one", "other"] * 3
    row = sides["compared"](found)
    assert row["other / one"]["cpu"]["min"] > 0
    sides["draw"](
        tmp_path / "bars.png", "title", "seconds", {"case": {name: row[name]["cpu seconds"] for name in found}}
    )
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
