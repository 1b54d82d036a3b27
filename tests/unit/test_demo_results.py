"""What readers see of the demo's figures is what its reports hold: the README's chart, and the tables of results.md."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("demo_results", ROOT / "scripts" / "demo_results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)


def rate(estimate):
    return {"estimate": estimate, "low": estimate - 0.05, "high": estimate + 0.05, "n": 80}


def report(seed=0, quick=False, **more):
    base = {"version": 0, "state": "retired", "live_from": "t", "gold_win_rate": rate(0.5), "kl_nats_per_sequence": 0.0}
    release = {**base, "version": 1, "state": "live", "gold_win_rate": rate(0.7), "kl_nats_per_sequence": 3.2}
    refused = {**base, "version": 2, "state": "rejected", "live_from": None, "gold_win_rate": None}
    return {
        "domain": "instruction",
        "population": "instruction-tiny" if quick else "instruction",
        "headline": "gold_win_rate",
        "quick": quick,
        "seed": seed,
        "seconds": 1300.0,
        "versions": {"plaudit": "0.1.0"},
        "requests": {"sent": 1851, "failed": 0, "altered": 0},
        "feedback": {"acknowledged": 2628, "lost": 0, "doubled": 0},
        "replay": {"replayed": 64, "spanned": 44},
        "freshness_seconds": {"p50": 300.0, "max": 600.0},
        "releases": [{**row, "mean_words": 17.0} for row in (base, release, refused)],
        "baselines": {
            "constant_answer": rate(0.3),
            "filled_in_pattern": {"estimate": 0.998, "low": 0.995, "high": 1.0},
        },
        **more,
    }


@pytest.mark.apart
def test_the_pages_and_the_chart_are_what_the_reports_make_of_them():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "demo_results.py", "--check"], check=False)
    assert done.returncode == 0, "python scripts/demo_results.py writes them again"


def test_a_report_replaces_the_run_of_its_seed_and_the_larger_model_is_shown():
    runs = results.added(results.added(results.added([], report(quick=True)), report(seed=1)), report(seed=0))
    assert [(run["quick"], run["seed"]) for run in runs] == [(False, 0), (False, 1), (True, 0)]
    assert len(results.added(runs, report(seed=1))) == 3
    assert [run["seed"] for run in results.shown(runs)] == [0, 1]


def test_a_domain_of_choices_has_no_win_rates_to_chart():
    with pytest.raises(ValueError, match="domain of texts"):
        results.added([], report(headline="gold"))


def test_the_chart_is_an_svg_with_a_bar_per_release_and_baseline():
    root = ElementTree.fromstring(results.chart(results.added([], report())))
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"release 1", "one constant answer", "one filled-in template", ">99% [>99%, 100%]"} <= set(words)
    assert "release 2" not in words  # it was refused
    several = results.added(results.added([], report()), report(seed=1))
    for node in ElementTree.fromstring(results.chart(several)).iter("{http://www.w3.org/2000/svg}text"):
        if node.get("text-anchor") == "end":
            assert float(node.get("x")) > results.LETTER * len(node.text), "a name is cut off at the left"


def test_what_was_refused_and_what_is_cheap_is_said():
    runs = results.added(results.added([], report()), report(seed=1))
    sentence = results.sentence(runs)
    assert "**Release 1 wins 70% [65%, 75%] of comparisons with the base model**" in sentence
    assert "one constant answer 30% [25%, 35%], one filled-in template >99%" in sentence
    assert "Other seeds, seed 1: release 1 70% [65%, 75%]." in sentence
    assert "Refused by the gate: version 2." in results.tables(runs)
