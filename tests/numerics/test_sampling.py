"""Drawing of tokens: distribution, truncation, greedy, independence of rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.engine.sampling import draw, truncate
from plaudit.types import Sampling


def test_the_uniform_number_picks_where_the_cumulative_distribution_passes_it():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    picks = {u: draw(logits, [Sampling()], [u])[0][0] for u in (0.0, 0.19, 0.21, 0.69, 0.71, 1.0)}
    assert picks == {0.0: 0, 0.19: 0, 0.21: 1, 0.69: 1, 0.71: 2, 1.0: 2}


def test_logprobs_are_raw_and_as_sampled():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    # temperature .5 squares the probabilities: .04, .25, .09 of .38
    tokens, raw, sampled = draw(logits, [Sampling(temperature=0.5)], [0.5])
    assert tokens == [1]
    assert raw[0] == pytest.approx(math.log(0.5), abs=1e-6)
    assert sampled[0] == pytest.approx(math.log(0.25 / 0.38), abs=1e-6)


def test_truncation_renormalises_what_is_left():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    _, _, sampled = draw(logits, [Sampling(top_k=2)], [0.1])
    assert sampled[0] == pytest.approx(math.log(0.5 / 0.8), abs=1e-6)


def test_greedy_takes_the_most_likely_token():
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    tokens, _, sampled = draw(logits, [Sampling(temperature=0.0)], [0.99])
    assert (tokens, sampled) == ([1], [0.0])


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 3)])
def test_the_nucleus_is_the_smallest_set_that_reaches_the_mass(top_p, kept):
    found = truncate(torch.log(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)), 0, top_p)
    assert int(torch.isfinite(found).sum()) == kept


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6), st.floats(0.05, 1.0), st.floats(0, 1, exclude_max=True))
def test_a_drawn_token_is_always_one_that_was_kept(seed, top_k, top_p, uniform):
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed)) * 3
    tokens, _, sampled = draw(logits, [Sampling(top_k=top_k, top_p=top_p)], [uniform])
    assert math.isfinite(sampled[0])
    assert torch.isfinite(truncate(logits[0], top_k, top_p)[tokens[0]])


def test_rows_do_not_see_each_other():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    settings_ = [Sampling(temperature=0.7), None, Sampling(top_p=0.5)]
    together = draw(logits, settings_, [0.3, 0.0, 0.9])
    for row in (0, 2):
        alone = draw(logits[row : row + 1], [settings_[row]], [[0.3, 0.0, 0.9][row]])
        assert [each[row] for each in together] == [each[0] for each in alone]


def test_frequencies_follow_the_probabilities():
    logits = torch.log(torch.tensor([0.1, 0.2, 0.7])).expand(4000, 3)
    uniforms = torch.rand(4000, generator=torch.Generator().manual_seed(3)).tolist()
    tokens, _, _ = draw(logits, [Sampling()] * 4000, uniforms)
    shares = [tokens.count(i) / 4000 for i in range(3)]
    # three standard errors of a share of .7 among 4,000 are .022
    assert shares == pytest.approx([0.1, 0.2, 0.7], abs=0.022)
