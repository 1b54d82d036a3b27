"""The demo's report: its keys, its words about refusals and limits, and pictures that are pictures."""

from __future__ import annotations

import json
import struct

import pytest
from plaudit.demo.report import KEYS, Report


def rate(estimate: float) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - 0.05, "high": estimate + 0.05, "n": 200}


def release(version: int, **more) -> dict:
    row = {
        "version": version,
        "state": "live",
        "live_from": f"2026-11-01T10:0{version}:00+00:00",
        "live_until": None,
        "gold_win_rate": rate(0.7 + version / 100) if version else None,
        "kl_nats_per_sequence": 9.0 + version if version else 0.0,
        "mean_tokens": 24.0,
        "gate": {"accepted": True, "checks": [check("win_base", True, 0.61)]} if version else None,
        "distinct_2": 0.69 - version / 20,
        "distinct_2_base": 0.68,
        "distinct_masked": 0.9 - version / 10,
        "distinct_masked_base": 0.9,
        "commonest_opening": 0.02 + version / 10,
        "commonest_opening_base": 0.02,
        "score_win_rate": rate(0.75) if version else None,
    }
    return {**row, **more}


def check(name: str, passed: bool, value: float) -> dict:
    return {"name": name, "passed": passed, "value": value, "threshold": 0.5, "low": None, "high": None, "note": ""}


def data(**more) -> dict:
    made = {
        "requests": {"sent": 900, "failed": 0, "altered": 0},
        "feedback": {"acknowledged": 2580, "joined": 2570, "rejected": 10, "lost": 0, "doubled": 0},
        "releases": [release(0), release(1), release(2)],
        "baselines": {"better_prompt": rate(0.69), "best_of_4": rate(0.645), "constant_answer": rate(0.88)},
        "freshness_seconds": {"p50": 300.0, "max": 600.0},
        "seconds": 780.0,
        "seed": 0,
        "versions": {"plaudit": "0.1.0", "python": "3.11.7"},
        "swaps": [
            {
                "version": 1,
                "promoted": -2.5,
                "seconds": [-2, -1, 0, 1],
                "by_version": {"0": [5, 3, 0, 0], "1": [0, 0, 6, 2]},
            }
        ],
        "examples": [
            {"prompt": f"Prompt {n} | pipe", "before": "A\nb", "after": "C", "gold_before": 1.0, "gold_after": n / 2}
            for n in range(5)
        ],
        "replay": {"replayed": 64, "spanned": 40},
        "commands": ["plaudit serve --config out/plaudit.toml"],
        "domain": "instruction",
        "headline": "gold_win_rate",
    }
    made.update(more)
    made.setdefault("baseline_figures", {name: {made["headline"]: rate} for name, rate in made["baselines"].items()})
    return made


def test_a_report_has_all_its_keys_and_real_pictures(tmp_path):
    paths = Report(data()).write(tmp_path)

    assert set(KEYS) <= set(json.loads((tmp_path / "report.json").read_text()))
    pictures = [path for path in paths if path.suffix == ".png"]
    assert [path.name for path in pictures] == ["by-release.png", "by-iteration.png", "swaps.png"]
    for picture in pictures:
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", content[16:24])[0] == 960  # 8 inches at 120 dots
        assert f"({picture.name})" in (tmp_path / "report.md").read_text()


def test_a_report_without_a_key_is_refused():
    incomplete = data()
    del incomplete["freshness_seconds"]
    with pytest.raises(ValueError, match="freshness_seconds"):
        Report(incomplete)


def test_the_page_names_the_limits():
    page = Report(data()).markdown()
    assert "Diversity fell" in page
    assert "the base has 0.90 on equal terms" in page
    assert "| 0.59 (0.68) | 0.70 (0.90) |" in page
    assert "One constant answer** wins 0.880" in page
    assert "The best baseline does as well or better**: one constant answer reaches 0.880" in page
    assert "0.720 [0.670, 0.770]" in page


@pytest.mark.parametrize(
    ("estimate", "words"),
    [(0.9, "does as well or better"), (0.65, "comes close"), (0.25, "does not come close here")],
)
def test_what_a_system_prompt_reaches_is_said_as_it_is(estimate, words):
    assert f"A system prompt {words}" in Report(data(baselines={"better_prompt": rate(estimate)})).markdown()


def test_the_page_opens_with_one_claim_and_one_chart(tmp_path):
    report = Report(data())
    report.write(tmp_path)
    title, claim, chart, *_ = (tmp_path / "report.md").read_text().split("\n\n")
    assert title == "# Plaudit demo: instruction"
    assert claim.startswith("**Release 2 wins 72% of comparisons with the base model** (95% interval 67% to 77%;")
    assert chart.endswith("(by-release.png)")
    assert report.summary().startswith("Release 2 wins 72%")


def test_examples_say_how_they_were_picked_and_cannot_break_the_table():
    page = Report(data()).markdown()
    assert "Picked by rule" in page
    assert "| Prompt 3 \\| pipe | A b | C | +0.50 |" in page


def test_a_run_in_which_the_gate_refused_everything_says_so_and_shows_the_checks(tmp_path):
    refused = release(
        1,
        state="rejected",
        live_from=None,
        gold_win_rate=None,
        score_win_rate=None,
        gate={"accepted": False, "checks": [check("kl_base", False, 21.5)]},
    )

    paths = Report(data(releases=[release(0), refused], baselines={}, freshness_seconds={})).write(tmp_path)

    page = (tmp_path / "report.md").read_text()
    assert "**The gate refused every candidate: the base model went on serving.**" in page
    assert "| kl_base | **failed** | 21.5 | 0.5 |" in page
    assert [path.name for path in paths if path.suffix == ".png"] == ["swaps.png"]


def test_nothing_unknown_is_written_as_zero():
    page = Report(data(requests={"sent": 900, "failed": 0, "altered": None})).markdown()
    assert "unknown how many changed because of a swap" in page


def test_the_filled_in_pattern_and_the_advantages_are_told():
    baselines = {"filled_in_pattern": rate(0.975)}
    page = Report(data(baselines=baselines, filled_in_pattern="Enjoy your {t} | now!", advantages="rloo")).markdown()
    assert "One filled-in template** wins 0.975" in page
    assert "`Enjoy your {t} \\| now!`" in page
    assert "leave-one-out (RLOO)" in page


def decided(version: int, gold: float, **more) -> dict:
    figures = {
        "gold": rate(gold),
        "gold_gain": rate(gold + 1.0),
        "gold_win_rate": rate(0.5),
        "accuracy": rate(0.3 + version / 10),
        "commonest_decision": 0.4,
        "commonest_decision_text": "allowed | mild",
        "distinct_2": None,
        "distinct_2_base": None,
        "distinct_masked": None,
        "distinct_masked_base": None,
        "commonest_opening": None,
    }
    return release(version, **{**figures, **more})


def test_decisions_are_told_by_their_worth_and_columns_that_say_nothing_are_left_out(tmp_path):
    releases = [decided(0, -1.0, gold_gain=rate(0.0)), decided(1, 0.5, gate=None)]
    baselines = {"random_option": rate(-0.8), "best_constant": rate(0.4)}
    report = Report(data(domain="verdicts", headline="gold", releases=releases, baselines=baselines))
    page = report.markdown()
    assert "# Plaudit demo: verdicts" in page
    assert "**Release 1 is worth 0.50 per request, the base model -1.00** (a gain of +1.50, 95%" in page
    assert "| 1 | live | 10:01:00 | 0.500 [0.450, 0.550] | 1.500 [1.450, 1.550] | 0.400 [0.350, 0.450] |" in page
    assert "mean cost" not in page
    assert "0.40 allowed \\| mild |" in page
    assert "| random option | -0.800 [-0.850, -0.750] |" in page
    assert "The best baseline comes close**: best constant order reaches 0.400" in page
    assert "Diversity" not in page
    assert "Advantages" not in Report({**report.data, "advantages": "gae"}).markdown()
    assert "by-release.png" in {path.name for path in report.write(tmp_path)}


def judged_turn(fall, most_reward=6):
    states = [
        {"iteration": n, "reward": n / 10, "kl_base_nats_per_sequence": n / 2, "gold_win_rate": rate(0.5 + won)}
        for n, won in ((0, 0.0), (3, 0.2), (6, 0.1))
    ]
    found = {"as_of": "2026-11-01T10:00:00+00:00", "live": 0, "chosen": 3, "progressed": True, "prompts": 24}
    return {**found, "states": states, "most_reward": most_reward, "most_gold": 3, "fall": fall}


@pytest.mark.parametrize(
    ("fall", "most", "words"),
    [
        ({"estimate": 0.1, "low": 0.04, "high": 0.2, "n": 24}, 6, "more reward was less preferred"),
        ({"estimate": 0.1, "low": -0.04, "high": 0.2, "n": 24}, 6, "which may be chance"),
        (None, 3, "is also the one that wins most often"),
    ],
)
def test_whether_a_turn_was_optimised_too_far_is_said_by_its_figures(tmp_path, fall, most, words):
    page = next(p for p in Report(data(turns=[judged_turn(fall, most)])).write(tmp_path) if p.suffix == ".md")
    said = page.read_text()
    assert "Turn 1 proposed its state after 3 iterations: 1.5 nats from the base, reward 0.30" in said
    assert words in said
    assert json.loads((tmp_path / "report.json").read_text())["turns"][0]["states"][2]["reward"] == 0.6
    height = struct.unpack(">II", (tmp_path / "by-iteration.png").read_bytes()[16:24])[1]
    assert height == 1044  # three panels: reward, the preference on the same answers, and what the gate believed
