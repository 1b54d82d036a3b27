"""States that a turn compared: what is left of them, and what the hidden gold says."""

from types import SimpleNamespace

import pytest
import structlog
from plaudit.simulate.asking import plugin_of
from plaudit.simulate.population import load_population
from plaudit.simulate.states import judge_states
from plaudit.store.kept import Files, folder_of, forget
from plaudit.types import Channel

CHANNEL = Channel("instruction", "default")
POPULATION = "instruction-tiny"


@pytest.fixture(scope="module")
def prompts():
    people = load_population(POPULATION)
    plugin = plugin_of(people.domain)
    return [(plugin.render(prompt.request).group, prompt) for prompt in people.channel_prompts()[:12]], people


def texts_by_gold(prompts):
    """Of each prompt a text that the gold likes, and one that it does not."""
    known, people = prompts
    candidates = [prompt.text for _, prompt in known] + [pattern.replace("{t}", "tea") for pattern in people.patterns]
    ordered = {g: sorted(candidates, key=lambda text, p=p: people.gold(p, text)) for g, p in known}
    assert all(people.gold(p, ordered[g][0]) < people.gold(p, ordered[g][-1]) for g, p in known)
    return {g: (each[0], each[len(each) // 2], each[-1]) for g, each in ordered.items()}


def state(iteration, reward, answers):
    return {"iteration": iteration, "reward": reward, "kl_base_nats_per_sequence": iteration / 2, "answers": answers}


def turn_of(prompts, rewards):
    """A turn whose second state is liked best, and whose third as little as the first."""
    texts = texts_by_gold(prompts)
    of = lambda place: {group: [each[place]] for group, each in texts.items()}  # noqa: E731
    return {
        "as_of": "2026-11-01T10:00:00+00:00",
        "live": 0,
        "chosen": 3,
        "progressed": True,
        "base": of(1) | {"of nobody": ["x"]},
        "states": [
            state(i, reward, of(place)) for (i, place), reward in zip(((0, 0), (3, 2), (6, 0)), rewards, strict=True)
        ],
    }


def test_more_reward_and_less_gold_is_found(prompts):
    (found,) = judge_states(POPULATION, [turn_of(prompts, (0.1, 0.3, 0.6))])
    wins = [each["gold_win_rate"]["estimate"] for each in found["states"]]
    assert wins[1] == 1.0
    assert wins[0] == wins[2] < 0.5
    assert (found["prompts"], found["most_reward"], found["most_gold"]) == (12, 6, 3)
    assert found["fall"]["low"] > 0.5
    assert "answers" not in found["states"][0]

    (good,) = judge_states(POPULATION, [turn_of(prompts, (0.1, 0.6, 0.3))])
    assert good["fall"] is None


def test_a_turn_of_unknown_prompts_says_nothing(prompts):
    strange = turn_of(prompts, (0.1, 0.3, 0.6)) | {"base": {"of nobody": ["x"]}}
    assert judge_states(POPULATION, [strange]) == []


def test_only_the_newest_turns_stay_and_an_erasure_takes_them(tmp_path):
    files = Files(tmp_path, CHANNEL, erasures=0, most_bytes=1000, count=lambda *_: None)
    for number in range(4):
        files.leave(f"compared-{number}.json", "{}", "compared-*.json", 2)
    files.leave("compared-9.json", "x" * 1001, "compared-*.json", 2)
    folder = folder_of(tmp_path, CHANNEL)
    assert sorted(each.name for each in folder.glob("compared-*")) == ["compared-2.json", "compared-3.json"]
    assert (folder / "compared-3.json").stat().st_mode & 0o777 == 0o600
    forget(tmp_path, CHANNEL)
    files.leave("compared-8.json", "{}", "compared-*.json", 2)
    assert not folder.exists()


def test_the_learner_leaves_states_only_if_it_is_asked_and_clears_away_what_it_left_before(tmp_path):
    from plaudit.learner.compared import FILES, ComparedStates

    files = Files(tmp_path, CHANNEL, erasures=0, most_bytes=1000, count=lambda *_: None)
    files.leave("compared-1.json", "what people read", FILES, 2)
    turn = SimpleNamespace(
        settings=SimpleNamespace(learn=SimpleNamespace(compared_turns=0)), kept=SimpleNamespace(files=files)
    )
    states = ComparedStates(turn, None)
    states.looked(None, [None])  # nothing is read of what was sampled
    states.leave(None)
    assert list(folder_of(tmp_path, CHANNEL).glob(FILES)) == []


def test_a_file_that_may_not_be_kept_is_said(tmp_path):
    files = Files(tmp_path, CHANNEL, erasures=0, most_bytes=0, count=lambda *_: None)
    with structlog.testing.capture_logs() as lines:
        files.leave("compared-1.json", "{}", "compared-*.json", 2)
    assert "learn.kept_mb" in lines[0]["why"]
