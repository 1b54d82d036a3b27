"""Which linears of a base carry adapters: one list for the trainer and for the engine that serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plaudit.engine.base import Base

# Attention and MLP of the Llama family; then as OPT, GPT-NeoX and Phi, and GPT-2 name theirs.
LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LINEARS = (
    *LLAMA_LINEARS,
    *("out_proj", "fc1", "fc2", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "c_attn", "c_fc"),
)


def start_layer(base: Base, layers: int) -> int:
    """First layer that carries adapters; those below are the shared trunk."""
    return base.num_layers - min(layers, base.num_layers)


def targets(base: Base, layers: int | range) -> tuple[str, ...]:
    """Names of the linears that take part: those that every adapter layer has exactly once.

    Experts take no part, nor does a shared expert beside them: a family that fuses their weights has no linear there.
    """
    span = layers if isinstance(layers, range) else range(start_layer(base, layers), base.num_layers)
    found = [[name.rpartition(".")[2] for name in linears(base, index)] for index in span]
    return tuple(name for name in LINEARS if found and all(each.count(name) == 1 for each in found))


def linears(base: Base, index: int) -> list[str]:
    """Full names of a layer's linears, those beside experts left out."""
    modules = dict(base.layer(index).named_modules())
    mixed = tuple(name.removesuffix("experts") for name in modules if name.endswith(".experts"))
    return [
        n for n, module in modules.items() if hasattr(module, "in_features") and not (mixed and n.startswith(mixed))
    ]
