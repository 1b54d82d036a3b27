"""Drawing of tokens: distribution, truncation, greedy, independence of rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.engine.sampling import SMALLEST_TEMPERATURE, Memory, check, draw, truncate
from plaudit.errors import InvalidField
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


EDGES = [5e-324, 1e-45, 1e-38, 1e-30, 1e-10, SMALLEST_TEMPERATURE, 0.01, 1.0, 100.0, 1e30, 3.4e38, 1e300]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-1e5, 1e5, width=32), st.just(-math.inf)), min_size=2, max_size=600),
    st.one_of(st.sampled_from(EDGES), st.floats(0, 1e308)),
    st.one_of(st.sampled_from([0.0, 5e-324, 1e-45, 1.0]), st.floats(0, 1)),
    st.one_of(st.sampled_from([0, 1, 2**31, 2**63]), st.integers(0, 700)),
    st.one_of(st.sampled_from([0.0, 5e-324, 1.0 - 2.0**-53]), st.floats(0, 1, exclude_max=True)),
)
def test_every_setting_that_is_not_refused_draws_a_token_that_can_be_drawn(row, temperature, top_p, top_k, uniform):
    logits = torch.tensor([row])
    chosen = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    check(chosen)
    (token,), (raw,), (sampled,) = draw(logits, [chosen], [uniform])
    assert 0 <= token < len(row)
    if all(value == -math.inf for value in row):
        assert math.isnan(raw)
    else:
        assert math.isfinite(logits[0, token])
        assert math.isfinite(raw)
        assert -math.inf < sampled <= 1e-4


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-45, 1e-5, SMALLEST_TEMPERATURE * 0.999])
def test_below_the_smallest_temperature_the_most_likely_token_is_taken(temperature):
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]]))
    assert draw(logits, [Sampling(temperature=temperature)], [0.99])[::2] == ([1], [0.0])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temperature": value} for value in (math.nan, math.inf, -1.0, -5e-324)),
        *({"top_p": value} for value in (math.nan, math.inf, -0.1, 1.1)),
        {"top_k": -1},
        {"max_tokens": 0},
    ],
)
def test_settings_that_no_draw_can_follow_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(InvalidField, match=f"sampling.{name}"):
        check(Sampling(**wrong))


def test_a_row_that_is_not_numbers_spoils_no_neighbour():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    wanted = draw(logits, [Sampling()] * 3, [0.3, 0.4, 0.9])
    spoilt = logits.clone()
    spoilt[1, 7] = math.nan
    found = draw(spoilt, [Sampling()] * 3, [0.3, 0.4, 0.9])
    assert math.isnan(found[1][1])
    for row in (0, 2):
        assert [each[row] for each in found] == [each[row] for each in wanted]


@pytest.mark.parametrize("size", [300, 512])
def test_memory_that_is_used_again_changes_no_draw(size):
    memory = Memory()
    generator = torch.Generator().manual_seed(4)
    for round_ in range(6):
        logits = torch.randn(3, size, generator=generator) * 4
        kinds = [Sampling(), Sampling(temperature=0.7), Sampling(temperature=0.0)]
        chosen = kinds[round_ % 3 :] + kinds[: round_ % 3]
        uniforms = torch.rand(3, generator=generator).tolist()
        assert draw(logits, chosen, uniforms, memory) == draw(logits, chosen, uniforms)


@pytest.mark.parametrize("size", [300, 512, 1024])
def test_of_equal_logits_the_first_is_the_most_likely(size):
    logits = torch.zeros(2, size)
    logits[0, [260, 17, 299]] = 1.0
    assert draw(logits, [Sampling(temperature=0.0)] * 2, [0.5, 0.5])[0] == [17, 0]
