"""A base without its weights: what `plaudit doctor` can tell before a process starts.

In: where a model is. Out: a base of the same family and configuration with small layers of random weights, which the
check of `fidelity` judges as it judges the real one, in a second whatever the model's size; its linears and its chat
template are the real model's.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from plaudit.engine import fidelity
from plaudit.engine.attention import ATTENTION, register_attention
from plaudit.engine.base import Base
from plaudit.engine.limits import DEFAULT_CONTEXT, context_in_force
from plaudit.engine.source import Source

HEAD = 16
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
}


def outline(source: Source, context_length: int) -> tuple[Base, int]:
    """The base at `source` in small, and the context in force; raises Misconfigured if loading it would.

    `context_length` is what is wanted, 0 the model's own.
    """
    register_attention()
    folder, more = str(source.folder), source.options
    tokenizer, config = AutoTokenizer.from_pretrained(folder, **more), AutoConfig.from_pretrained(folder, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = None
        with contextlib.suppress(Exception):
            # A family whose sizes hang together otherwise: its shape alone is looked at then.
            small = AutoModelForCausalLM.from_config(type(config).from_dict(_in_small(config.to_dict())))
    if small is None:
        with torch.device("meta"):
            base = Base(AutoModelForCausalLM.from_config(config), tokenizer, "")
        fidelity.check_shape(base)
        return base, context_in_force(config.to_dict(), context_length)
    base = Base(small.requires_grad_(False).eval(), tokenizer, "")
    # Longer texts take the doctor longer and show nothing more: limits stand in the configuration.
    fidelity.check(base, ATTENTION, min(context_length, DEFAULT_CONTEXT))
    return base, context_in_force(config.to_dict(), context_length)


def _in_small(config: dict[str, Any]) -> dict[str, Any]:
    small = {key: min(value, config[key]) for key, value in _SMALL.items() if isinstance(config.get(key), int)}
    if config.get("num_key_value_heads") == config.get("num_attention_heads"):
        small["num_key_value_heads"] = small.get("num_attention_heads")
    kinds = config.get("layer_types")
    if kinds:
        # One layer of each kind at least.
        firsts = list(dict.fromkeys(kinds))
        small["layer_types"] = [*firsts, *kinds][: max(_SMALL["num_hidden_layers"], len(firsts))]
        small["num_hidden_layers"] = len(small["layer_types"])
    rope = dict(config.get("rope_parameters") or {})
    for factors in ("short_factor", "long_factor"):
        if factors in rope:
            rope[factors] = rope[factors][: HEAD // 2]
    # The larger spread makes what differs show in few and narrow layers.
    return {**config, **small, "rope_parameters": rope, "initializer_range": 0.2}
