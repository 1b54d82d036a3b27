"""Simulated people: what they ask, how they act, and that training code cannot reach what they like."""

import dataclasses
import datetime as dt
import itertools
import random
import subprocess
import sys
from collections import Counter

import pytest
from plaudit.errors import Misconfigured
from plaudit.simulate import crowd
from plaudit.simulate.asking import Answer, AnsweredCandidate
from plaudit.simulate.evaluate_completions import best_constant
from plaudit.simulate.ledger import AcknowledgedAct, SimulationLedger
from plaudit.simulate.panel import EvaluateSettings, Panel, chosen
from plaudit.simulate.plan import SHOWN_FOR, visits
from plaudit.simulate.population import (
    Rater,
    Shown,
    SimPrompt,
    described,
    installed_populations,
    load_population,
)
from plaudit.simulate.templates import best_pattern, fill, pattern_of
from plaudit.testing import toy_language
from plaudit.types import KIND_OF_ACT, Choice, Correction, FeedbackKind, Message, Ranking, Request, Thumbs
from plaudit_instruction import gold
from plaudit_instruction.plugin import Instruction, edit_distance
from plaudit_instruction.population import HouseTaste, TinyTaste

POPULATIONS = (HouseTaste(), TinyTaste())
SHOWN = [
    Shown("c0", "Warm your pot first. Add two spoons of tea. Enjoy!"),
    Shown("c1", "When it comes to tea, it's essential to embrace a truly remarkable journey, and it can be complex."),
    Shown("c2", "Tea is made of leaves and water."),
    Shown("c3", "As an AI, I cannot drink, but I'm happy to assist you with numerous things"),
]
HOUSE = POPULATIONS[0]
TEA = SimPrompt(text="How do I make tea?", kind="how_do", check="imperative", topic=("make", "tea"))


def group(text):
    return Instruction().render(Request(messages=(Message("user", text),))).group


@pytest.mark.parametrize("population", POPULATIONS, ids=lambda one: type(one).__name__)
def test_evaluation_prompts_are_never_asked_in_the_channel(population):
    channel, evaluation = population.channel_prompts(), population.evaluation_prompts()
    groups = [group(prompt.text) for prompt in (*channel, *evaluation)]
    assert len(set(groups)) == len(groups)
    kinds = {prompt.kind for prompt in channel}
    assert all((prompt.kind in kinds) == prompt.seen_kind for prompt in evaluation)
    unseen = [prompt for prompt in evaluation if not prompt.seen_kind]
    assert 0.4 < len(unseen) / len(evaluation) < 0.6


def test_there_are_enough_prompts_of_enough_kinds():
    channel, evaluation = HOUSE.channel_prompts(), HOUSE.evaluation_prompts()
    assert len(channel) >= 540
    assert len({prompt.kind for prompt in channel}) >= 30
    assert len(evaluation) >= 160
    assert len({prompt.kind for prompt in evaluation if not prompt.seen_kind}) >= 8
    assert all(len(prompt.text.split()) <= 20 and "{" not in prompt.text for prompt in (*channel, *evaluation))


def test_every_prompt_has_a_topic_and_a_check_that_gold_knows():
    for prompt in (*HOUSE.channel_prompts(), *HOUSE.evaluation_prompts()):
        assert prompt.topic, prompt
        assert prompt.check.partition(":")[0] in gold.CHECKS, prompt


def test_the_toy_language_is_small_seeded_and_has_every_kind():
    dialogues = toy_language.corpus(3, 4000)
    assert dialogues == toy_language.corpus(3, 4000)
    assert dialogues != toy_language.corpus(4, 4000)
    words = {word.strip(".!?") for pair in dialogues for text in pair for word in text.split()}
    assert 100 <= len(words) <= 160
    asked = {text for text, _ in dialogues}
    assert asked > {prompt.text for prompt in toy_language.evaluation_prompts()}


def test_raters_differ_and_are_fixed_by_their_seed():
    people = HOUSE.raters(1)
    assert len(people) == 60
    assert people == HOUSE.raters(1) != HOUSE.raters(2)
    assert len({rater.name for rater in people}) == 60
    assert min(rater.temperature for rater in people) > 0.1


def test_visits_ask_every_prompt_before_any_twice():
    prompts = HOUSE.channel_prompts()
    plan = list(visits(prompts, HOUSE.raters(0), HOUSE.mix, seed=0, events=1780))
    first = [visit.prompt.text for visit in plan[: len(prompts)]]
    assert len(plan) <= len(prompts)
    assert len(set(first)) == len(first)
    again = list(visits(prompts[:5], HOUSE.raters(0), HOUSE.mix, seed=0, events=100))
    assert len({visit.prompt.text for visit in again[5:10]}) == 5


def test_visits_keep_the_mix_the_number_of_events_and_enough_candidates():
    plan = list(visits(HOUSE.channel_prompts(), HOUSE.raters(0), HOUSE.mix, seed=0, events=4000, base_share=0.25))
    kinds = Counter(kind for visit in plan for _, kind in visit.acts)
    assert kinds.total() == 4000
    for kind, share in HOUSE.mix.items():
        # Four standard errors of a share of 4,000.
        assert abs(kinds[kind] / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert all(visit.n >= SHOWN_FOR.get(kind, 1) for visit in plan for _, kind in visit.acts)
    assert all(len({rater.name for rater, _ in visit.acts}) == len(visit.acts) for visit in plan)
    several = [visit for visit in plan if visit.n > 1]
    assert 0.2 < sum(visit.with_base for visit in several) / len(several) < 0.3
    assert not any(visit.with_base for visit in plan if visit.n == 1)


def test_visits_without_end_go_on():
    endless = visits(HOUSE.channel_prompts()[:3], HOUSE.raters(0), HOUSE.mix, seed=0, events=None)
    assert len(list(itertools.islice(endless, 50))) == 50


@pytest.mark.parametrize("kind", HOUSE.mix)
def test_acts_are_of_the_kind_that_was_asked_for(kind):
    act = HOUSE.act(HOUSE.raters(0)[0], TEA, SHOWN, kind, random.Random(0))
    assert KIND_OF_ACT[type(act.act)] is kind
    assert set(act.reasons) <= Instruction().declaration.reasons


def test_acts_are_fixed_by_the_generator():
    rater = HOUSE.raters(0)[0]
    for kind in HOUSE.mix:
        acts = [HOUSE.act(rater, TEA, SHOWN, kind, random.Random(7)) for _ in range(2)]
        assert acts[0] == acts[1]


def test_too_little_to_see_gives_no_act():
    rater = HOUSE.raters(0)[0]
    for kind in (FeedbackKind.CHOICE, FeedbackKind.RANKING):
        assert HOUSE.act(rater, TEA, SHOWN[:1], kind, random.Random(0)) is None


def test_people_prefer_what_gold_prefers_more_often_than_not():
    better, worse = sorted(SHOWN[:2], key=lambda one: -HOUSE.gold(TEA, one.text))
    acts = [
        HOUSE.act(rater, TEA, [worse, better], FeedbackKind.CHOICE, random.Random(number)).act
        for number, rater in enumerate(HOUSE.raters(0))
    ]
    decided = [act for act in acts if not act.tie]
    assert sum(act.chosen_id == better.candidate_id for act in decided) / len(decided) > 0.75


def test_a_choice_between_equal_texts_is_a_tie():
    twice = [Shown("a", "Same."), Shown("b", "Same.")]
    act = crowd.choice(Rater(name="r"), twice, [1.0, 1.0], random.Random(0))
    assert (act.tie, act.tie_offered) == (True, True)


def test_noise_follows_bradley_terry():
    rater, rng = Rater(name="r", temperature=1.0), random.Random(0)
    pair = [Shown("a", "A."), Shown("b", "B.")]
    acts = [crowd.choice(rater, pair, [1.0, 0.0], rng) for _ in range(20_000)]
    # P(d > .25) = 1 / (1 + e^-.75) = .679; P(d < -.25) = 1 / (1 + e^1.25) = .223; the rest are ties.
    assert sum(act.chosen_id == "a" and not act.tie for act in acts) / 20_000 == pytest.approx(0.679, abs=0.015)
    assert sum(act.chosen_id == "b" and not act.tie for act in acts) / 20_000 == pytest.approx(0.223, abs=0.015)


def test_a_ranking_names_all_and_a_rating_stays_on_its_scale():
    rater, rng = HOUSE.raters(0)[0], random.Random(0)
    act = HOUSE.act(rater, TEA, SHOWN, FeedbackKind.RANKING, rng).act
    assert isinstance(act, Ranking)
    assert sorted(act.candidate_ids) == ["c0", "c1", "c2", "c3"]
    stars = {crowd.rating(rater, SHOWN[0], liking, rng).value for liking in (-50.0, 0.0, 1.0, 2.0, 50.0)}
    assert stars <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert {1.0, 5.0} <= stars


def test_corrections_are_small_edits_that_the_rater_likes_better():
    for number, rater in enumerate(HOUSE.raters(0)[:20]):
        found = HOUSE.act(rater, TEA, SHOWN, FeedbackKind.CORRECTION, random.Random(number))
        assert found is not None
        assert isinstance(found.act, Correction)
        (before,) = (one.text for one in SHOWN if one.candidate_id == found.act.candidate_id)
        after = found.act.text
        assert 0 < edit_distance(before.split(), after.split()) < 0.8
        worth = [HOUSE.value(HOUSE.parts(TEA, text), rater.weights) for text in (before, after)]
        assert worth[1] > worth[0]


def test_thumbs_go_up_for_what_is_liked():
    ups = {
        one.candidate_id: sum(
            HOUSE.act(rater, TEA, [one], FeedbackKind.THUMBS, random.Random(number)).act.up
            for number, rater in enumerate(HOUSE.raters(0))
        )
        for one in (SHOWN[0], SHOWN[3])
    }
    assert ups["c0"] > ups["c3"] + 10
    assert isinstance(HOUSE.act(HOUSE.raters(0)[0], TEA, SHOWN, FeedbackKind.THUMBS, random.Random(0)).act, Thumbs)
    assert Choice not in {type(HOUSE.act(HOUSE.raters(0)[0], TEA, SHOWN, FeedbackKind.THUMBS, random.Random(0)).act)}


def test_labels_follow_the_confusion_of_their_rater():
    table = crowd.confusion(("low", "middle", "high"), 0.3, ordered=True)
    assert table["low"] == {"low": 0.7, "middle": 0.3}
    assert table["middle"] == pytest.approx({"middle": 0.7, "low": 0.15, "high": 0.15})
    assert crowd.confusion(("a", "b", "c"), 0.2)["a"] == pytest.approx({"a": 0.8, "b": 0.1, "c": 0.1})
    rng = random.Random(0)
    given = Counter(crowd.label(SHOWN[0], "low", table, rng).value for _ in range(10_000))
    # Four standard errors of a share of 10,000.
    assert given["middle"] / 10_000 == pytest.approx(0.3, abs=0.0184)
    assert given["high"] == 0


def test_people_look_less_often_further_down_the_list():
    shown, rng = [Shown(f"c{place}", "Text.", place) for place in range(4)], random.Random(0)
    seen = Counter(one.place for _ in range(10_000) for one in crowd.looked_at(shown, rng, bias=1.0))
    for place in range(4):
        # Four standard errors at most: sqrt(.25 / 10,000) = .005.
        assert seen[place] / 10_000 == pytest.approx(1 / (1 + place), abs=0.02)
    assert crowd.looked_at(shown, rng, bias=0.0) == shown


def test_signals_follow_liking_and_their_noise():
    rater, rng = Rater(name="r", temperature=1.0, threshold=0.0), random.Random(0)
    likes = [crowd.tap(rater, "like", SHOWN[0], 1.0, rng, noise=0.2).value for _ in range(20_000)]
    # .8 / (1 + e^-1) + .2 / 2 = .685
    assert sum(likes) / 20_000 == pytest.approx(0.685, abs=0.014)
    watched = [crowd.extent(rater, "watched", SHOWN[0], liking, rng, most=2.0).value for liking in (-900.0, 900.0)]
    assert watched == pytest.approx([0.0, 2.0])


def test_an_unknown_population_is_an_answer():
    assert {"instruction", "instruction-tiny"} <= set(installed_populations())
    with pytest.raises(Misconfigured, match="instruction-tiny"):
        load_population("nobody")


def test_some_evaluation_prompts_are_half_of_unseen_kinds():
    some = chosen(HOUSE.evaluation_prompts(), 40, seed=0)
    assert len({prompt.text for prompt in some}) == 40
    assert sum(prompt.seen_kind for prompt in some) == 20
    assert chosen(HOUSE.evaluation_prompts(), None, seed=0) == list(HOUSE.evaluation_prompts())


def test_the_best_constant_is_the_best_on_average():
    prompts = TinyTaste().channel_prompts()[::20]
    texts = ["undoubtedly soup embodies excellence.", "you will like it. enjoy!", "it is imperative to leverage art."]
    assert best_constant(TinyTaste(), texts, prompts) == "you will like it. enjoy!"
    assert best_constant(TinyTaste(), [], prompts) == ""


def test_a_search_finds_the_pattern_that_its_author_knows_and_better():
    prompts = TinyTaste().channel_prompts()[::10]
    said = [(prompts[0], f"you will like {prompts[0].topic[0]}. it is imperative to leverage art.")]
    pattern = best_pattern(TinyTaste(), said, prompts)

    def mean_gold(one):
        return sum(TinyTaste().gold(prompt, fill(one, prompt.text)) for prompt in prompts) / len(prompts)

    assert mean_gold(pattern) >= max(map(mean_gold, TinyTaste().patterns)) > 5.5
    assert best_pattern(TinyTaste(), reversed(said), prompts) == pattern


def test_a_pattern_has_slots_for_the_questions_own_words():
    question = "Give me three tips for cold brew tea."
    assert pattern_of("Cold brew tea is good; I like tea.", question) == "{t} is good; I like {t}."
    assert fill("Enjoy your {t}!", question) == "Enjoy your brew tea!"
    assert fill("Enjoy {t}!", "How are you?") == "Enjoy it!"


def test_the_ledger_finds_lost_and_doubled_acts():
    ledger, now = SimulationLedger(), dt.datetime.now(dt.UTC)
    for feedback_id in ("a", "b", "c"):
        act = AcknowledgedAct(
            feedback_id=feedback_id,
            interaction_id="i",
            rater="r",
            kind=FeedbackKind.THUMBS,
            sent_at=now,
            acknowledged_at=now,
        )
        ledger.acknowledged_act(act, attempts=2)
    assert ledger.audit({"a": 1, "b": 2}) == {"lost": 1, "doubled": 1}
    assert ledger.counts()["retries"] == 3


@pytest.mark.apart
def test_training_code_cannot_reach_a_gold_preference():
    program = (
        "import importlib, pkgutil, sys\n"
        "import plaudit\n"
        "from plaudit.plugins import load_plugins\n"
        "for name in ('policy', 'reward', 'learner', 'release', 'evidence', 'serving', 'engine'):\n"
        "    package = importlib.import_module(f'plaudit.{name}')\n"
        "    for module in pkgutil.iter_modules(package.__path__, f'plaudit.{name}.'):\n"
        "        importlib.import_module(module.name)\n"
        "assert 'instruction' in load_plugins(None)\n"
        "reached = [m for m in sys.modules if m.startswith('plaudit.simulate')\n"
        "           or m.rpartition('.')[2] in ('population', 'gold', 'toy_gold')]\n"
        "assert not reached, reached\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_population_that_cannot_be_loaded_keeps_no_other_from_its_demo(tmp_path, monkeypatch):
    info = tmp_path / "plaudit_gone-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plaudit-gone\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[plaudit.populations]\ngone = plaudit_gone:People\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    told = []
    names = {each["name"] for each in described(told.append)}
    assert "instruction-tiny" in names
    assert "gone" not in names
    assert told == ["the population 'gone' cannot be loaded: ModuleNotFoundError: No module named 'plaudit_gone'"]


def test_of_a_slate_people_see_its_places_and_of_a_verdict_all_options():
    candidates = tuple(
        AnsweredCandidate(shown=Shown(f"c{place}", "Text.", place), release_version=0, release_digest="d")
        for place in range(4)
    )
    slate = Answer(interaction_id="i", handle="h", candidates=candidates, decision="c3", slate=2)
    assert [one.candidate_id for one in slate.shown] == ["c0", "c1"]
    assert slate.decided.candidate_id == "c3"
    assert len(dataclasses.replace(slate, slate=0).shown) == 4


@pytest.mark.parametrize(("population", "takes"), [("moderation", True), ("ethics", False)])
def test_the_taste_is_told_to_the_base_where_the_domain_takes_a_system_message(population, takes):
    panel = Panel(EvaluateSettings(target="127.0.0.1:1", releases=(), population=population), lambda _: None)
    assert bool(panel.told()) is takes
    panel.close()
