"""Memory for keys and values: how much one token takes, how much there may be, and who holds what.

In: a base and a setting. Out: a budget in bytes that prompts, rows of lanes and cached prefixes take from and give
back to. Whatever grows with a caller's text is counted here before it is allocated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from plaudit.engine.base import Base

# Serving and learning share a machine, and each needs as much again for weights and activations.
SHARE = 0.25
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Layout:
    """Shapes of the keys and values of one token: per layer (heads, size of a key, size of a value)."""

    layers: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype
    device: torch.device
    hidden_bytes: int

    @classmethod
    def of(cls, base: Base) -> Layout:
        """The layout of a base, seen at one token."""
        seen = _Seen()
        ids = torch.zeros(1, 1, dtype=torch.long, device=base.device)
        mask = torch.zeros(1, 1, 1, 1, device=base.device, dtype=base.dtype)
        with torch.no_grad():
            base.run_layers(base.embed(ids), 0, base.num_layers, mask=mask, past=seen)
        return cls(tuple(seen.shapes), base.dtype, base.device, base.hidden_size * base.dtype.itemsize)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return sum(heads * (key + value) for heads, key, value in self.layers) * self.dtype.itemsize

    @property
    def prompt_bytes(self) -> int:
        """Bytes of one token of a prompt that is being computed: keys, values and trunk activations."""
        return self.token_bytes + self.hidden_bytes

    def zeros(self, rows: int, capacity: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values of all layers, (rows, heads, capacity, size) each."""
        made = [
            [
                torch.zeros(rows, layer[0], capacity, layer[which], dtype=self.dtype, device=self.device)
                for layer in self.layers
            ]
            for which in (1, 2)
        ]
        return made[0], made[1]


class _Seen:
    def __init__(self) -> None:
        self.shapes: list[tuple[int, int, int]] = []

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.shapes.append((key.shape[1], key.shape[3], value.shape[3]))
        return key, value


@dataclass(slots=True)
class Budget:
    """Bytes that may be held, and bytes that are. The engine's thread alone changes it."""

    limit: int
    held: int = 0

    def fits(self, size: int) -> bool:
        """Whether `size` bytes more may be held."""
        return self.held + size <= self.limit

    def take(self, size: int) -> None:
        """Hold `size` bytes more; the caller has made sure that they fit."""
        self.held += size

    def give(self, size: int) -> None:
        """Hold `size` bytes less."""
        self.held -= size


def kv_limit(base: Base, configured_mb: int) -> int:
    """Bytes for keys and values: what is configured, or a quarter of the memory of the device or the container."""
    return configured_mb * 2**20 if configured_mb else int(SHARE * _memory(base.device))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            # "max" if the container has no limit.
            whole = min(whole, int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return whole
