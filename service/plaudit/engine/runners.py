"""Which runner serves a base: the one on packed weights if it computes what the model's own layers do."""

from __future__ import annotations

import structlog
import torch

from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base
from plaudit.engine.family import Unfit
from plaudit.engine.fidelity import COARSE, EXACT, apart, probe
from plaudit.engine.frozen import quicken
from plaudit.engine.fused import Fused
from plaudit.engine.prefixes import attend_to, causal_bias
from plaudit.engine.runner import Modules, Runner

log = structlog.get_logger(__name__)


def choose(base: Base, bank: AdapterBank, capture_layer: int, dtype: torch.dtype = torch.float32) -> Runner:
    """The runner for a base. Whatever keeps the quick one from serving is no fault: the model's own layers do.

    `dtype`: of the linears' weights on CPUs.
    """
    try:
        quick = Fused(base, bank, capture_layer, dtype)
        _require_same(base, quick, capture_layer)
    except Unfit as why:
        packed = quicken(base, dtype, layers=False)  # the bank hooks linears
        log.info("the model's own layers serve", family=type(base.model).__name__, packed=packed, why=str(why))
        return Modules(base, bank, capture_layer)
    family, together = type(base.model).__name__, quick.stands_alone
    log.info("packed linears serve", family=family, dtype=str(dtype).removeprefix("torch."), prompts_together=together)
    return quick


@torch.no_grad()
def _require_same(base: Base, quick: Fused, capture_layer: int) -> None:
    """Raise Unfit if the runner gives other trunk activations or logits than the base's own pass."""
    ids = probe(base)
    trunk = base.trunk(ids, capture_layer)
    last = base.upper(trunk, capture_layer)[0]
    past = _Whole()
    found, ours = quick.run(ids[0], torch.arange(ids.shape[1], device=base.device), past, None)
    for name, mine, theirs in (
        ("trunk activations", found, trunk[0]),
        ("hidden states", ours, last),
        ("logits", quick.logits(ours), base.logits(last)),
    ):
        difference = apart(mine, theirs, quick.format)
        if not difference <= (EXACT if quick.format == torch.float32 else COARSE):
            raise Unfit(f"{name} differ by {difference:.2g} of their spread")


class _Whole:
    """Nothing went before, and each token sees those up to itself."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        bias = causal_bias(len(query), len(query), query.device, query.dtype)
        return attend_to(query, key.transpose(0, 1), value.transpose(0, 1), bias, scaling)
