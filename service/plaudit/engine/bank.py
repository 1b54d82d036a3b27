"""A bank of LoRA adapters from which each row of a batch takes its own.

In: adapters in PEFT's format. Out: a correction of what each target linear of the base gives, row by row. Slot 0 is
the base: nothing is added. A slot is written while no row uses it, so loading never disturbs decoding.

The adapters of all slots stand side by side in one pair of matrices, so that a batch of any mixture is two products
of one shape; what is not a row's own is cut out between the two. A row's bits therefore depend neither on its
neighbours' adapters nor on what else is staged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from plaudit.engine.base import Base
from plaudit.engine.packed import Packed
from plaudit.engine.targets import linears, start_layer, targets
from plaudit.errors import BadArtifact


class AdapterBank:
    """Slots 1..`slots` of rank `rank` on the top `layers` layers of a base."""

    def __init__(self, base: Base, *, layers: int, rank: int, slots: int) -> None:
        self.rank = rank
        self.slots = slots
        # The first layer that may have adapters.
        self.start = start_layer(base, layers)
        self._owner = torch.arange(1, slots + 1, device=base.device).repeat_interleave(rank)  # (S R,)
        self._own: torch.Tensor | None = None
        self._weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._linears: dict[str, torch.nn.Linear] = {}
        self._lock = threading.Lock()
        self._groups: dict[tuple[str, ...], Correction] = {}
        names = targets(base, layers)
        for index in range(self.start, base.num_layers):
            for name in linears(base, index):
                if name.rpartition(".")[2] in names:
                    module = base.layer(index).get_submodule(name)
                    # PEFT may have wrapped the linear; what is corrected is the base's own.
                    linear: Any = getattr(module, "base_layer", module)
                    self._linears[f"layers.{index}.{name}"] = linear
                    self._weights[f"layers.{index}.{name}"] = (
                        linear.weight.new_zeros(linear.in_features, slots * rank),
                        linear.weight.new_zeros(slots * rank, linear.out_features),
                    )

    # For linears that are computed one by one by the model's own modules ---------------------------

    def hook(self) -> None:
        """Let the base's own linears add their adapters, as `use` says."""
        for name, linear in self._linears.items():
            linear.register_forward_hook(self._adder(*self._weights[name]))

    def use(self, rows: torch.Tensor | None) -> None:
        """Slots (N,) of the tokens of the passes that follow; None while no adapter takes part."""
        self._own = None if rows is None else rows[:, None] == self._owner

    def _adder(self, down: torch.Tensor, up: torch.Tensor) -> Callable[..., torch.Tensor | None]:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if self._own is None:
                return None
            # Cut out, not multiplied by zero: a slot that is being written may hold anything.
            low = torch.where(self._own, inputs[0].flatten(0, -2) @ down, 0.0)  # (N, S R)
            return torch.addmm(output.flatten(0, -2), low, up).view_as(output)

        return add

    # For linears that are computed as one ----------------------------------------------------------

    def correction(self, index: int, names: Sequence[str], sizes: Sequence[int]) -> Correction | None:
        """What layer `index` adds to the linears `names` side by side, of `sizes` outputs; None if none has adapters.

        All names take the same input.
        """
        full = tuple(f"layers.{index}.{name}" for name in names)
        if not any(name in self._weights for name in full):
            return None
        with self._lock:
            found = Correction(self._pairs(full, sizes), self.rank, self.slots)
            self._groups[full] = found
        return found

    def others(self, slots: torch.Tensor) -> torch.Tensor:
        """What is not a token's own, True (N, S R), of slots (N,)."""
        return slots[:, None] != self._owner

    def _pairs(self, names: Sequence[str], sizes: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor] | int]:
        return [self._weights.get(name, size) for name, size in zip(names, sizes, strict=True)]

    # Slots -----------------------------------------------------------------------------------------

    def write(self, slot: int, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
        """Put an adapter into a slot; raises BadArtifact, and leaves the slot zero, where it does not fit."""
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
            finally:
                for correction in self._groups.values():
                    correction.pack()

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

    def _clear(self, slot: int) -> None:
        own = self._place(slot)
        for down, up in self._weights.values():
            down[:, own].zero_()
            up[own].zero_()

    def _place(self, slot: int) -> slice:
        return slice((slot - 1) * self.rank, slot * self.rank)


class Correction:
    """What the adapters of all slots add to linears that share their input, as two packed products.

    The first gives every slot's low-rank activations, of all linears side by side; the second, whose matrix is block by
    block, carries what was left of them to the outputs.
    """

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor] | int], rank: int, slots: int) -> None:
        self._pairs, self._wide = pairs, rank * slots
        self._adapted = sum(not isinstance(pair, int) for pair in pairs)
        self.pack()

    def pack(self) -> None:
        """Take the bank's weights as they are now; a pass under way goes on with what it has."""
        down = [pair[0].T for pair in self._pairs if not isinstance(pair, int)]
        outs = [pair if isinstance(pair, int) else pair[1].shape[1] for pair in self._pairs]
        up = down[0].new_zeros(sum(outs), self._wide * self._adapted)
        at = column = 0
        for pair, out in zip(self._pairs, outs, strict=True):
            if not isinstance(pair, int):
                up[at : at + out, column : column + self._wide] = pair[1].T
                column += self._wide
            at += out
        self._packed = (Packed(torch.cat(down)), Packed(up))

    def add(self, rows: torch.Tensor, others: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` (N, outs) with the corrections for the input rows (N, in); `others` (N, S R) is cut out."""
        down, up = self._packed
        low = down(rows)
        # Cut out, not multiplied by zero: a slot that is being written may hold anything.
        low.view(len(rows), self._adapted, -1).masked_fill_(others[:, None], 0.0)
        return up.add(low, output)
