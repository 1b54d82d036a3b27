"""A bank of LoRA adapters from which each row of a batch takes its own.

In: adapters in PEFT's format. Out: a correction of what each target linear of the base gives, row by row. Slot 0 is
the base: nothing is added. A slot is written while no row uses it, so loading never disturbs decoding.

A row's bits depend neither on its neighbours' adapters nor on what else is staged. A kernel computes each row's own
adapter and nothing else (`kernels.adapters`). If there is none, or it does not take these numbers (other formats, other
devices), products over all slots do, and what is not a row's own is cut out between the two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from plaudit.engine.base import Base
from plaudit.engine.targets import linears, start_layer, targets
from plaudit.errors import BadArtifact


class _Used(threading.local):
    """Each thread its own: a trainer's passes over the same linears are none of the engine's."""

    mixture: Mixture | None = None


class AdapterBank:
    """Slots 1..`slots` of rank `rank` on the top `layers` layers of a base."""

    def __init__(self, base: Base, *, layers: int, rank: int, slots: int) -> None:
        self.rank = rank
        self.slots = slots
        # The first layer that may have adapters.
        self.start = start_layer(base, layers)
        self._place_of = base.place
        self._used = _Used()
        # Of each linear: (slots, R, inputs) and (slots, R, outputs), the first for slot 1.
        self._weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._linears: dict[str, torch.nn.Linear] = {}
        self._lock = threading.Lock()
        names = targets(base, layers)
        for index in range(self.start, base.num_layers):
            for name in linears(base, index):
                if name.rpartition(".")[2] in names:
                    module = base.layer(index).get_submodule(name)
                    # PEFT may have wrapped the linear; what is corrected is the base's own.
                    linear: Any = getattr(module, "base_layer", module)
                    self._linears[base.place(index, name)] = linear
                    self._weights[base.place(index, name)] = (
                        linear.weight.new_zeros(slots, rank, linear.in_features),
                        linear.weight.new_zeros(slots, rank, linear.out_features),
                    )

    def hook(self) -> None:
        """Let the base's own linears add their adapters, as `use` says."""
        for name, linear in self._linears.items():
            linear.register_forward_hook(self._adder(Correction([self._weights[name]])))

    def use(self, mixture: Mixture | None) -> None:
        """The adapters of the tokens of this thread's passes that follow; None while no adapter takes part."""
        self._used.mixture = mixture

    def _adder(self, correction: Correction) -> Callable[..., torch.Tensor | None]:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if (mixture := self._used.mixture) is None:
                return None
            corrected = output.flatten(0, -2).contiguous()
            mixture.add(correction, inputs[0].flatten(0, -2).contiguous(), corrected)
            return corrected.view_as(output)

        return add

    def correction(self, index: int, names: Sequence[str], sizes: Sequence[int]) -> Correction | None:
        """What layer `index` adds to the linears `names` side by side, of `sizes` outputs; None if none has adapters.

        All names take the same input.
        """
        full = [self._place_of(index, name) for name in names]
        pairs = [self._weights.get(place, size) for place, size in zip(full, sizes, strict=True)]
        return None if all(isinstance(pair, int) for pair in pairs) else Correction(pairs)

    def mixture(self, slots: torch.Tensor, kernels: Any | None) -> Mixture:
        """Adapters of the tokens of a pass, of slots (N,), by `kernels` (kernels.load) if they take these numbers."""
        first = next(iter(self._weights.values()), None)
        if kernels is None or first is None or first[0].device.type != "cpu" or first[0].dtype != torch.float32:
            return Masked(slots, self.slots, self.rank)
        return Own(slots, kernels)

    # Slots -----------------------------------------------------------------------------------------

    def write(self, slot: int, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
        """Put an adapter into a slot; raises BadArtifact, and leaves the slot zero, if it does not fit."""
        rank, scale = int(config["r"]), float(config["lora_alpha"]) / float(config["r"])
        if rank > self.rank:
            raise BadArtifact(
                f"adapter of rank {rank} does not fit a bank of rank {self.rank}; raise model.adapter_rank"
            )
        with self._lock:
            self._clear(slot)
            try:
                self._copy(slot, rank, scale, state)
            except BadArtifact:
                self._clear(slot)
                raise

    def _copy(self, slot: int, rank: int, scale: float, state: Mapping[str, torch.Tensor]) -> None:
        used = 0
        for name, (down, up) in self._weights.items():
            a, b = (next((v for k, v in state.items() if f".{name}.lora_{ab}." in k), None) for ab in "AB")
            if a is None or b is None:
                continue
            if a.shape != (rank, down.shape[2]) or b.shape != (up.shape[2], rank):
                raise BadArtifact(f"adapter was made for another base: {name} is {tuple(a.shape)} x {tuple(b.shape)}")
            if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
                # Its neighbours' zeros would not stop it: 0 x inf is no number.
                raise BadArtifact(f"adapter has weights in {name} that are not finite numbers; train the release anew")
            down[slot - 1, :rank] = a
            up[slot - 1, :rank] = b.T * scale
            used += 2
        if used != len(state) or not used:
            raise BadArtifact(
                f"adapter has {len(state)} weights of which {used} fit this base's adapter layers; "
                "it was made for another base or with more model.adapter_layers"
            )

    def _clear(self, slot: int) -> None:
        for down, up in self._weights.values():
            down[slot - 1].zero_()
            up[slot - 1].zero_()


class Correction:
    """What the adapters of all slots add to linears that share their input, whose outputs lie side by side.

    `linears` are their pairs of matrices, (slots, R, inputs) and (slots, R, outputs), or the outputs of one without
    adapters.
    """

    def __init__(self, linears: Sequence[tuple[torch.Tensor, torch.Tensor] | int]) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        """With the first column of each linear that has adapters."""
        self.width = 0
        for pair in linears:
            if not isinstance(pair, int):
                self.pairs.append((*pair, self.width))
            self.width += pair if isinstance(pair, int) else pair[1].shape[2]
        self._for_kernel: Any | None = None

    def for_kernel(self, kernels: Any) -> Any:
        """The same as a kernel takes it."""
        if self._for_kernel is None:
            self._for_kernel = kernels.linears(self.pairs, self.width)
        return self._for_kernel


class Mixture(Protocol):
    """The adapters of the tokens of a pass."""

    def add(self, correction: Correction, rows: torch.Tensor, output: torch.Tensor) -> None:
        """Add to `output` (N, outs) each row's own correction for its input (N, in); both are contiguous."""


class Own:
    """A Mixture by a kernel, of tokens of slots (N,)."""

    def __init__(self, slots: torch.Tensor, kernels: Any) -> None:
        self._kernels = kernels
        self._arranged = kernels.arranged(slots.numpy())

    def add(self, correction: Correction, rows: torch.Tensor, output: torch.Tensor) -> None:
        """As Mixture.add."""
        self._arranged.add(correction.for_kernel(self._kernels), rows, output)


class Masked:
    """A Mixture by products over all slots, of tokens of slots (N,)."""

    def __init__(self, slots: torch.Tensor, count: int, rank: int) -> None:
        owners = torch.arange(1, count + 1, device=slots.device).repeat_interleave(rank)
        self._own = slots[:, None] == owners  # (N, S R)

    def add(self, correction: Correction, rows: torch.Tensor, output: torch.Tensor) -> None:
        """As Mixture.add."""
        for down, up, first in correction.pairs:
            # Cut out, not multiplied by zero: a slot that is being written may hold anything.
            low = torch.where(self._own, rows @ down.flatten(0, 1).T, 0.0)
            output[:, first : first + up.shape[2]].addmm_(low, up.flatten(0, 1))
