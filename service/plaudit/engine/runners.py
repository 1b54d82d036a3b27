"""Which runner serves a base: the one on packed weights if it computes what the model's own layers do."""

from __future__ import annotations

import structlog
import torch

from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base
from plaudit.engine.fused import Fused, Unfit
from plaudit.engine.prefixes import attend_to, causal_bias
from plaudit.engine.runner import Modules, Runner

log = structlog.get_logger(__name__)

# Difference of two passes in fp32, relative to the spread of what they give and to each number: sums in another order.
EXACT = 1e-3
PROBE_TOKENS = 48


def choose(base: Base, bank: AdapterBank, capture_layer: int) -> Runner:
    """The runner for a base. Whatever keeps the quick one from serving is no fault: the model's own layers do."""
    try:
        quick = Fused(base, bank, capture_layer)
        _require_same(base, quick, capture_layer)
    except Unfit as why:
        log.info("the model's own layers serve", family=type(base.model).__name__, why=str(why))
        return Modules(base, bank, capture_layer)
    log.info("packed linears serve", family=type(base.model).__name__, prompts_together=quick.stands_alone)
    return quick


@torch.no_grad()
def _require_same(base: Base, quick: Fused, capture_layer: int) -> None:
    """Raise Unfit if the runner gives other trunk activations or logits than the base's own pass."""
    tokens = [i * 7919 % base.vocab_size for i in range(PROBE_TOKENS)]
    ids = torch.tensor([tokens], device=base.device)
    trunk = base.trunk(ids, capture_layer)
    last = base.upper(trunk, capture_layer)[0]
    past = _Whole()
    found, ours = quick.run(ids[0], torch.arange(PROBE_TOKENS, device=base.device), past, None)
    for name, mine, theirs in (
        ("trunk activations", found, trunk[0]),
        ("hidden states", ours, last),
        ("logits", quick.logits(ours), base.logits(last)),
    ):
        apart = _apart(mine, theirs)
        if not apart <= EXACT:
            raise Unfit(f"{name} differ by {apart:.2g} of their spread")


def _apart(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference relative to the spread or, of a number far outside of it, to the number itself.

    Trained models give their first token activations of thousands of spreads (Sun et al. 2024, arXiv:2402.17762), and
    rounding is relative: 0.2 of 20,000 is as exact as fp32 gets.
    """
    return float(((mine - theirs).abs() / (theirs.abs() + theirs.std())).max())


class _Whole:
    """Nothing went before, and each token sees those up to itself."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        bias = causal_bias(len(query), len(query), query.device, query.dtype)
        return attend_to(query, key.transpose(0, 1), value.transpose(0, 1), bias, scaling)
