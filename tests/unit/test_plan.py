"""How much feedback a first release takes: by the learner's own rules, and the same as its pages say."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import structlog
from plaudit import cli
from plaudit.evidence.splits import Split
from plaudit.learner import needs
from plaudit.learner import plan as module
from plaudit.learner.plan import TABLE, Mix, as_text, plan
from plaudit.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operate.md"


def test_events_and_prompts_follow_from_the_shares_of_the_splits():
    found = plan(Mix(raters=200, rankings=1.0), Settings())
    reach = {need.what: each for need, each in found.needs}
    # Three in five raters and three in four prompts: 200 of 444; a quarter of the prompts: 60 of 240.
    assert reach[needs.EVENTS].half == pytest.approx(444, rel=1e-2 * 8)
    assert reach[needs.GATE_PROMPTS].half == pytest.approx(240, rel=1e-2 * 10)
    # 25 rankings of four by calibration raters are 150 pairs: 125 rankings in all.
    assert reach[needs.COMPARISONS].half == pytest.approx(125, rel=1e-2 * 20)
    assert found.decides == needs.EVENTS
    assert found.whole.half >= reach[needs.EVENTS].half


def test_settings_change_the_plan_because_they_change_the_learner():
    mix = Mix(raters=100, choices=1.0)
    few = Settings.model_validate({"gate": {"reward_comparisons": 10, "min_prompts": 1}, "learn": {"min_events": 20}})
    assert plan(mix, few).whole.half < plan(mix, Settings()).whole.half / 5


def test_what_can_never_be_is_said(monkeypatch):
    monkeypatch.setattr(module, "MOST_ACTS", 800)
    found = plan(Mix(raters=2, choices=1.0), Settings())
    assert found.whole.half is None
    assert "more than 800 pieces of feedback in half of 20 draws" in as_text(found)
    assert {need.what: reach.half for need, reach in found.needs}[needs.RATERS] is None


def test_one_draw_s_counts_are_those_of_its_acts():
    people = module._People(Mix(raters=200, thumbs=0.5, choices=0.5), Settings(), False, random.Random(1))
    have = {need.what: need.have for need in people.needs(300)}
    given = people._acts
    assert len(given) == 300
    assert have[needs.EVENTS] == sum(rater is Split.TRAIN and group is Split.TRAIN for rater, group, _ in given)
    judged = [row for _, row in people._judged]
    assert have[needs.RATERS] <= len({row.who for row in judged})
    pairs = sum(type(row.evidence).__name__ == "Pair" for row in judged)
    assert have.get(needs.COMPARISONS, pairs) == pairs
    assert people.first(None) >= max(people.first(place) for place in range(len(have))) * 0.95


@pytest.mark.parametrize("shares", [{"thumbs": 0.5}, {"thumbs": 1.5, "choices": -0.5}, {}])
def test_shares_that_are_no_whole_are_refused(shares):
    with pytest.raises(ValueError, match="add up to 100%"):
        Mix(raters=5, **shares)


def test_the_page_s_table_is_what_the_command_says():
    lines = PAGE.read_text().partition("<!-- plan -->\n")[2].partition("<!-- /plan -->")[0].splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [str(mix) for mix in TABLE]
    for row in (2, 7):  # the whole table takes a while: python -m plaudit.learner.plan
        assert module.row(TABLE[row], Settings()) == lines[2 + row]


def test_the_command_takes_shares_in_per_cent(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["plaudit", "learn", "plan", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    code, out, _ = run("--raters", "100", "--thumbs", "0%", "--choices", "0", "--rankings", "100%", "--json")
    assert (code, json.loads(out)["mix"]["rankings"]) == (0, 1.0)
    code, out, _ = run("--rankings", "100%", "--json")  # what is left out is 0
    assert (code, json.loads(out)["mix"]["thumbs"]) == (0, 0.0)
    assert "70% or 0.7" in run("--thumbs", "70")[2]
    assert run("--thumbs", "most")[0] == run("--thumbs", "10%")[0] == 2
    structlog.reset_defaults()
