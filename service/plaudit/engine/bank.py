"""A bank of LoRA adapters from which each row of a batch takes its own.

In: adapters in PEFT's format. Out: a correction added by every target linear of the base, row by row. Slot 0 is the
base: nothing is added. A slot is written while no row uses it, so loading never disturbs decoding.

The adapters of all slots stand side by side in one pair of matrices, so that a batch of any mixture is two products
of one shape; what is not a row's own is cut out between the two. A row's bits therefore depend neither on its
neighbours' adapters nor on what else is staged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from plaudit.engine.base import Base
from plaudit.engine.targets import linears, start_layer, targets
from plaudit.errors import BadArtifact


class AdapterBank:
    """Slots 1..`slots` of rank `rank` on the top `layers` layers of a base, applied by forward hooks."""

    def __init__(self, base: Base, *, layers: int, rank: int, slots: int) -> None:
        self.rank = rank
        self.slots = slots
        self._owner = torch.arange(1, slots + 1, device=base.device).repeat_interleave(rank)  # (S R,)
        self._own: torch.Tensor | None = None
        self._weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        names = targets(base, layers)
        for index in range(start_layer(base, layers), base.num_layers):
            for name in linears(base, index):
                if name.rpartition(".")[2] in names:
                    module = base.layer(index).get_submodule(name)
                    # PEFT may have wrapped the linear; the hook belongs on the base's own.
                    linear: Any = getattr(module, "base_layer", module)
                    self._hook(f"layers.{index}.{name}", linear)

    def use(self, rows: torch.Tensor | None) -> None:
        """Slots (W,) of the rows of the batches that follow; None while no adapter takes part."""
        self._own = None if rows is None else rows[:, None, None] == self._owner

    def _hook(self, name: str, linear: torch.nn.Linear) -> None:
        down = linear.weight.new_zeros(linear.in_features, self.slots * self.rank)
        up = linear.weight.new_zeros(self.slots * self.rank, linear.out_features)
        self._weights[name] = (down, up)

        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if self._own is None:
                return None
            # Cut out, not multiplied by zero: a slot that is being written may hold anything.
            low = torch.where(self._own, inputs[0] @ down, 0.0)  # (W, T, S R)
            return torch.addmm(output.flatten(0, 1), low.flatten(0, 1), up).view_as(output)

        linear.register_forward_hook(add)

    def write(self, slot: int, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
        """Put an adapter into a slot; raises BadArtifact, and leaves the slot zero, where it does not fit."""
        rank, scale = int(config["r"]), float(config["lora_alpha"]) / float(config["r"])
        self.clear(slot)
        if rank > self.rank:
            raise BadArtifact(
                f"adapter of rank {rank} does not fit a bank of rank {self.rank}; raise model.adapter_rank"
            )
        try:
            self._copy(slot, rank, scale, state)
        except BadArtifact:
            self.clear(slot)
            raise

    def _copy(self, slot: int, rank: int, scale: float, state: Mapping[str, torch.Tensor]) -> None:
        used = 0
        for name, (down, up) in self._weights.items():
            a, b = (next((v for k, v in state.items() if f".{name}.lora_{ab}." in k), None) for ab in "AB")
            if a is None or b is None:
                continue
            if a.shape != (rank, down.shape[0]) or b.shape != (up.shape[1], rank):
                raise BadArtifact(f"adapter was made for another base: {name} is {tuple(a.shape)} x {tuple(b.shape)}")
            if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
                # Its neighbours' zeros would not stop it: 0 x inf is no number.
                raise BadArtifact(f"adapter has weights in {name} that are no finite numbers; train the release anew")
            own = self._place(slot)
            down[:, own][:, :rank] = a.T
            up[own][:rank] = b.T * scale
            used += 2
        if used != len(state) or not used:
            raise BadArtifact(
                f"adapter has {len(state)} weights of which {used} fit this base's adapter layers; "
                "it was made for another base or with more model.adapter_layers"
            )

    def clear(self, slot: int) -> None:
        """Make a slot zero."""
        own = self._place(slot)
        for down, up in self._weights.values():
            down[:, own].zero_()
            up[own].zero_()

    def _place(self, slot: int) -> slice:
        return slice((slot - 1) * self.rank, slot * self.rank)
