"""The maths of ordered choices: against a pencil, against finite differences, and against many draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit import ordering
from plaudit.policy import choices, ppo

DRAWS = 40_000


def _scores(*rows, grad=False):
    return torch.tensor(rows, dtype=torch.float64, requires_grad=grad)


def _tiers(*valid):
    return choices.tiers_of(valid)


def _drawn(scores, tiers, samples, places, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return choices.draw_orders(scores, tiers, samples=samples, places=places, generator=generator)


def test_two_options_by_hand():
    # Scores log 3 and log 1: the first wins with 3/4. Rewards 1 and 0: the expectation is 3/4.
    scores, tiers, rewards = _scores([math.log(3), 0.0], grad=True), _tiers([True, True]), _scores([1.0, 0.0])
    first = choices.first_logprobs(scores, tiers)
    assert first.exp().tolist() == [pytest.approx([0.75, 0.25])]
    value = choices.expected_rewards(first, rewards)
    assert value.item() == pytest.approx(0.75)
    # d/ds_1 of p_1 is p_1 p_2 = 3/16, and d/ds_2 its negative.
    (gradient,) = torch.autograd.grad(value.sum(), scores, retain_graph=True)
    assert gradient.tolist() == [pytest.approx([3 / 16, -3 / 16])]
    # KL to the even coin: 3/4 log(3/2) + 1/4 log(1/2).
    even = choices.place_logprobs(_scores([0.0, 0.0]), choices.first_options(tiers))
    kl = choices.place_kl(choices.place_logprobs(scores, choices.first_options(tiers)), even)
    assert kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    # People said the second: -log 1/4 nats.
    assert choices.label_cross_entropy(first, _scores([0.0, 1.0])).item() == pytest.approx(math.log(4))


def test_three_places_by_hand():
    # Scores log 3, log 2, log 1; order b, c, a: 2/6 * 1/4 * 3/3. Worth .5 + .63 * 0 + .5 * 1 in rewards 1, .5, 0.
    scores, tiers = _scores([math.log(3), math.log(2), 0.0]), _tiers([True] * 3)
    orders = torch.tensor([[[1, 2, 0], [1, 2, choices.NONE]]])
    logprobs = choices.place_logprobs(scores, choices.open_options(tiers, orders))
    assert choices.order_logprobs(logprobs, orders).exp().tolist() == [pytest.approx([1 / 12, 1 / 12])]
    rewards = choices.order_rewards(_scores([1.0, 0.5, 0.0]), orders, (1.0, 0.63, 0.5))
    assert rewards.tolist() == [pytest.approx([1.0, 0.5])]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_orders_log_probability_is_the_one_that_serving_records(data):
    count = data.draw(st.integers(2, 7))
    scores = data.draw(st.lists(st.floats(-8, 8), min_size=count, max_size=count))
    valid = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    order = ordering.draw(scores, data.draw(st.integers(0, 1000)), valid)
    # Beside a prompt with more options: padding changes nothing.
    wide = [*scores, 5.0, 7.0]
    tiers = _tiers(valid, [True] * (count + 2))
    places = torch.tensor([[[*order.places]], [[*range(count)]]])
    found = choices.place_logprobs(_scores(wide, wide), choices.open_options(tiers, places))
    assert choices.order_logprobs(found, places)[0, 0].item() == pytest.approx(order.logprob, abs=1e-9)
    factors = ordering.log_factors(scores, order.places, valid)
    assert found[0, 0].gather(-1, places[0, 0][:, None])[:, 0].tolist() == pytest.approx(factors, abs=1e-9)
    first = choices.first_logprobs(_scores(wide, wide), tiers)[0].exp()
    assert first.tolist() == pytest.approx([*ordering.first_probabilities(scores, valid), 0, 0], abs=1e-9)


def test_drawn_orders_are_distributed_as_their_log_probabilities_say():
    scores, tiers = _scores([1.0, 0.0, -0.5, 9.0]), _tiers([True, True, True, False])
    orders = _drawn(scores, tiers, DRAWS, 4)[0]
    # What is invalid comes last, whatever its score.
    assert set(orders[:, 3].tolist()) == {3}
    for order in ([0, 1, 2, 3], [2, 1, 0, 3], [1, 0, 2, 3]):
        places = torch.tensor([[order]])
        logprob = choices.order_logprobs(
            choices.place_logprobs(scores, choices.open_options(tiers, places)), places
        ).item()
        share = (orders == places[0, 0]).all(dim=1).double().mean().item()
        error = math.sqrt(math.exp(logprob) * (1 - math.exp(logprob)) / DRAWS)
        assert abs(share - math.exp(logprob)) < 5 * error
    # The same generator, the same draws.
    assert torch.equal(_drawn(scores, tiers, 5, 4), _drawn(scores, tiers, 5, 4))
    assert _drawn(scores, tiers, 1, 6).shape == (1, 1, 4)


@pytest.mark.parametrize("what", ["expected", "kl", "other_kl", "label", "order", "clipped"])
def test_gradients_agree_with_finite_differences(what):
    torch.manual_seed(0)
    tiers = _tiers([True] * 4, [True, False, True])
    scores, others = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    rewards, targets = torch.rand(2, 4, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    orders = _drawn(scores, tiers, 5, 3)
    may = choices.open_options(tiers, orders)
    old = choices.order_logprobs(choices.place_logprobs(scores, may), orders) + 0.05

    def value(given):
        first = choices.first_logprobs(given, tiers)
        logprobs = choices.place_logprobs(given, may)
        match what:
            case "expected":
                return choices.expected_rewards(first, rewards).sum()
            case "kl":
                return choices.place_kl(logprobs, choices.place_logprobs(others, may)).sum()
            case "other_kl":
                return choices.place_kl(choices.place_logprobs(others, may), logprobs).sum()
            case "label":
                return choices.label_cross_entropy(first, targets).sum()
            case "order":
                return choices.order_logprobs(logprobs, orders).sum()
            case _:
                advantages = choices.order_rewards(rewards, orders, (1.0, 0.6, 0.5)) - 1
                return choices.order_loss(choices.order_logprobs(logprobs, orders), old, advantages, 0.2).loss

    given = scores.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(given), given)
    assert torch.isfinite(gradient).all()
    step = 1e-6
    for row in range(2):
        for option in range(4):
            bump = torch.zeros_like(scores)
            bump[row, option] = step
            slope = (value(scores + bump) - value(scores - bump)).item() / (2 * step)
            assert gradient[row, option].item() == pytest.approx(slope, abs=1e-6)
    # Padding and what cannot be first take none.
    assert gradient[1, 3] == 0.0
    if what in ("expected", "label"):
        assert gradient[1, 1] == 0.0


def test_the_exact_gradient_of_the_first_place_is_the_mean_of_the_sampled_one():
    """And the sampled one of a few draws is noisy: what exactness saves."""
    scores, tiers = _scores([0.5, -0.2, 0.1, -1.0], grad=True), _tiers([True] * 4)
    rewards = _scores([0.2, 0.9, 0.4, 0.7])
    value = choices.expected_rewards(choices.first_logprobs(scores, tiers), rewards).sum()
    (exact,) = torch.autograd.grad(value, scores)
    samples, groups = 4, 20_000
    orders = _drawn(scores, tiers, samples * groups, 1)
    # Leave-one-out within groups of four, as a training step has them: d/ds of log p times the advantage.
    returns = choices.order_rewards(rewards, orders, (1.0,))[0]
    advantages = ppo.leave_one_out(returns, samples)
    p = choices.first_logprobs(scores, tiers).exp()[0].detach()
    slopes = (torch.nn.functional.one_hot(orders[0, :, 0], 4).double() - p) * advantages[:, None]
    by_group = slopes.view(groups, samples, 4).mean(dim=1)
    error = by_group.std(dim=0) / math.sqrt(groups)
    assert (error > 0).all()
    assert ((by_group.mean(dim=0) - exact[0]).abs() < 4.5 * error).all()
    assert (by_group.std(dim=0) > 0.3 * exact[0].abs()).all()


def test_the_kl_of_places_averaged_over_draws_is_the_kl_of_the_orders():
    scores, others, tiers = _scores([0.7, 0.0, -0.6, 0.2]), _scores([-0.3, 0.4, 0.0, 0.1]), _tiers([True] * 4)
    # Exactly: over all 24 orders.
    every = torch.tensor([[*torch.cartesian_prod(*[torch.arange(4)] * 4).tolist()]])
    every = every[:, [len(set(order.tolist())) == 4 for order in every[0]]]
    may = choices.open_options(tiers, every)
    logs, theirs = (choices.order_logprobs(choices.place_logprobs(s, may), every)[0] for s in (scores, others))
    assert logs.exp().sum().item() == pytest.approx(1.0)
    exact = (logs.exp() * (logs - theirs)).sum().item()
    orders = _drawn(scores, tiers, DRAWS, 4)
    may = choices.open_options(tiers, orders)
    mine, other = choices.place_logprobs(scores, may), choices.place_logprobs(others, may)
    by_place = choices.place_kl(mine, other)[0]
    plain = (choices.order_logprobs(mine, orders) - choices.order_logprobs(other, orders))[0]
    for found in (by_place, plain):
        assert abs(found.mean().item() - exact) < 5 * found.std().item() / math.sqrt(DRAWS)
    assert by_place.min() >= 0.0
    assert by_place.std() < plain.std() / 2
    # Of one place it is exact.
    first = choices.first_options(tiers)
    one = choices.place_kl(choices.place_logprobs(scores, first), choices.place_logprobs(others, first)).item()
    p, q = (choices.first_logprobs(s, tiers)[0] for s in (scores, others))
    assert one == pytest.approx((p.exp() * (p - q)).sum().item())


def test_a_ratio_beyond_the_clip_range_takes_no_gradient_and_an_equal_one_is_no_loss():
    orders, tiers = torch.tensor([[[0], [1]]]), _tiers([True, True])
    scores = _scores([0.0, 0.0], grad=True)
    logprobs = choices.order_logprobs(choices.place_logprobs(scores, choices.open_options(tiers, orders)), orders)
    advantages = _scores([0.5, -0.5])
    same = choices.order_loss(logprobs, logprobs.detach(), advantages, 0.2)
    assert same.loss.item() == pytest.approx(0.0)
    assert same.clip_fraction == 0.0
    # The first is twice as probable as it was: it has moved far enough.
    moved = choices.order_loss(
        logprobs, logprobs.detach() - torch.tensor([[math.log(2), -math.log(2)]]), advantages, 0.2
    )
    (gradient,) = torch.autograd.grad(moved.loss, scores)
    assert gradient.abs().max() == 0.0
    assert moved.clip_fraction == 1.0
