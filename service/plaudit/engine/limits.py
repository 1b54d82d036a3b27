"""How long a context this engine computes rightly for a model, by the model's configuration alone.

In: config.json as a mapping, and the context that is wanted. Out: the context in force, or Misconfigured with what to
set. Positions of this engine do not depend on the text's length, and it knows windows that move with the text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plaudit.errors import Misconfigured

# Context if engine.context_length is 0: keys and values of a longer one cost memory that must be wanted.
DEFAULT_CONTEXT = 2048
SETTING = "engine.context_length"


def context_in_force(config: Mapping[str, Any], wanted: int) -> int:
    """Tokens of prompt and completion together; raises Misconfigured if the model is served wrongly at that length."""
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or DEFAULT_CONTEXT)
    if wanted > positions:
        raise Misconfigured(
            f"{SETTING} is {wanted} and the model knows {positions} positions; set it to {positions} or less",
            setting=SETTING,
        )
    context = wanted or min(positions, DEFAULT_CONTEXT)
    for limit, why in _limits(config):
        if context > limit:
            raise Misconfigured(
                f"{why}, and the context in force is {context} tokens; set {SETTING} to {limit} or less",
                setting=SETTING,
            )
    return context


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """Tokens that some layer sees, itself included; None if every layer sees all."""
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    # Qwen keeps the figure in the configuration and has a switch beside it.
    used = window and config.get("use_sliding_window", True) and (not kinds or "sliding_attention" in kinds)
    return int(window) if window and used else None


def _limits(config: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Lengths up to which the model computes as this engine does, each with the reason."""
    found = []
    kinds = config.get("layer_types")
    chunk = config.get("attention_chunk_size")
    if chunk and (not kinds or "chunked_attention" in kinds):
        found.append((int(chunk), f"layers of this model see {chunk} tokens at once (attention_chunk_size)"))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in ("longrope", "dynamic"):
        trained = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        if trained:
            found.append((int(trained), f"this model's positions change for texts above {trained} tokens"))
    return found
