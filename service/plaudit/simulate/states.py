"""The verdict of the hidden gold on the states that a turn compared: where reward and gold part, a policy went too far.

Enters: what `learner.compared` left, once all learning has ended. Leaves: each state's win-rate against the base's
answers to the same held-out prompts, beside the reward and the KL that training saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.simulate import judge
from plaudit.simulate.asking import plugin_of
from plaudit.simulate.population import load_population


def judge_states(population: str, turns: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Figures of each turn's states, turns and states in their order; a turn without a known prompt is left out.

    `fall`: by how much the state with the most reward wins less often than the one that wins most, paired over prompts
    with a 95% interval; None if they are the same. The one that wins most was chosen by these wins, so that `fall` errs
    towards a difference.
    """
    people = load_population(population)
    plugin = plugin_of(people.domain)
    known = {plugin.render(prompt.request).group: prompt for prompt in people.channel_prompts()}
    found = []
    for turn in turns:
        groups = [group for group, texts in turn["base"].items() if group in known and texts]
        if not groups:
            continue
        golds = {group: [people.gold(known[group], text) for text in turn["base"][group]] for group in groups}
        wins, states = [], []
        for state in turn["states"]:
            shares = [
                judge.win_share([people.gold(known[group], text) for text in state["answers"][group]], golds[group])
                for group in groups
            ]
            wins.append(shares)
            facts = {name: value for name, value in state.items() if name != "answers"}
            states.append({**facts, "gold_win_rate": judge.rate_over_prompts(shares, seed).to_json()})
        found.append({**_summary(turn, wins, seed), "prompts": len(groups), "states": states})
    return found


def _summary(turn: Mapping[str, Any], wins: Sequence[Sequence[float]], seed: int) -> dict[str, Any]:
    """Which state was proposed, which has the most reward, which wins most, and the difference of the last two."""
    states = turn["states"]
    rewarded = max(range(len(states)), key=lambda place: (states[place]["reward"], -place))
    winning = max(range(len(states)), key=lambda place: (sum(wins[place]), place == rewarded, -place))
    differences = [best - most for best, most in zip(wins[winning], wins[rewarded], strict=True)]
    return {
        "as_of": turn["as_of"],
        "live": turn["live"],
        "chosen": turn["chosen"],
        "progressed": turn["progressed"],
        "most_reward": states[rewarded]["iteration"],
        "most_gold": states[winning]["iteration"],
        "fall": None if winning == rewarded else judge.rate_over_prompts(differences, seed).to_json(),
    }
