"""PPO's maths against pencil examples, independent formulas and invariances."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.policy import ppo
from plaudit.policy.value import LinearValue, features

NAN = float("nan")


def test_the_score_stands_on_the_last_token_that_counts():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = ppo.terminal_rewards(torch.tensor([1.0, 2.0]), mask)
    assert torch.equal(found, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64))


def test_kl_of_a_token_is_the_difference_of_its_logprobs():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    logprobs = torch.tensor([[-1.0, -2.0, NAN], [-1.0, -1.0, -1.0]])
    reference = torch.tensor([[-1.5, -1.0, NAN], [-1.0, -2.0, -3.0]])
    found = ppo.token_kl(logprobs, reference, mask)
    assert torch.equal(found, torch.tensor([[0.5, -1.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64))


def test_the_kl_of_a_policy_that_moved_is_that_of_its_own_samples():
    """Tokens of one policy, KL of another to a third: importance weights make the estimate the exact KL."""
    generator = torch.Generator().manual_seed(3)
    old, new, other = torch.log_softmax(0.3 * torch.randn(3, 7, generator=generator, dtype=torch.float64), dim=1)
    exact = (new.exp() * (new - other)).sum().item()
    tokens = torch.multinomial(old.exp(), 200_000, replacement=True, generator=generator)
    found = ppo.moved_kl(new[tokens], old[tokens], other[tokens]) / len(tokens)
    assert math.isclose(found, exact, abs_tol=3e-3)
    # Without the weights it would be E_old (log new - log other), another number.
    assert abs((old.exp() * (new - other)).sum().item() - exact) > 1e-2


def test_the_weight_of_a_token_that_became_likely_is_bounded():
    found = ppo.moved_kl(torch.tensor([0.0]), torch.tensor([-9.0]), torch.tensor([-1.0]))
    assert math.isclose(found, 2.0, rel_tol=1e-6)


def test_explained_variance_is_what_values_take_away():
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 3.0, NAN]])
    assert ppo.explained_variance(returns, returns + 5.0, mask) == 1.0
    assert ppo.explained_variance(returns, torch.zeros(1, 4), mask) == 0.0
    assert math.isclose(ppo.explained_variance(returns, -returns, mask), -3.0, rel_tol=1e-6)
    assert ppo.explained_variance(torch.ones(1, 4), torch.zeros(1, 4), mask) == 0.0


def test_gae_equals_the_pencil():
    # gamma 1, lambda .5; V = (1, 2), r = (0, 3): delta_2 = 3 - 2 = 1, delta_1 = 0 + 2 - 1 = 1; A_1 = 1 + .5 = 1.5
    mask = torch.tensor([[True, True, False]])
    advantages, returns = ppo.gae(torch.tensor([[0.0, 3.0, NAN]]), torch.tensor([[1.0, 2.0, NAN]]), mask, 1.0, 0.5)
    assert torch.allclose(advantages, torch.tensor([[1.5, 1.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[2.5, 3.0, 0.0]]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 7), st.floats(0, 1), st.floats(0.5, 1), st.integers(0, 10_000))
def test_gae_equals_the_sum_over_deltas(batch, length, lam, gamma, seed):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, batch, length))
    lengths = rng.integers(1, length + 1, size=batch)
    mask = torch.tensor(np.arange(length)[None] < lengths[:, None])
    found, returns = ppo.gae(torch.tensor(rewards), torch.tensor(values), mask, gamma, lam)
    for row, end in enumerate(lengths):
        after = np.append(values[row, 1:end], 0.0)
        delta = rewards[row, :end] + gamma * after - values[row, :end]
        for t in range(end):
            wanted = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, end))
            assert math.isclose(found[row, t].item(), wanted, abs_tol=1e-9)
            assert math.isclose(returns[row, t].item(), wanted + values[row, t], abs_tol=1e-9)


def test_with_lambda_one_the_return_is_the_sum_of_what_follows():
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    _, returns = ppo.gae(rewards, torch.tensor([[5.0, -3.0, 0.5]]), mask, 1.0, 1.0)
    assert torch.allclose(returns, torch.tensor([[7.0, 6.0, 4.0]]))


def test_leave_one_out_compares_with_the_other_samples_of_the_prompt():
    # prompt 1: 1 - (2 + 6) / 2 = -3, 2 - 3.5 = -1.5, 6 - 1.5 = 4.5; prompt 2: all equal
    found = ppo.leave_one_out(torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), 3)
    assert torch.allclose(found, torch.tensor([-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-5, 5))
def test_whitening_is_blind_to_shift_and_scale(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 5, generator=generator) > 0.3
    mask[0, :2] = True
    found = ppo.whiten(values, mask)
    assert torch.allclose(found, ppo.whiten(values * scale + shift, mask), atol=1e-4)
    assert abs(found[mask].mean()) < 1e-6
    assert torch.all(found[~mask] == 0)


def test_rounding_is_not_whitened_into_a_signal():
    mask = torch.ones(2, 8, dtype=torch.bool)
    noise = 0.7 + 1e-6 * torch.rand(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.all(ppo.whiten(noise, mask) == 0)
    assert ppo.whiten(0.7 + 1e3 * (noise - 0.7), mask).abs().max() > 1


def test_clipping_stops_the_gradient_of_what_moved_far_in_the_wanted_direction():
    # ratios 1.5, 1.5, .5, .5 with A = +1, -1, +1, -1 and eps .2:
    # min(1.5, 1.2) = 1.2 (clipped), min(-1.5, -1.2) = -1.5, min(.5, .8) = .5, min(-.5, -.8) = -.8 (clipped)
    logprobs = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5])).requires_grad_()
    result = ppo.policy_loss(
        logprobs, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.ones(4, dtype=torch.bool), 0.2
    )
    assert math.isclose(result.loss.item(), -(1.2 - 1.5 + 0.5 - 0.8) / 4, abs_tol=1e-6)
    result.loss.backward()
    assert logprobs.grad[0] == 0
    assert logprobs.grad[3] == 0
    # d/dlog rho of -rho A / 4
    assert math.isclose(logprobs.grad[1].item(), 1.5 / 4, abs_tol=1e-6)
    assert math.isclose(logprobs.grad[2].item(), -0.5 / 4, abs_tol=1e-6)
    assert result.clip_fraction.item() == 1.0


def test_at_ratio_one_the_gradient_is_that_of_the_plain_policy_gradient():
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.0, 2.0])
    result = ppo.policy_loss(logprobs, logprobs.detach(), advantages, torch.ones(3, dtype=torch.bool), 0.2)
    result.loss.backward()
    assert torch.allclose(logprobs.grad, -advantages / 3)
    assert result.approx_kl == 0
    assert result.clip_fraction == 0


def test_masked_positions_reach_neither_loss_nor_gradient():
    mask = torch.tensor([[True, False], [True, True]])
    clean = torch.tensor([[-1.0, 0.0], [-2.0, -0.5]])
    dirty = clean.clone()
    dirty[0, 1] = NAN
    advantages = torch.tensor([[1.0, NAN], [0.5, -1.0]])
    losses = []
    for logprobs in (clean, dirty):
        leaf = logprobs.clone().requires_grad_()
        loss = ppo.policy_loss(leaf, torch.where(mask, clean, NAN) - 0.1, advantages, mask, 0.2).loss
        loss.backward()
        assert torch.isfinite(leaf.grad).all()
        losses.append((loss.item(), leaf.grad))
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])
    assert torch.isfinite(ppo.sequence_kl(dirty, clean, mask)).all()
    assert torch.isfinite(ppo.token_kl(dirty, clean, mask)).all()


def test_sequence_kl_sums_over_tokens_that_count():
    mask = torch.tensor([[True, True], [True, False]])
    found = ppo.sequence_kl(torch.tensor([[-1.0, -1.0], [-1.0, 9.0]]), torch.tensor([[-2.0, -1.5], [-3.0, 0.0]]), mask)
    assert torch.allclose(found, torch.tensor([1.5, 2.0]))


@pytest.mark.parametrize(("kl", "wanted"), [(10.0, 0.02), (5.0, 0.02 * 0.85), (0.0, 0.014), (40.0, 0.026)])
def test_the_controller_moves_beta_towards_the_target(kl, wanted):
    found = ppo.next_kl_coef(0.02, kl, 10.0, gain=0.3, low=0.005, high=0.2)
    assert math.isclose(found, wanted, rel_tol=1e-9)


def test_the_controller_stays_within_its_bounds():
    assert ppo.next_kl_coef(0.19, 100.0, 10.0, gain=0.3, low=0.005, high=0.2) == 0.2
    assert ppo.next_kl_coef(0.006, 0.0, 10.0, gain=0.3, low=0.005, high=0.2) == 0.005


class Head:
    """As a base: logits are states times weights."""

    def __init__(self, weight):
        self.weight = weight

    def logits(self, hidden):
        return hidden @ self.weight.T

    def logits_back(self, gradient, hidden):
        return gradient @ self.weight


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.2, 2.0))
def test_token_logprobs_are_those_of_the_tempered_softmax(seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    tokens = torch.randint(9, (4,), generator=generator)
    found = ppo.token_logprobs(Head(torch.eye(9, dtype=torch.float64)), logits, tokens, temperature)
    weights = np.exp(logits.numpy() / temperature)
    wanted = np.log(weights[np.arange(4), tokens.numpy()] / weights.sum(1))
    assert np.allclose(found.numpy(), wanted)


def test_the_gradient_of_token_logprobs_is_that_of_autograd_and_logits_never_live_whole():
    generator = torch.Generator().manual_seed(3)
    count = 2 * ppo.LOGIT_ROWS + 5  # in several parts, the last one short
    states = torch.randn(count, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    head = Head(torch.randn(11, 7, generator=generator, dtype=torch.float64))
    tokens, weights = torch.randint(11, (count,), generator=generator), torch.randn(count, generator=generator)
    asked = []
    whole = head.logits
    head.logits = lambda rows: asked.append(len(rows)) or whole(rows)
    (ppo.token_logprobs(head, states, tokens, 0.7) * weights).sum().backward()
    assert max(asked) == ppo.LOGIT_ROWS
    found = states.grad.clone()
    states.grad = None
    plain = torch.log_softmax(whole(states) / 0.7, dim=-1)[torch.arange(count), tokens]
    (plain * weights).sum().backward()
    assert torch.allclose(found, states.grad, atol=1e-12)


def test_ppo_finds_the_better_arm_of_a_bandit():
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(30):
        with torch.no_grad():
            arms = torch.multinomial(torch.softmax(logits, 0), 64, replacement=True, generator=generator)
            old = torch.log_softmax(logits, 0)[arms]
            rewards = (arms == 1).float()[:, None]
            mask = torch.ones(64, 1, dtype=torch.bool)
            advantages, _ = ppo.gae(rewards, torch.zeros(64, 1), mask, 1.0, 0.95)
            advantages = ppo.whiten(advantages, mask)[:, 0]
        for _ in range(2):
            loss = ppo.policy_loss(torch.log_softmax(logits, 0)[arms], old, advantages, mask[:, 0], 0.2).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.softmax(logits, 0)[1] > 0.9


def _halves(count):
    return torch.arange(count) % 2 == 1


def test_the_value_finds_a_return_that_the_outlook_foretells():
    generator = torch.Generator().manual_seed(1)
    outlook = torch.rand(64, 10, generator=generator)
    mask = torch.arange(10)[None] < torch.randint(1, 11, (64, 1), generator=generator)
    inputs = features(torch.where(mask, outlook, NAN), mask, 10)
    # Twice the outlook late in a completion, nothing of it at the start.
    returns = torch.where(mask, 0.3 + 2.0 * outlook * torch.arange(10) / 10, NAN)
    values = LinearValue().foresee(inputs, returns, mask, _halves(64))
    assert (values - returns)[mask].abs().max() < 0.1
    assert torch.all(values[~mask] == 0)


def test_no_completion_has_a_part_in_its_own_values():
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(8, 5, dtype=torch.bool)
    inputs = features(torch.rand(8, 5, generator=generator), mask, 5)
    returns = torch.rand(8, 5, generator=generator)
    value = LinearValue()
    value.foresee(inputs, torch.rand(8, 5, generator=generator), mask, _halves(8))
    other = copy.deepcopy(value)
    changed = returns.clone()
    changed[_halves(8)] += 1.0
    found, after = value.foresee(inputs, returns, mask, _halves(8)), other.foresee(inputs, changed, mask, _halves(8))
    assert torch.equal(found[_halves(8)], after[_halves(8)])
    assert not torch.isclose(found[~_halves(8)], after[~_halves(8)]).any()


def test_the_same_place_has_the_same_feature_in_every_rollout():
    short, long = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 12, dtype=torch.bool)
    found = features(torch.full((1, 12), 0.5), long, 24)[0, :3]
    assert torch.equal(features(torch.full((1, 3), 0.5), short, 24)[0], found)


def test_the_value_forgets_what_an_older_policy_came_to():
    mask = torch.ones(200, 1, dtype=torch.bool)
    inputs = features(torch.full((200, 1), 0.5), mask, 1)
    value = LinearValue()
    value.foresee(inputs, torch.zeros(200, 1), mask, _halves(200))
    for _ in range(6):
        values = value.foresee(inputs, torch.ones(200, 1), mask, _halves(200))
    assert values[0, 0] > 0.95
