"""What a demo asks: every channel prompt in every round, at the lengths that are trained and gated."""

from pathlib import Path

import pytest
from plaudit.demo import plan
from plaudit.errors import Misconfigured
from plaudit.simulate.plan import visits
from plaudit.simulate.population import described, installed_populations, load_population


@pytest.fixture(scope="module")
def people():
    return {each.name: each for each in plan.people_of(described(print))}


@pytest.mark.parametrize("name", installed_populations())
def test_every_round_asks_every_channel_prompt_and_none_repeats_another(name, people):
    population, scale = load_population(name), plan.scale(people[name])
    prompts, raters = population.channel_prompts(), population.raters(0)
    rounds = []
    for number in range(scale.turns):
        first = number == 0
        rounds.append(
            list(
                visits(
                    prompts,
                    raters,
                    population.mix,
                    seed=f"0:{number}",
                    events=scale.acts(number + 1, people[name]),
                    acts_per_interaction=scale.acts_per_interaction if first else scale.own_acts_per_interaction,
                )
            )
        )
        assert {visit.prompt.request for visit in rounds[-1]} == {prompt.request for prompt in prompts}
    same = sum(one.prompt is other.prompt for one, other in zip(*rounds, strict=False))
    assert same < 0.05 * len(rounds[1])


@pytest.mark.parametrize("name", installed_populations())
def test_what_people_ask_for_is_what_the_channel_trains_and_gates(name, people):
    table = plan.settings_table(plan.DemoOptions(), people[name], Path("model"))
    assert table["policy"]["max_tokens"] == load_population(name).max_tokens
    assert table["plugins"]["allow"] == [load_population(name).domain]


def person(name, domain, model):
    return {"name": name, "domain": domain, "model": model, "max_tokens": 8, "channel_prompts": 10, "kinds": []}


def test_a_demo_finds_the_people_of_its_domain_and_model():
    installed = [person("a", "one", "tiny"), person("b", "two", "smollm2"), person("c", "two", "tiny")]

    def chosen(**options):
        return plan.choose_people(installed, plan.DemoOptions(**options)).name

    # Without a domain: one whose people speak the language of an instruct model.
    assert (chosen(), chosen(quick=True)) == ("b", "c")
    assert (chosen(domain="two"), chosen(domain="two", quick=True)) == ("b", "c")
    # People of the tiny model alone: then every demo of the domain is quick.
    assert (chosen(domain="one"), chosen(domain="one", quick=True)) == ("a", "a")
    with pytest.raises(Misconfigured, match="one, two"):
        chosen(domain="three")


def test_the_demo_tells_each_round_apart():
    from plaudit.demo.people import simulate_arguments

    arguments = simulate_arguments(
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
