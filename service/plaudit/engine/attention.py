"""Attention as this engine computes it, for one shape of keys or another, and what single families add to it.

Letters: B sequences, T queries, L keys, Hq query heads, Hk key heads, D their size. Pure functions of tensors.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "plaudit_grouped"


class Beyond(NamedTuple):
    """What a layer's attention does beyond the plain one."""

    window: int | None = None
    """A token sees itself and the window - 1 tokens before it (Beltagy et al. 2020, arXiv:2004.05150)."""
    cap: float | None = None
    """A score s becomes cap tanh(s / cap) (Gemma 2, arXiv:2408.00118, section 2.2)."""
    sinks: torch.Tensor | None = None
    """(Hq,) scores that take weight and give nothing (gpt-oss; Xiao et al. 2023, arXiv:2309.17453)."""


PLAIN = Beyond()


class KeysInPieces(Protocol):
    """Keys and values that do not lie in one tensor, as those of a lane."""

    def attend(self, query: torch.Tensor, scaling: float | None, beyond: Beyond | None) -> torch.Tensor:
        """Attention (B, T, Hq, D) of queries (B, Hq, T, D)."""


def grouped_attention(
    module: torch.nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor | KeysInPieces,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in which the query heads of a group share their key without copies of it.

    query (B, Hq, T, D); key, value (B, Hk, L, D); attention_mask is added to the scores, (B or 1, 1, T, L), and
    None means causal, the last query standing at the last key. Returns (B, T, Hq, D). Keys in pieces hold their values
    and masks themselves. The names are those by which transformers' layers say what is Beyond here; a window beside a
    mask needs position_ids (B or 1, T), and keys before the pass's own then stand at 0, 1, 2, ...
    """
    beyond = None
    if sliding_window is not None or softcap is not None or s_aux is not None:
        beyond = Beyond(sliding_window, softcap, s_aux)
    if not isinstance(key, torch.Tensor):
        return key.attend(query, scaling, beyond), None
    batch, heads, length, dim = query.shape
    groups, keys = key.shape[1:3]
    scale = scaling if scaling is not None else dim**-0.5
    if attention_mask is None:
        attention_mask = causal_bias(length, keys, query.device, query.dtype, sliding_window)[None, None]
    elif sliding_window is not None:
        attention_mask = attention_mask + _window_bias(position_ids, keys, sliding_window, query.dtype)
    grouped = (query * scale).reshape(batch, groups, (heads // groups) * length, dim)
    scores = (grouped @ key.transpose(2, 3)).view(batch, groups, heads // groups, length, keys)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + attention_mask.unsqueeze(2)
    if s_aux is None:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    else:
        sinks = s_aux.to(scores.dtype).view(1, groups, heads // groups, 1, 1).expand(batch, -1, -1, length, 1)
        weights = torch.softmax(torch.cat([scores, sinks], -1), dim=-1, dtype=torch.float32)[..., :-1].to(value.dtype)
    mixed = weights.reshape(batch, groups, (heads // groups) * length, keys) @ value
    return mixed.view(batch, heads, length, value.shape[-1]).transpose(1, 2), None


def attend_to(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    scaling: float,
    beyond: Beyond | None = None,
) -> torch.Tensor:
    """Attention (T, Hq, Dv) of queries (T, Hq, D) to keys (Hk, L, D) and values (Hk, L, Dv); bias (T, L) is added.

    The bias has the window in it.
    """
    heads = query.transpose(0, 1)[None]
    if beyond is not None and (beyond.cap is not None or beyond.sinks is not None):
        mixed, _ = grouped_attention(
            None, heads, keys[None], values[None], bias[None, None], scaling, softcap=beyond.cap, s_aux=beyond.sinks
        )
        return mixed[0]
    mixed = torch.nn.functional.scaled_dot_product_attention(
        heads, keys[None], values[None], attn_mask=bias, scale=scaling, enable_gqa=True
    )
    return mixed[0].transpose(0, 1)


def causal_bias(
    length: int, keys: int, device: torch.device, dtype: torch.dtype, window: int | None = None
) -> torch.Tensor:
    """0 where query t may see key l (0 <= keys - length + t - l < window), -inf elsewhere: (T, L)."""
    query_at = torch.arange(keys - length, keys, device=device)[:, None]
    back = query_at - torch.arange(keys, device=device)[None]
    unseen = back < 0 if window is None else (back < 0) | (back >= window)
    return torch.zeros(length, keys, device=device, dtype=dtype).masked_fill_(unseen, -math.inf)


def _window_bias(positions: torch.Tensor | None, keys: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    """-inf where a key stands too far before a query of positions (B or 1, T), 0 elsewhere: (B or 1, 1, T, L)."""
    if positions is None:
        raise ValueError("a layer with a window does not tell its attention where the tokens stand")
    before = torch.arange(keys - positions.shape[1], device=positions.device).expand(len(positions), -1)
    back = positions[:, :, None] - torch.cat([before, positions], dim=1)[:, None]
    return torch.zeros(back.shape, device=back.device, dtype=dtype).masked_fill_(back >= window, -math.inf)[:, None]


def register_attention() -> None:
    """Let models name this attention; registering the same function again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, grouped_attention)
