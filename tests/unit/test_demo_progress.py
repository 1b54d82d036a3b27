"""The demo's terminal view: stages, an estimate of the rest, and one state at a time."""

from __future__ import annotations

import io

import pytest
from plaudit.demo import plan
from plaudit.demo.progress import Progress, spoken
from rich.console import Console

STAGES = [("prepare", 10.0), ("learn", 100.0), ("judge", 40.0)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def progress_at(clock: Clock) -> tuple[Progress, Console]:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    progress = Progress(console, clock)
    progress.plan(STAGES)
    return progress, console


def shown(progress: Progress, console: Console) -> str:
    console.print(progress.panel())
    return console.file.getvalue()


def test_the_estimate_follows_the_machine_and_the_part_that_is_done():
    clock = Clock()
    progress, _ = progress_at(clock)
    assert progress.left() == pytest.approx(0.0)  # no stage yet
    progress.stage("prepare")
    assert progress.left() == pytest.approx(150.0)
    clock.now = 20.0  # twice as long as expected
    progress.stage("learn")
    # 140 s to come at a pace of (20 + 20) / (20 + 10): what was seen is short, so that it weighs little.
    assert progress.left() == pytest.approx(140 * 40 / 30)
    clock.now = 120.0
    progress.at(0.5, "half")
    progress.at(0.3, "a part never goes back")
    assert progress.left() == pytest.approx((50 + 40) * (40 + 100) / (30 + 50))


def test_a_stage_that_tells_nothing_of_itself_is_measured_by_its_time():
    clock = Clock()
    progress, _ = progress_at(clock)
    progress.stage("judge")
    clock.now = 10.0
    assert progress.part() == pytest.approx(0.25)
    clock.now = 400.0
    assert progress.part() == 0.95
    assert progress.left() == pytest.approx(2.0)


def test_the_panel_shows_what_is_done_what_goes_on_and_what_is_to_come():
    clock = Clock()
    progress, console = progress_at(clock)
    progress.stage("prepare")
    clock.now = 12.0
    progress.stage("learn")
    progress.at(0.4, "step 3 of 7: train the policy")
    progress.facts(feedback="2,580", answering="release 1", replies="")
    page = shown(progress, console)
    assert "✓  prepare" in page
    assert "▸  learn" in page
    assert "step 3 of 7: train the policy" in page
    assert "about " in page
    assert "feedback: 2,580   answering: release 1" in page
    assert "replies" not in page


def test_without_a_terminal_each_stage_is_a_line_with_its_estimate():
    clock = Clock()
    console = Console(file=io.StringIO(), width=100)
    with Progress(console, clock) as progress:
        progress.plan(STAGES)
        progress.stage("prepare")
        clock.now = 10.0
    assert console.file.getvalue() == "[     0 s, about 2 min left] prepare\n"
    assert progress.stage_seconds == {"prepare": 10.0}


def test_without_a_terminal_a_long_stage_says_each_minute_how_far_it_is():
    clock = Clock()
    console = Console(file=io.StringIO(), width=40)
    with Progress(console, clock) as progress:
        progress.stage("learn")
        for clock.now in (30.0, 59.0, 61.0, 90.0, 130.0):
            progress.at(clock.now / 200, "step 3 of 7: train the policy")
            progress.facts(feedback=200)
    assert console.file.getvalue().splitlines() == [
        "[     0 s] learn",
        "[    61 s] learn, 30% done: step 3 of 7: train the policy",
        "[   130 s] learn, 65% done: step 3 of 7: train the policy",
    ]


@pytest.mark.parametrize(
    ("learner", "part", "words"),
    [
        ({"name": "reward", "detail": ""}, 0.07, "step 2 of 7: fit the reward model"),
        (
            {"name": "policy", "detail": "iteration 5/10: reward 0.596, KL 3.9 nats"},
            0.525,
            "step 3 of 7: train the policy: iteration 5/10: reward 0.596, KL 3.9 nats",
        ),
        ({"name": "", "detail": "promoted: the gate accepted it"}, 0.0, "promoted: the gate accepted it"),
    ],
)
def test_a_turn_is_told_by_its_steps_and_iterations(learner, part, words):
    assert plan.turn_part(learner) == (pytest.approx(part), words)


def test_every_stage_of_both_sizes_has_an_estimate():
    for scale in plan.SCALES.values():
        assert all(seconds > 0 for _, seconds in plan.stages(scale))


def test_times_are_said_as_people_say_them():
    assert (spoken(8.4), spoken(119.0), spoken(190.0)) == ("8 s", "119 s", "3 min")
