"""Off-policy estimates: pencil examples, and coverage on simulated logs whose true value is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from plaudit.ordering import draw, first_probabilities
from plaudit.release.estimate import (
    Shown,
    TooLittleOverlap,
    difference,
    estimate,
    place_probabilities,
)

SIMULATIONS = 250


def one(unit: str, reward: float | None, logged: float, target: float, *q: float) -> Shown:
    return Shown(
        unit=unit,
        rewards=(reward,),
        logged=(logged,),
        target=(target,),
        predicted=q[:1],
        expected=q[1:],
    )


# Weights 2, .5, 1, 2, .5; rewards 1, 1, 0, 0, 0.
PENCIL = (
    one("a", 1.0, 0.25, 0.5, 0.8, 0.6),
    one("b", 1.0, 0.8, 0.4, 0.8, 0.6),
    one("c", 0.0, 0.5, 0.5, 0.4, 0.6),
    one("d", 0.0, 0.1, 0.2, 0.4, 0.6),
    one("e", 0.0, 0.5, 0.25, 0.4, 0.6),
)


def test_estimators_give_what_a_pencil_gives() -> None:
    found = estimate(PENCIL, min_ess=1)
    assert found.dr is not None
    assert found.observed.value == pytest.approx(0.4)
    # (2 + .5 + 0 + 0 + 0) / 5, and over the weights' sum of 6.
    assert found.ips.value == pytest.approx(0.5)
    assert found.snips.value == pytest.approx(2.5 / 6)
    # .6 + mean(2 x .2, .5 x .2, 1 x -.4, 2 x -.4, .5 x -.4) = .6 - .9 / 5.
    assert found.dr.value == pytest.approx(0.42)
    # 6^2 / (4 + .25 + 1 + 4 + .25).
    assert found.ess == pytest.approx(36 / 9.5)
    assert (found.interactions, found.units, found.clipped) == (5, 5, 0)


def test_clipping_is_said_and_counted() -> None:
    found = estimate(PENCIL, min_ess=1, clip=1.0)
    assert (found.clip, found.clipped) == (1.0, 2)
    assert found.ips.value == pytest.approx((1 + 0.5) / 5)


def test_places_are_weighed_one_by_one_and_missing_rewards_count_nowhere() -> None:
    two = [
        shown
        for n in range(3)  # the same of three times three people
        for shown in (
            Shown(unit=f"a{n}", rewards=(1.0, 0.0), logged=(0.5, 0.5), target=(1.0, 0.25)),
            Shown(unit=f"b{n}", rewards=(0.0, None), logged=(0.5, 0.5), target=(0.5, 0.5)),
            Shown(unit=f"c{n}", rewards=(None, 1.0), logged=(0.5, 0.5), target=(0.5, 0.5)),
        )
    ]
    found = estimate(two, place_weights=(1.0, 0.5), min_ess=1)
    # First place: (2 x 1 + 1 x 0) / 2; second: (.5 x 0 + 1 x 1) / 2, at half the weight.
    assert found.ips.value == pytest.approx(1.0 + 0.25)
    assert found.snips.value == pytest.approx(2 / 3 + 0.5 * (1 / 1.5))
    assert found.dr is None


def test_a_policy_that_drew_the_log_has_the_mean_of_the_log() -> None:
    same = [one(f"r{i}", float(i % 3 == 0), 0.3, 0.3) for i in range(90)]
    found = estimate(same)
    assert found.ess == pytest.approx(90)
    assert found.ips == found.snips == found.observed
    assert difference(same, same).value == 0.0


def test_too_little_overlap_is_refused_in_words() -> None:
    # One interaction in a hundred carries nearly all the weight.
    far = [one(f"r{i}", 1.0, 0.01 if i == 0 else 0.99, 0.99 if i == 0 else 0.01) for i in range(100)]
    with pytest.raises(TooLittleOverlap, match=r"100 interactions are worth 1 of its own, .* EXPLORE") as caught:
        estimate(far)
    assert caught.value.ess == pytest.approx(1.0, abs=0.1)
    with pytest.raises(TooLittleOverlap, match="1 raters saw what it would show; 50 interactions and 5 raters are"):
        estimate([one("the same", 1.0, 0.5, 0.5)] * 100)
    # Nine raters, but the policy shows what four of them saw: of four, bounds are too often anything.
    with pytest.raises(TooLittleOverlap, match="4 raters saw"):
        estimate([one(f"r{i % 9}", float(i % 2), 0.5, 0.5 if i % 9 < 4 else 0.0) for i in range(900)])
    with pytest.raises(TooLittleOverlap, match="0 interactions are worth 0"):
        estimate([])
    with pytest.raises(TooLittleOverlap):
        estimate([one(f"r{i}", 1.0, 0.5, 0.0) for i in range(100)])


@pytest.mark.parametrize(
    ("logged", "target", "reward"),
    [(0.0, 0.5, 1.0), (0.5, 1.5, 1.0), (0.5, -0.1, 1.0), (1.5, 0.5, 1.0), (0.5, 0.5, math.nan), (math.nan, 0.5, 1.0)],
)
def test_what_is_no_probability_or_reward_is_refused(logged: float, target: float, reward: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        estimate([one(f"r{i}", reward, logged, target) for i in range(100)])


def test_a_difference_is_over_the_same_interactions() -> None:
    with pytest.raises(ValueError, match="same interactions"):
        difference(PENCIL, PENCIL[:2], min_ess=1)


# Simulated logs.


class World:
    """Contexts of five options with known chances of a reward, a policy that drew and one that is asked about."""

    def __init__(self, seed: int, sharpness: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.chances = rng.uniform(0.1, 0.9, (40, 5))
        self.logging = softmax(rng.normal(0, 0.7, (40, 5)))
        self.target = softmax(sharpness * 3 * self.chances + rng.normal(0, 0.5, (40, 5)))
        self.truth = float((self.target * self.chances).sum(axis=1).mean())
        self.estimated = np.clip(self.chances + rng.normal(0, 0.1, (40, 5)), 0, 1)

    def log(self, seed: int, interactions: int, raters: int | None = None) -> list[Shown]:
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 40, interactions)
        # People differ: some like everything more.
        leniency = rng.normal(0, 0.1, raters) if raters else np.zeros(interactions)
        who = rng.integers(0, raters, interactions) if raters else np.arange(interactions)
        shown = (self.logging[x].cumsum(axis=1) > rng.random((interactions, 1))).argmax(axis=1)
        rewards = rng.random(interactions) < np.clip(self.chances[x, shown] + leniency[who], 0, 1)
        expected = (self.target * self.estimated).sum(axis=1)
        parts = (rewards * 1.0, self.logging[x, shown], self.target[x, shown], self.estimated[x, shown], expected[x])
        return [
            one(f"r{rater:05d}", *row)
            for rater, row in zip(who.tolist(), zip(*(p.tolist() for p in parts), strict=True), strict=True)
        ]


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores)
    return shares / shares.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(("interactions", "raters"), [(200, None), (400, None), (400, 5), (600, 8), (600, 40)])
def test_intervals_of_nine_in_ten_hold_the_true_value_nine_times_in_ten(interactions: int, raters: int | None) -> None:
    world = World(interactions)
    held = dict.fromkeys(("ips", "snips", "dr"), 0)
    for seed in range(SIMULATIONS):
        found = estimate(world.log(seed, interactions, raters), draws=300, seed=seed)
        assert found.dr is not None
        for name, interval in (("ips", found.ips), ("snips", found.snips), ("dr", found.dr)):
            held[name] += interval.low <= world.truth <= interval.high
    # Three standard errors of 250 trials at 90% are .057.
    for name, count in held.items():
        assert abs(count / SIMULATIONS - 0.9) <= 0.057, (name, count / SIMULATIONS)


def test_intervals_hold_with_weights_of_up_to_ten() -> None:
    # Asked about a uniform policy from one that nearly always shows the same: an eighth of the log's weight is left.
    world = World(21)
    certain = softmax(np.random.default_rng(21).normal(0, 3.0, (40, 5)))
    world.logging, world.target = 0.9 * certain + 0.02, np.full((40, 5), 0.2)
    world.truth = float(world.chances.mean())
    held = dict.fromkeys(("ips", "snips"), 0)
    for seed in range(SIMULATIONS):
        found = estimate(world.log(seed, 600), draws=300, seed=seed)
        held["ips"] += found.ips.low <= world.truth <= found.ips.high
        held["snips"] += found.snips.low <= world.truth <= found.snips.high
    for name, count in held.items():
        assert abs(count / SIMULATIONS - 0.9) <= 0.057, (name, count / SIMULATIONS)


def test_bounds_of_many_even_weights_are_the_normal_ones() -> None:
    same = [one(f"r{i}", float(i % 4 == 0), 0.3, 0.3) for i in range(400)]
    found = estimate(same, draws=4000).snips
    half = 1.645 * math.sqrt(0.25 * 0.75 / 399)
    assert found.low == pytest.approx(0.25 - half, abs=0.1 * half)
    assert found.high == pytest.approx(0.25 + half, abs=0.1 * half)


def test_people_who_all_say_the_same_leave_no_interval() -> None:
    found = estimate([one(f"r{i}", 1.0, 0.3, 0.3) for i in range(90)])
    assert (found.snips.low, found.snips.high) == (1.0, 1.0)


def test_at_the_smallest_effective_sample_that_is_allowed_the_intervals_still_hold() -> None:
    world = World(3, sharpness=3.0)
    held, ess = dict.fromkeys(("snips", "dr"), 0), []
    for seed in range(SIMULATIONS):
        found = estimate(world.log(seed, 160), draws=300, seed=seed, min_ess=1)
        assert found.dr is not None
        ess.append(found.ess)
        for name, interval in (("snips", found.snips), ("dr", found.dr)):
            held[name] += interval.low <= world.truth <= interval.high
    assert 40 <= float(np.median(ess)) <= 60
    for name, count in held.items():
        assert abs(count / SIMULATIONS - 0.9) <= 0.057, (name, count / SIMULATIONS)


def test_the_estimates_lie_around_the_truth_and_a_good_reward_estimate_narrows() -> None:
    world = World(11)
    found = [estimate(world.log(seed, 400), draws=20, seed=seed) for seed in range(150)]
    spread = {}
    for name in ("ips", "snips", "dr"):
        values = np.array([getattr(each, name).value for each in found])
        spread[name] = values.std()
        assert abs(values.mean() - world.truth) <= 3 * values.std() / math.sqrt(len(values)) + 1e-3, name
    assert spread["dr"] < spread["snips"] < spread["ips"]
    # The log's own mean is far from it: the policies differ.
    assert abs(np.mean([each.observed.value for each in found]) - world.truth) > 0.05


def test_doubly_robust_is_right_with_a_reward_estimate_that_is_wrong_throughout() -> None:
    world = World(12)
    world.estimated = 1 - world.chances
    values = np.array([estimate(world.log(seed, 400), draws=20).dr.value for seed in range(150)])  # type: ignore[union-attr]
    assert abs(values.mean() - world.truth) <= 3 * values.std() / math.sqrt(len(values))


def test_a_better_policy_is_told_from_a_worse_one() -> None:
    world, told, wrong = World(13), 0, 0
    for seed in range(40):
        log = world.log(seed, 600)
        base = [one(each.unit, each.rewards[0], each.logged[0], each.logged[0]) for each in log]
        told += difference(log, base, draws=300, seed=seed).low > 0
        wrong += difference(base, log, draws=300, seed=seed).low > 0
    assert told >= 37
    assert wrong == 0


# Places of a Plackett-Luce order.


def test_probabilities_of_places_are_those_of_all_orders() -> None:
    # Weights 4, 2, 1: the second place is option 0 with 2/7 x 4/5 + 1/7 x 4/6 and so on.
    found = place_probabilities([math.log(4), math.log(2), 0.0], 3)
    assert found[0] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    second = [2 / 7 * 4 / 5 + 1 / 7 * 4 / 6, 4 / 7 * 2 / 3 + 1 / 7 * 2 / 6, 4 / 7 * 1 / 3 + 2 / 7 * 1 / 5]
    assert found[1] == pytest.approx(second)
    assert found[2] == pytest.approx(1 - found[0] - found[1], abs=0.03)
    assert found.sum(axis=1) == pytest.approx(1.0)


def test_probabilities_of_places_agree_with_drawn_orders() -> None:
    scores = np.random.default_rng(0).normal(0, 1.5, 12).tolist()
    found = place_probabilities(scores, 5, draws=4000)
    drawn = np.array([draw(scores, seed).places[:5] for seed in range(1500)])
    for place in range(5):
        shares = np.bincount(drawn[:, place], minlength=12) / 1500
        assert np.abs(shares - found[place]).max() < 0.05
    assert (found > 0).all()


def test_an_option_that_nearly_always_comes_before_has_its_small_probability_in_a_late_place() -> None:
    # Passed over by three equal ones, then by two, and next: of a thousand drawn orders none has it there.
    lead = math.exp(7)
    found = place_probabilities([7.0, 0.0, 0.0, 0.0], 4)
    assert found[2, 0] == pytest.approx(3 / (lead + 3) * 2 / (lead + 2) * lead / (lead + 1))
    assert found[3, 0] == pytest.approx(3 / (lead + 3) * 2 / (lead + 2) * 1 / (lead + 1))
    assert found.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    # Among options that are not valid, behind the one that is: as likely as without it.
    lead = math.exp(16)
    behind = place_probabilities([0.0, 16.0 - 1e4, -1e4, -1e4], 3)
    assert behind[2, 1] == pytest.approx(2 / (lead + 2) * lead / (lead + 1))


def test_an_option_that_comes_last_by_rule_comes_last() -> None:
    # The core lowers an invalid option's score so far that it never stands before a valid one.
    found = place_probabilities([0.0, 0.0, -1e4], 3)
    assert found[0] == pytest.approx([0.5, 0.5, 0.0])
    assert found[1] == pytest.approx([0.5, 0.5, 0.0])
    assert found[2] == pytest.approx([0.0, 0.0, 1.0])


@pytest.mark.parametrize("places", [1, 3])
def test_slates_are_estimated_place_by_place(places: int) -> None:
    rng = np.random.default_rng(7)
    chances = rng.uniform(0, 1, 8)
    logging, target = rng.normal(0, 0.7, 8).tolist(), (2 * chances).tolist()
    weights = (1.0, 0.63, 0.5)[:places]
    under_log = place_probabilities(logging, places, draws=4000)
    under_target = place_probabilities(target, places, draws=4000)
    truth = float(sum(w * row @ chances for w, row in zip(weights, under_target, strict=True)))
    held, values = 0, []
    for seed in range(100):
        # Gumbel noise sorts into a Plackett-Luce order.
        orders = np.argsort(-(np.array(logging) + rng.gumbel(size=(300, 8))), axis=1)[:, :places]
        at = np.arange(places)
        rows = zip(
            (rng.random(orders.shape) < chances[orders]).astype(float).tolist(),
            under_log[at, orders].tolist(),
            under_target[at, orders].tolist(),
            strict=True,
        )
        log = [
            Shown(unit=f"r{i}", rewards=tuple(rewards), logged=tuple(logged), target=tuple(wanted))
            for i, (rewards, logged, wanted) in enumerate(rows)
        ]
        found = estimate(log, place_weights=weights, draws=200, seed=seed)
        held += found.snips.low <= truth <= found.snips.high
        values.append(found.snips.value)
    assert np.mean(values) == pytest.approx(truth, rel=1e-2)
    # Three standard errors of 100 trials at 90% are .09.
    assert abs(held / 100 - 0.9) <= 0.09


def test_the_first_place_has_the_probability_that_serving_logs() -> None:
    scores = [0.3, -1.0, 2.0]
    assert place_probabilities(scores, 1)[0] == pytest.approx(first_probabilities(scores))
