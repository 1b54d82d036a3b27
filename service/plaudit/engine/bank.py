"""A bank of LoRA adapters from which each row of a batch takes its own.

In: adapters in PEFT's format. Out: a correction of what each target linear of the base gives, row by row. Slot 0 is
the base: nothing is added. A slot is written while no row uses it, so loading never disturbs decoding.

Two ways, and a pass takes one of them whatever is in it, so that a row's bits depend neither on its neighbours'
adapters nor on what else is staged. `Masked`: the adapters of all slots stand side by side in one pair of matrices, and
a batch of any mixture is two products of one shape; what is not a row's own is cut out between the two. `Gathered`:
each row of a narrow lane keeps a copy of its own adapter, so that a batch is a product per row and nothing is computed
in vain; copies are made when a row is filled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from plaudit.engine.base import Base
from plaudit.engine.packed import Packed
from plaudit.engine.targets import linears, start_layer, targets
from plaudit.errors import BadArtifact

# Copies of adapters that a lane's rows may keep, in bytes: each step reads them all, as it reads the base's weights.
MOST_COPIES = 32 * 2**20


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
            for slot in range(1, self.slots + 1):
                found.stack(slot)
            self._groups[full] = found
        return found

    def masked(self, slots: torch.Tensor) -> Masked:
        """Adapters of the tokens of a pass, of slots (N,)."""
        return Masked(slots[:, None] != self._owner)

    def gathered(self, width: int) -> Gathered | None:
        """Adapters of the rows of a lane, none yet; None if copies for each row would take too much memory."""
        size = sum(each.row_bytes for each in self._groups.values())
        return Gathered(self._groups.values(), width) if 0 < width * size <= MOST_COPIES else None

    def _pairs(self, names: Sequence[str], sizes: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor] | int]:
        return [self._weights.get(name, size) for name, size in zip(names, sizes, strict=True)]

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
            finally:
                for correction in self._groups.values():
                    correction.pack()
                    correction.stack(slot)

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
                raise BadArtifact(f"adapter has weights in {name} that are not finite numbers; train the release anew")
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
    """What the adapters of all slots add to linears that share their input: low-rank activations, and their way out.

    Of all linears side by side; the second matrix is block by block.
    """

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor] | int], rank: int, slots: int) -> None:
        self._pairs, self._rank, self._wide = pairs, rank, rank * slots
        self._adapted = sum(not isinstance(pair, int) for pair in pairs)
        down = next(pair[0] for pair in pairs if not isinstance(pair, int))
        outs = sum(pair if isinstance(pair, int) else pair[1].shape[1] for pair in pairs)
        low = rank * self._adapted
        # By slot; slot 0 adds nothing.
        self.downs = down.new_zeros(slots + 1, down.shape[0], low)
        self.ups = down.new_zeros(slots + 1, low, outs)
        self.pack()

    @property
    def row_bytes(self) -> int:
        """Bytes of one adapter's matrices."""
        return (self.downs[0].numel() + self.ups[0].numel()) * self.downs.dtype.itemsize

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

    def stack(self, slot: int) -> None:
        """Take a slot's weights as they are now; no row uses the slot."""
        own, rank = slice((slot - 1) * self._rank, slot * self._rank), self._rank
        at = column = 0
        for pair in self._pairs:
            if isinstance(pair, int):
                at += pair
                continue
            down, up = pair
            self.downs[slot, :, column : column + rank] = down[:, own]
            self.ups[slot, column : column + rank, at : at + up.shape[1]] = up[own]
            at += up.shape[1]
            column += rank

    def add(self, rows: torch.Tensor, others: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` (N, outs) with the corrections for the input rows (N, in); `others` (N, S R) is cut out."""
        down, up = self._packed
        low = down(rows)
        # Cut out, not multiplied by zero: a slot that is being written may hold anything.
        low.view(len(rows), self._adapted, -1).masked_fill_(others[:, None], 0.0)
        return up.add(low, output)


class Mixture(Protocol):
    """The adapters of the tokens of a pass."""

    def add(self, correction: Correction, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """`output` (N, outs) with each row's own correction for its input (N, in)."""


class Masked:
    """A Mixture by products over all slots; `others` (N, S R) are not a token's own."""

    def __init__(self, others: torch.Tensor) -> None:
        self._others = others

    def add(self, correction: Correction, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """As Mixture.add."""
        return correction.add(rows, self._others, output)


class Gathered:
    """A Mixture by copies of each row's own adapter, which hold until the row is filled anew."""

    def __init__(self, corrections: Iterable[Correction], width: int) -> None:
        self._copies = {
            each: (each.downs.new_zeros(width, *each.downs.shape[1:]), each.ups.new_zeros(width, *each.ups.shape[1:]))
            for each in corrections
        }

    def fill(self, row: int, slot: int) -> None:
        """Let a row of the lane be on a slot's adapter, as it is now."""
        for correction, (downs, ups) in self._copies.items():
            downs[row] = correction.downs[slot]
            ups[row] = correction.ups[slot]

    def add(self, correction: Correction, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """As Mixture.add."""
        downs, ups = self._copies[correction]
        return torch.baddbmm(output[:, None], torch.bmm(rows[:, None], downs), ups)[:, 0]
