"""Which runner serves a base: the one on packed weights if it computes what the model's own layers do."""

from __future__ import annotations

import numpy as np
import structlog
import torch

from plaudit.engine import kernels
from plaudit.engine.attention import Beyond, attend_to, causal_bias
from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base
from plaudit.engine.family import Unfit
from plaudit.engine.fidelity import COARSE, EXACT, apart, probe
from plaudit.engine.frozen import quicken
from plaudit.engine.fused import Fused
from plaudit.engine.runner import Modules, Places, Runner
from plaudit.errors import Misconfigured

log = structlog.get_logger(__name__)


def choose(base: Base, bank: AdapterBank, capture_layer: int, dtype: torch.dtype = torch.float32) -> Runner:
    """The runner for a base. Whatever keeps the quick one from serving is no fault: the model's own layers do.

    `dtype`: of the linears' weights on CPUs. There is no other way to compute in int8: raises Misconfigured.
    """
    try:
        quick = _quick(base, bank, capture_layer, dtype)
    except Unfit as why:
        if dtype == torch.int8:
            raise Misconfigured(
                f"engine.dtype is int8, which is for bases of the Llama family that are loaded in float32 on a CPU; "
                f"this is a {type(base.model).__name__} in {str(base.dtype).removeprefix('torch.')} on "
                f"{base.device.type} ({why}); set engine.dtype to auto or float32",
                setting="engine.dtype",
            ) from why
        packed = quicken(base, dtype, layers=False)  # the bank hooks linears
        log.info("the model's own layers serve", family=type(base.model).__name__, packed=packed, why=str(why))
        return Modules(base, bank, capture_layer)
    family, together = type(base.model).__name__, quick.stands_alone
    log.info(
        "packed linears serve",
        family=family,
        dtype=str(dtype).removeprefix("torch."),
        prompts_together=together,
        kernels=quick.compiled,
    )
    return quick


def _quick(base: Base, bank: AdapterBank, capture_layer: int, dtype: torch.dtype) -> Fused:
    """The runner on packed weights, with kernels unless they give other numbers; raises Unfit."""
    compiled = kernels.load()
    if compiled is not None:
        quick = Fused(base, bank, capture_layer, dtype, compiled)
        try:
            _require_same(base, quick, capture_layer)
        except Unfit as why:
            log.warning("kernels do not compute this base", why=str(why))
        else:
            return quick
    quick = Fused(base, bank, capture_layer, dtype)
    _require_same(base, quick, capture_layer)
    return quick


def _require_same(base: Base, quick: Fused, capture_layer: int) -> None:
    """Raise Unfit if the runner gives other trunk activations or logits than the base's own pass, or none."""
    try:
        _compare(base, quick, capture_layer)
    except Unfit:
        raise
    except Exception as error:  # kernels and operators raise what they like for shapes that they do not take
        lines = str(error).strip().splitlines()
        raise Unfit(f"{type(error).__name__}: {lines[0][:120] if lines else ''}") from error


@torch.no_grad()
def _compare(base: Base, quick: Fused, capture_layer: int) -> None:
    ids = probe(base)
    trunk = base.trunk(ids, capture_layer)
    last = base.upper(trunk, capture_layer)[0]
    past, places = _Whole(), torch.arange(ids.shape[1], device=base.device)
    found, ours = quick.run(ids[0], places, past, None)
    # The last token once more, as a step behind the others.
    step, stepped = quick.run(ids[0, -1:], places[-1:], _Step(past), None)
    for name, mine, theirs in (
        ("trunk activations", found, trunk[0]),
        ("hidden states", ours, last),
        ("logits", quick.logits(ours).clone(), base.logits(last)),
        ("trunk activations of a step", step, trunk[0, -1:]),
        ("hidden states of a step", stepped, last[-1:]),
        ("logits of a step", quick.logits(stepped, step=True), base.logits(last[-1:])),
    ):
        difference = apart(mine, theirs, quick.format)
        if not difference <= (EXACT if quick.format == torch.float32 else COARSE):
            raise Unfit(f"{name} differ by {difference:.2g} of their spread")


class _Whole:
    """Nothing went before, and each token sees those up to itself."""

    def __init__(self) -> None:
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys and values (1, Hk, N, D) of each layer

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scaling: float,
        beyond: Beyond | None = None,
    ) -> torch.Tensor:
        bias = causal_bias(len(query), len(query), query.device, query.dtype)
        keys, values = key.transpose(0, 1).contiguous(), value.transpose(0, 1).contiguous()
        self.kept.append((keys[None], values[None]))
        return attend_to(query, keys, values, bias, scaling)


class _Step:
    """The last token of a pass again; what its keys and values were is written over."""

    def __init__(self, whole: _Whole) -> None:
        self._kept = whole.kept

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        scaling: float,
        beyond: Beyond | None = None,
    ) -> torch.Tensor:
        keys, values = (
            torch.cat([of[0, :, :-1], fresh.transpose(0, 1)], dim=1)
            for of, fresh in zip(self._kept[layer], (key, value), strict=True)
        )
        return attend_to(query, keys, values, torch.zeros(1, keys.shape[1]), scaling)

    def places(self) -> list[Places]:
        keys, values = ([each.numpy() for each in of] for of in zip(*self._kept, strict=True))
        first = np.zeros(1, dtype=np.int64)
        return [Places(first, first, keys, values)]
