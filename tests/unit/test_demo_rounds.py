"""What a demo asks: every channel prompt in every round, at the lengths that are trained and gated."""

import pytest
from plaudit.demo import plan
from plaudit.demo.plan import FULL, QUICK
from plaudit.simulate.plan import visits
from plaudit.simulate.population import load_population


@pytest.mark.parametrize("scale", [FULL, QUICK], ids=["full", "quick"])
def test_every_round_asks_every_channel_prompt_and_none_repeats_another(scale):
    population = load_population(scale.population)
    prompts, people = population.channel_prompts(), population.raters(0)
    rounds = []
    for number in range(scale.turns):
        first = number == 0
        rounds.append(
            list(
                visits(
                    prompts,
                    people,
                    population.mix,
                    seed=f"0:{number}",
                    events=scale.first_acts if first else scale.own_acts,
                    acts_per_interaction=scale.acts_per_interaction if first else scale.own_acts_per_interaction,
                )
            )
        )
        assert {visit.prompt.text for visit in rounds[-1]} == {prompt.text for prompt in prompts}
    same = sum(one.prompt is other.prompt for one, other in zip(*rounds, strict=False))
    assert same < 0.05 * len(rounds[1])


@pytest.mark.parametrize("scale", [FULL, QUICK], ids=["full", "quick"])
def test_what_people_ask_for_is_what_the_channel_trains_and_gates(scale):
    assert scale.settings["policy"]["max_tokens"] == load_population(scale.population).max_tokens


def test_the_demo_tells_each_round_apart():
    from plaudit.demo import people

    arguments = people.simulate_arguments(
        population="instruction",
        target="127.0.0.1:1",
        events=1,
        seed=3,
        round_=1,
        concurrency=1,
        temperature=0.7,
        ledger=plan.cache_dir(),
    )
    assert arguments[arguments.index("--round") + 1] == "1"
    assert arguments[arguments.index("--seed") + 1] == "3"
