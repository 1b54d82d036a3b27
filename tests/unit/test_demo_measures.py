"""What the demo reads out of log, evidence and registry: losses, doubles, freshness, swaps, and what is replayed."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections import Counter
from pathlib import Path

import pytest
from plaudit import ids
from plaudit.demo import audit, measure, people
from plaudit.demo.audit import LogContents, Reply
from plaudit.demo.processes import DemoFailed, Processes
from plaudit.demo.replay import activations, choose
from plaudit.evidence.store import FrozenDataSet, JoinCounts
from plaudit.release.moves import ChangeRow
from plaudit.types import (
    Action,
    Candidate,
    Channel,
    FinishReason,
    Interaction,
    Message,
    Purpose,
    Sampling,
)

CHANNEL = Channel("instruction", "default")
START = dt.datetime(2026, 11, 1, 10, tzinfo=dt.UTC)


def after(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def reply(begun: float, ended: float, *versions: int, purpose: Purpose = Purpose.SERVE) -> Reply:
    candidates = tuple(
        Candidate(
            candidate_id=f"{begun}-{place}",
            release_version=version,
            release_digest="d",
            tokens=(3, 4, 5),
            logprobs_raw=(-1.0,) * 3,
            logprobs_sampled=(-1.0,) * 3,
            text="t",
            displayed_text="t",
            finish_reason=FinishReason.EOS,
            sampling=Sampling(),
            seed=place,
            width=4,
        )
        for place, version in enumerate(versions)
    )
    interaction = Interaction(
        interaction_id=ids.new_id(),
        channel=CHANNEL,
        purpose=purpose,
        action=Action.COMPLETION,
        messages=(Message("user", "hello"),),
        prompt_group="g",
        candidates=candidates,
        completed_at=after(ended),
    )
    return Reply(interaction, after(begun))


def frozen(*rows) -> FrozenDataSet:
    return FrozenDataSet(channel=CHANNEL, as_of=START, digest="", offsets=(), rows=rows, interactions={})


@dataclasses.dataclass
class Row:
    interaction_id: str
    feedback_id: str
    index: int = 0
    accepted_at: dt.datetime = START


def test_the_time_in_an_id_is_when_the_request_began():
    before = dt.datetime.now(dt.UTC) - dt.timedelta(milliseconds=1)  # which is as exact as an id is
    assert before <= audit.moment_of(ids.new_id()) <= dt.datetime.now(dt.UTC)


def counted(told, acts, acknowledged: int, *rows) -> dict[str, int]:
    contents = LogContents(replies=(), acts=Counter(acts))
    counts = JoinCounts(acknowledged=acknowledged, joined=acknowledged)
    return audit.feedback_counts(told, contents, counts, frozen(*rows))


def test_nothing_is_lost_where_log_and_join_have_every_act():
    acts = [("i1", "f1"), ("i2", "f1")]
    found = counted(acts, acts, 2, Row("i1", "f1"), Row("i1", "f1", 1), Row("i2", "f1"))
    assert (found["acknowledged"], found["joined"], found["lost"], found["doubled"]) == (2, 2, 0, 0)


def test_an_act_missing_from_the_log_or_from_the_join_is_lost():
    acts = [("i1", "f1"), ("i2", "f2")]
    assert counted(acts, acts[:1], 1)["lost"] == 1
    assert counted(acts, acts, 1)["lost"] == 1


def test_an_act_that_the_log_has_twice_is_no_double_and_evidence_that_is_there_twice_is():
    act = [("i1", "f1")]
    assert counted(act, act * 2, 1, Row("i1", "f1"))["doubled"] == 0
    assert counted(act, act, 1, Row("i1", "f1"), Row("i1", "f1"))["doubled"] == 1
    assert counted(act, act, 2, Row("i1", "f1"))["doubled"] == 1


def changes(*lives: tuple[int, float]) -> list[ChangeRow]:
    return [ChangeRow(number, live, after(at), "a", "r", "m") for number, (live, at) in enumerate(lives)]


def test_a_swap_is_seen_at_the_second_it_happened_by_the_requests_that_began_in_each():
    replies = [
        reply(20, 21, 0),
        reply(31, 36, 0),  # in flight during the swap, and the base's
        reply(33.5, 34, 1),
        reply(33.9, 37, 1),
        reply(34.6, 35, 1, purpose=Purpose.EVALUATE),
        reply(90, 91, 1),
    ]
    (found,) = measure.swaps(changes((0, -5), (1, 30)), replies)
    assert (found["version"], found["promoted"]) == (1, -3.5)
    at = {
        second: (found["by_version"]["0"][n], found["by_version"]["1"][n]) for n, second in enumerate(found["seconds"])
    }
    assert (at[-3], at[0], at[1]) == ((1, 0), (0, 2), (0, 0))
    assert sum(map(sum, at.values())) == 3  # 20 and 90 lie outside of the picture


def test_a_release_that_answered_nobody_has_no_swap_to_show():
    assert measure.swaps(changes((0, -5), (1, 30)), [reply(40, 41, 0)]) == []


def test_examples_are_the_ends_and_the_quarters_of_what_changed():
    examples = [
        {"prompt": str(n), "gold_before": 0.0, "gold_after": float(gold)} for n, gold in enumerate([3, -2, 0, 9, 1, 1])
    ]
    assert [each["gold_after"] for each in measure.pick_examples(examples)] == [-2.0, 0.0, 1.0, 3.0, 9.0]
    assert len(measure.pick_examples(examples[:3])) == 3


@dataclasses.dataclass
class Release:
    version: int
    as_of: dt.datetime | None = None


class Registry:
    """The three members of a registry that freshness reads."""

    def __init__(self, *releases: Release) -> None:
        self._releases = releases

    def releases(self, channel):
        return self._releases

    def manifest(self, channel, version):
        return self._releases[version]


def test_freshness_runs_from_acceptance_to_the_first_reply_of_the_first_release_that_has_the_act():
    registry = Registry(Release(0), Release(1, after(100)), Release(2, after(200)), Release(3, after(300)))
    acts = frozen(
        Row("i1", "f1", accepted_at=after(40)),  # release 1 serves at 160: 120 s
        Row("i2", "f1", accepted_at=after(150)),  # release 2 was refused, release 3 serves at 330: 180 s
        Row("i3", "f1", accepted_at=after(400)),  # no release has it
    )
    replies = [
        reply(120, 130, 1, purpose=Purpose.EVALUATE),
        reply(150, 160, 1),
        reply(160, 170, 1),
        reply(320, 330, 3),
    ]
    assert measure.freshness(registry, CHANNEL, acts, replies) == {"p50": 150.0, "max": 180.0}
    assert measure.freshness(registry, CHANNEL, acts, []) == {"p50": None, "max": None}


def test_replies_that_spanned_a_swap_are_replayed_first():
    spanning, near, far = reply(8, 14, 0), reply(11, 12, 1), reply(0, 2, 0)
    swaps = activations([near, spanning, far, reply(1, 5, 2, purpose=Purpose.EVALUATE)])
    assert swaps == [after(11)]
    chosen = choose([far, near, spanning], swaps, 2)
    assert [picked for picked, _ in chosen] == [spanning, near]
    assert len(choose([far, near, spanning], [], 64)) == 3


def test_a_ledger_of_the_simulator_is_read(tmp_path):
    from plaudit.simulate.ledger import AcknowledgedAct, SimulationLedger
    from plaudit.types import FeedbackKind

    written = SimulationLedger()
    written.asked()
    act = AcknowledgedAct(
        feedback_id="f", interaction_id="i", rater="r", kind=FeedbackKind.THUMBS, sent_at=START, acknowledged_at=START
    )
    written.acknowledged_act(act, 1)
    import json

    (tmp_path / "ledger.json").write_text(json.dumps(written.to_json()))
    ledger = people.read_ledger(tmp_path / "ledger.json")
    assert ledger + ledger == people.Ledger(sent=2, failed=0, acknowledged=(("i", "f"), ("i", "f")))


def test_a_process_that_fails_is_an_error_with_the_end_of_its_log(tmp_path):
    with Processes(tmp_path, threads=1) as processes, pytest.raises(DemoFailed, match="did you mean"):
        processes.run("broken", ["settings", "show", "--set", "serve.prot=1"], lambda: None)


def test_a_service_that_ends_is_noticed_and_one_that_was_asked_to_end_is_no_failure(tmp_path):
    with Processes(tmp_path, threads=1) as processes:
        service = processes.start("service", ["settings", "table"])
        service.process.wait(300)
        with pytest.raises(DemoFailed, match="ended with code 0"):
            processes.check()
        processes.end(service)
        processes.check()
    assert processes.commands == ["plaudit settings table"]


def test_another_programs_own_processes_end_with_it(tmp_path):
    """As vLLM's workers, which nobody else would end: its first process is killed before it can."""
    deaf = "trap '' TERM; sleep 600 & echo $!; wait"
    with Processes(tmp_path, threads=1) as processes:
        child = processes.start("other", ["-c", deaf], program=("bash",))
        while not (worker := child.log.read_text().strip()):
            time.sleep(0.01)
        processes.end(child, patience=0.1)
    end = time.monotonic() + 60
    while _runs(int(worker)):
        assert time.monotonic() < end
        time.sleep(0.01)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
