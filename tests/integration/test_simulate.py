"""The simulator against a real server: what people were told is what the log holds, and gold judges named releases."""

import dataclasses
import json
import sys
import threading

import pytest
from plaudit import cli
from plaudit.demo.audit import Reply
from plaudit.demo.replay import altered_choices
from plaudit.errors import Misconfigured
from plaudit.eventlog import Topic
from plaudit.plugins import load_plugins
from plaudit.simulate import connection
from plaudit.simulate.asking import ask_of, plugin_of
from plaudit.simulate.evaluate import evaluate, judge_picks
from plaudit.simulate.evaluate_choices import Ordered, worth
from plaudit.simulate.panel import EvaluateSettings
from plaudit.simulate.population import load_population
from plaudit.simulate.run import SimulateSettings, simulate
from plaudit.testing.serving import local_server
from plaudit.types import Channel, Feedback, Interaction, Purpose

POPULATION = "instruction-tiny"


@pytest.fixture
def served(tmp_path, tiny_engine):
    with local_server(tmp_path / "data", tiny_engine, load_plugins(("instruction",))) as server:
        yield server


def test_every_acknowledged_act_is_in_the_log_once(served):
    seen = []
    ledger = simulate(
        SimulateSettings(target=served.target, population=POPULATION, events=40, concurrency=6, seed=3),
        progress=lambda ledger: seen.append(len(ledger.replies)),
    )
    counts = ledger.counts()
    assert counts["acknowledged"] == counts["acts"] == 40
    assert (counts["requests_failed"], counts["acts_failed"]) == (0, 0)
    assert len(seen) == counts["replies"] == counts["requests"]
    logged = [record for record in served.records(Topic.FEEDBACK) if isinstance(record, Feedback)]
    stored = {feedback_id: sum(one.feedback_id == feedback_id for one in logged) for feedback_id in ledger.feedback_ids}
    assert ledger.audit(stored) == {"lost": 0, "doubled": 0}
    # The service knows pseudonyms only.
    assert not {one.rater for one in logged} & {act.rater for act in ledger.acknowledged}


def test_a_reply_in_the_ledger_has_what_is_needed_to_make_it_again(served):
    ledger = simulate(SimulateSettings(target=served.target, population=POPULATION, events=8, concurrency=2))
    interactions = {one.interaction_id: one for one in served.records(Topic.INTERACTIONS)}
    for reply in ledger.replies:
        logged = interactions[reply.interaction_id]
        assert isinstance(logged, Interaction)
        assert reply.messages == logged.messages
        for kept, candidate in zip(reply.candidates, logged.candidates, strict=True):
            assert (kept.candidate_id, kept.token_ids, kept.seed) == (
                candidate.candidate_id,
                candidate.tokens,
                candidate.seed,
            )
            assert (kept.release_version, kept.release_digest) == (candidate.release_version, candidate.release_digest)
            assert candidate.sampling.max_tokens == reply.max_tokens


@pytest.fixture
def served_choices(tmp_path, tiny_engine):
    with local_server(tmp_path / "data", tiny_engine, load_plugins(("echo-choice", "moderation"))) as server:
        yield server


def test_people_choose_among_options_and_a_share_of_orders_is_drawn(served_choices):
    settings = SimulateSettings(
        target=served_choices.target, population="echo-choice", events=40, concurrency=4, explore_share=0.5
    )
    ledger = simulate(settings)
    assert ledger.counts()["acknowledged"] == ledger.counts()["acts"] > 30
    assert set(ledger.counts()["kinds"]) == {"choice", "signal"}
    interactions = {one.interaction_id: one for one in served_choices.records(Topic.INTERACTIONS)}
    purposes = {one.purpose for one in interactions.values()}
    assert purposes == {Purpose.SERVE, Purpose.EXPLORE}
    for reply in ledger.replies:
        logged = interactions[reply.interaction_id]
        kept = [(one.candidate_id, one.text, one.option_id, one.probability) for one in reply.candidates]
        assert kept == [
            (one.candidate_id, one.displayed_text, one.option_id, one.probability) for one in logged.candidates
        ]
        (decided,) = (one.option_id for one in reply.candidates if one.candidate_id == reply.decision)
        assert decided == logged.decision
        assert reply.purpose is Purpose.EXPLORE or {one.propensity for one in logged.candidates} == {1.0}
    assert any(one.propensity < 1 for logged in interactions.values() for one in logged.candidates)


def test_options_that_are_scored_again_have_their_scores_and_a_changed_one_is_found(served_choices, tiny_engine):
    simulate(SimulateSettings(target=served_choices.target, population="echo-choice", events=9, concurrency=3))
    interactions = [one for one in served_choices.records(Topic.INTERACTIONS) if isinstance(one, Interaction)]
    pairs = [(Reply(one, one.completed_at), candidate) for one in interactions for candidate in one.candidates]
    channel = Channel("echo-choice", "default")
    assert len(pairs) >= 8
    assert altered_choices(tiny_engine, channel, pairs) == []
    first = interactions[0].candidates[0]
    changed = dataclasses.replace(
        first, logprobs_sampled=(first.logprobs_sampled[0] + 1e-3, *first.logprobs_sampled[1:])
    )
    other = dataclasses.replace(interactions[0], candidates=(changed, *interactions[0].candidates[1:]))
    pairs = [(Reply(other, other.completed_at), candidate) for candidate in other.candidates]
    assert altered_choices(tiny_engine, channel, pairs) == [first.candidate_id]


def test_people_label_verdicts_of_a_domain_that_makes_its_options(served_choices):
    ledger = simulate(SimulateSettings(target=served_choices.target, population="moderation", events=12, concurrency=3))
    assert ledger.counts()["kinds"] == {"label": 12}
    assert {one.text for one in ledger.replies[0].candidates} == load_plugins(("moderation",))[
        "moderation"
    ].declaration.labels


def test_gold_judges_decisions_beside_options_that_cost_no_training(served_choices):
    settings = EvaluateSettings(
        target=served_choices.target, releases=(0,), population="moderation", prompts=20, concurrency=4
    )
    found = evaluate(settings)
    written = found.to_json()
    # Scores are exact: the base asked again decides the same.
    again = written["releases"]["0"]
    assert again["gold_gain"] == {"estimate": 0.0, "low": 0.0, "high": 0.0, "n": 20}
    assert again["gold_win_rate"]["estimate"] == 0.5
    assert again["gold_seen"]["n"] == again["gold_unseen"]["n"] == 10
    baselines = written["baselines"]
    assert set(baselines) == {
        *("random_option", "first_listed", "shortest_option", "longest_option"),
        *("best_constant", "commonest_label", "better_prompt"),
    }
    people = load_population("moderation")
    allowed = sum(people.truth(prompt) == "allowed" for prompt in found.prompts) / 20
    assert baselines["first_listed"]["accuracy"]["estimate"] == pytest.approx(allowed)
    assert baselines["random_option"]["accuracy"]["estimate"] == pytest.approx(1 / 5)
    for judged in baselines.values():
        # The population's gold is 1 less the cost of the decision.
        assert judged["gold"]["estimate"] == pytest.approx(1 - judged["cost"]["estimate"])
    # What picks the last option of each prompt is the constant answer "severe".
    answers = json.loads(json.dumps(found.answers_to_json()))
    picked = judge_picks("moderation", answers, [[4, 3, 2, 1, 0]] * 20)
    assert picked.commonest_text == "severe"
    assert picked.commonest == 1.0
    assert picked.gain.all.estimate == pytest.approx(picked.gold.all.estimate - again["gold"]["estimate"])
    with pytest.raises(Misconfigured, match="19 picks for 20"):
        judge_picks("moderation", answers, [[0]] * 19)
    assert {one.purpose for one in served_choices.records(Topic.INTERACTIONS)} == {Purpose.EVALUATE}


def test_a_slate_is_worth_its_places_by_their_weights():
    golds, order = (1.0, 0.0, 4.0), Ordered(places=(2, 0, 1), decided=0)
    assert worth(golds, order, (1.0,)) == 1.0  # of a verdict, what was decided
    assert worth(golds, order, (1.0, 0.5)) == pytest.approx((4.0 + 0.5 * 1.0) / 1.5)
    assert worth(golds, order, (1.0, 0.5, 0.5, 0.5)) == pytest.approx((4.0 + 0.5 * 1.0 + 0.5 * 0.0) / 2.0)


def test_the_simulator_asks_on_until_it_is_stopped(served):
    stop = threading.Event()

    def progress(ledger):
        if len(ledger.replies) >= 5:
            stop.set()

    ledger = simulate(
        SimulateSettings(target=served.target, population=POPULATION, events=None, concurrency=3, rate=False),
        progress=progress,
        stop=stop,
    )
    assert 5 <= len(ledger.replies) < 20
    assert ledger.counts()["acts"] == 0


def test_a_service_that_is_not_there_is_a_failure_in_the_ledger():
    ledger = simulate(
        SimulateSettings(
            target="127.0.0.1:1",
            population=POPULATION,
            events=3,
            concurrency=1,
            patience_seconds=0.0,
            deadline_seconds=2,
        )
    )
    assert ledger.counts()["replies"] == 0
    assert ledger.counts()["requests_failed"] == ledger.counts()["requests"] > 0


def test_people_who_compare_with_the_base_of_a_service_that_is_gone_are_failures_in_the_ledger():
    settings = SimulateSettings(
        target="127.0.0.1:1", population=POPULATION, events=6, concurrency=1, base_share=1.0, patience_seconds=0.2
    )
    counts = simulate(settings).counts()
    assert counts["requests_failed"] == counts["requests"] > 0


def test_an_evaluation_that_is_not_answered_is_a_message(served_choices, monkeypatch, capsys):
    patiently = connection.Connection.__init__
    monkeypatch.setattr(
        connection.Connection,
        "__init__",
        lambda self, *arguments, **settings: patiently(self, *arguments, **settings | {"patience_seconds": 0.2}),
    )
    for target, releases, words in (
        (served_choices.target, "9", "echo-choice/default has no release 9"),
        ("127.0.0.1:1", "", "127.0.0.1:1 did not answer"),
    ):
        words_of = ["plaudit", "evaluate", "--population", "echo-choice", "--target", target, "--releases", releases]
        monkeypatch.setattr(sys, "argv", words_of)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        assert words in capsys.readouterr().err


def test_people_without_questions_raters_or_kinds_are_refused(served_choices, monkeypatch):
    people = load_population("echo-choice")
    for member, nothing in (("channel_prompts", lambda _: ()), ("raters", lambda *_: ()), ("mix", {})):
        monkeypatch.setattr(type(people), member, nothing)
        with pytest.raises(Misconfigured, match=r"'echo-choice' has no "):
            simulate(SimulateSettings(target=served_choices.target, population="echo-choice", events=3))
        monkeypatch.undo()
    monkeypatch.setattr(type(people), "evaluation_prompts", lambda _: ())
    with pytest.raises(Misconfigured, match="no evaluation prompts"):
        evaluate(EvaluateSettings(target=served_choices.target, population="echo-choice", releases=()))


def test_gold_judges_the_base_against_itself_as_even(served, monkeypatch):
    monkeypatch.setattr("plaudit.simulate.evaluate_completions.SCREENED_ON", 8)
    found = evaluate(
        EvaluateSettings(
            target=served.target, releases=(0,), population=POPULATION, samples=2, prompts=12, concurrency=8
        )
    )
    assert set(found.releases) == {0}
    rate = found.releases[0].win_rate
    assert rate.all.low <= 0.5 <= rate.all.high
    assert found.releases[0].gain.all.low <= 0 <= found.releases[0].gain.all.high
    assert rate.seen.n == rate.unseen.n == 6
    assert set(found.baselines) == {
        *("constant_answer", "filled_in_pattern", "better_prompt", "longest_of_samples", "shortest_of_samples")
    }
    # The length baselines give one answer per prompt, so one of the base's stands beside it.
    assert found.releases[0].variety.texts == 2 * 12
    assert found.to_json()["baselines"]["shortest_of_samples"]["variety_texts"] == 12
    assert all(len(group) == 2 for group in found.base_answers)
    logged = served.records(Topic.INTERACTIONS)
    # Nothing that an evaluation asks may be joined or replayed.
    assert {one.purpose for one in logged} == {Purpose.EVALUATE}
    example = found.to_json()["examples"][0]
    assert example["prompt"] == found.prompts[0].text
    assert {"gold_before", "gold_after"} <= set(example)


def test_people_who_are_told_to_end_do_not_wait_for_a_service_that_is_gone(monkeypatch):
    monkeypatch.setattr(connection, "END_SECONDS", 0.3)
    stop = threading.Event()
    people = connection.Connection(
        "127.0.0.1:1", ask_of(plugin_of("instruction")), deadline_seconds=2, patience_seconds=1e6, stop=stop
    )
    threading.Timer(0.3, stop.set).start()
    # Without the stop this would go on for eleven days.
    with pytest.raises(connection.Refused):
        people.live_version(Channel("instruction", "default"))
    people.close()
