"""Attention with windows, caps and sinks, against one query at a time; and the logits' way back through a cap."""

from __future__ import annotations

import math

import pytest
import torch
from plaudit.engine.attention import Beyond, attend_to, causal_bias, grouped_attention
from plaudit.engine.decoder import AfterHead

HEADS, GROUPS, SIZE, SCALING = 4, 2, 8, 0.3
BEYOND = [Beyond(), Beyond(window=3), Beyond(cap=0.5), Beyond(sinks=torch.tensor([0.1, -1.0, 2.0, 0.0]))]
BEYOND.append(Beyond(4, 0.7, torch.tensor([1.0, 0.0, -0.5, 0.3])))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(query, keys, values, positions, beyond):
    """Attention (T, Hq, D) of the last T of L tokens at `positions` (L,), by its definition."""
    found = torch.zeros(query.shape)
    before = len(keys) - len(query)
    for t in range(len(query)):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            scores, seen = [], []
            for at in range(before + t + 1):
                if beyond.window is not None and positions[before + t] - positions[at] >= beyond.window:
                    continue
                score = SCALING * float(query[t, head] @ keys[at, group])
                scores.append(score if beyond.cap is None else beyond.cap * math.tanh(score / beyond.cap))
                seen.append(at)
            sink = [] if beyond.sinks is None else [float(beyond.sinks[head])]
            total = sum(math.exp(each) for each in [*scores, *sink])
            for score, at in zip(scores, seen, strict=True):
                found[t, head] += math.exp(score) / total * values[at, group]
    return found


@pytest.mark.parametrize("beyond", BEYOND)
def test_attention_is_what_its_definition_says(beyond):
    query, keys, values = drawn(4, HEADS, SIZE), drawn(9, GROUPS, SIZE, seed=1), drawn(9, GROUPS, SIZE, seed=2)
    wanted = one_by_one(query, keys, values, list(range(9)), beyond)
    bias = causal_bias(4, 9, query.device, query.dtype, beyond.window)
    by_parts = attend_to(query, keys.transpose(0, 1), values.transpose(0, 1), bias, SCALING, beyond)
    torch.testing.assert_close(by_parts, wanted, atol=1e-5, rtol=1e-5)
    several = [each.transpose(0, 1)[None] for each in (query, keys, values)]
    more = {"sliding_window": beyond.window, "softcap": beyond.cap, "s_aux": beyond.sinks}
    torch.testing.assert_close(
        grouped_attention(None, *several, None, SCALING, **more)[0][0], wanted, atol=1e-5, rtol=1e-5
    )


def test_a_window_counts_positions_not_places():
    """Two texts that share three tokens, one after another: the second begins where the first did."""
    query, keys, values = drawn(6, HEADS, SIZE), drawn(9, GROUPS, SIZE, seed=1), drawn(9, GROUPS, SIZE, seed=2)
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 3, 4, 5])
    unseen = torch.ones(6, 9, dtype=torch.bool).triu(4)
    unseen[3:, 3:6] = True  # the second text does not see the first
    mask = torch.zeros(1, 1, 6, 9).masked_fill(unseen, -math.inf)
    several = [each.transpose(0, 1)[None] for each in (query, keys, values)]
    more = {"sliding_window": 3, "position_ids": positions[None, 3:]}
    found = grouped_attention(None, *several, mask, SCALING, **more)[0][0]
    second = [0, 1, 2, 6, 7, 8]
    wanted = one_by_one(query[3:], keys[second], values[second], list(range(6)), Beyond(window=3))
    torch.testing.assert_close(found[3:], wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="does not tell"):
        grouped_attention(None, *several, mask, SCALING, sliding_window=3)


@pytest.mark.parametrize("after", [AfterHead(), AfterHead(0.5), AfterHead(cap=2.0), AfterHead(0.5, 3.0)])
def test_the_slope_behind_the_head_is_its_derivative(after):
    product = drawn(5, 7).mul(3).requires_grad_()
    logits = after.of(product)
    (wanted,) = torch.autograd.grad(logits.sum(), product)
    torch.testing.assert_close(after.slope(product.detach()), wanted)
    if after.cap is not None:
        assert logits.abs().max() < after.cap
