"""Reads a LoRA adapter that somebody else trained, in PEFT's format, and writes it as one of ours.

In: a folder with adapter_config.json and adapter_model.safetensors. Out: configuration and weights of one rank and one
scale on the linears that this engine has slots for, which compute the same; or BadArtifact that names what cannot be
served. The configuration is read in full: what is not understood is refused, never ignored. Rank-stabilised scales
(Kalajdzievski 2023, arXiv:2312.03732, alpha / sqrt(r)), rank and alpha patterns become part of the weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file

from plaudit.engine import adapter_files, adapters
from plaudit.engine.base import Base
from plaudit.engine.targets import linears, start_layer, targets
from plaudit.errors import BadArtifact
from plaudit.settings import ModelSettings

_NAME = "foreign"
_WEIGHT = re.compile(r"^(?P<module>(?:.*\.)?layers\.(?P<layer>\d+)\.(?P<linear>.+))\.lora_(?P<side>[AB])\.weight$")
# What says how an adapter was trained, not what it computes; or is read here.
_HARMLESS = frozenset(
    {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "lora_dropout", "init_lora_weights", "eva_config", "lora_ga_config", "runtime_config"),
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "megatron_core", "qalora_group_size"),
        # Which modules have weights is seen by the weights; that PEFT reads them all the same, the proof shows.
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    }
)
# These change the base's own weights when training begins: the adapter alone is not the model.
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read(
    folder: Path, base: Base, model: ModelSettings, seed: int = 0
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights of the adapter in `folder`, as `adapter_files.write` takes them."""
    config, state = _files(folder)
    _check_config(config)
    found = _modules(state)
    _check_places(found, base, model)
    scaled = {module: _scaled(module, pair, config) for module, pair in found.items()}
    rank = max(down.shape[0] for down, _, _ in scaled.values())
    if rank > model.adapter_rank:
        raise BadArtifact(
            f"the adapter has rank {rank} and slots are made for model.adapter_rank {model.adapter_rank}; raise it, on "
            "every replica and the learner"
        )
    scales = {scale for _, _, scale in scaled.values()}
    # One scale that an integer alpha gives: the weights stay as they are, bit by bit.
    alpha = round(next(iter(scales)) * rank) if len(scales) == 1 else rank
    kept = len(scales) == 1 and alpha >= 1 and alpha / rank == next(iter(scales))
    alpha = alpha if kept else rank
    layers = sorted({int(_layer(module)) for module in scaled})
    adapters.inject(
        base, _NAME, layers=layers[-1] - layers[0] + 1, rank=rank, alpha=alpha, seed=seed, stop=layers[-1] + 1
    )
    try:
        made, weights = adapters.export(base, _NAME)
    finally:
        adapters.remove(base, _NAME)
    places = {_place(name): name for name in weights}
    for module, (down, up, scale) in scaled.items():
        place = module.partition("layers.")[2]
        one, other = places[f"{place}.lora_A"], places[f"{place}.lora_B"]
        if (down.shape[1], up.shape[0]) != (weights[one].shape[1], weights[other].shape[0]):
            raise BadArtifact(
                f"{module} is {tuple(up.shape)} x {tuple(down.shape)}, which does not fit this base: the adapter was "
                "made for another"
            )
        weights[one] = torch.nn.functional.pad(down, (0, 0, 0, rank - down.shape[0])).contiguous()
        factor = 1.0 if kept else scale * rank / alpha
        weights[other] = torch.nn.functional.pad(up * factor, (0, rank - up.shape[1])).contiguous()
    return made, weights


def _files(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise BadArtifact(f"{folder} is not a folder that can be read ({error.strerror})") from error
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"))]
    if adapter_files.WEIGHTS not in names and pickles:
        raise BadArtifact(
            f"{pickles[0]} may run code when it is read, so it is not: save the adapter as {adapter_files.WEIGHTS} "
            "(save_pretrained does)"
        )
    for wanted in (adapter_files.CONFIG, adapter_files.WEIGHTS):
        if wanted not in names:
            raise BadArtifact(f"{folder} has no {wanted}: name the folder that PEFT's save_pretrained wrote")
    try:
        config = json.loads((folder / adapter_files.CONFIG).read_text(encoding="utf-8"))
        state = load_file(folder / adapter_files.WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise BadArtifact(f"the adapter in {folder} cannot be read ({type(error).__name__})") from error
    if not isinstance(config, dict):
        raise BadArtifact(f"{adapter_files.CONFIG} is not a JSON object")
    return config, state


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuses by name whatever this engine does not compute."""
    if config.get("peft_type") != "LORA":
        raise BadArtifact(f"peft_type is {config.get('peft_type')!r}; only LORA adapters can be served")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise BadArtifact(f"task_type is {config['task_type']!r}; only CAUSAL_LM adapters can be served")
    started = str(config.get("init_lora_weights")).lower()
    if started.startswith(_OTHER_BASE):
        raise BadArtifact(
            f"init_lora_weights is {config['init_lora_weights']!r}, which changes the base: convert the adapter to a "
            "plain LoRA first (PEFT: path_initial_model_for_weight_conversion)"
        )
    numbers = (config.get("r"), config.get("lora_alpha"))
    if not all(isinstance(each, int | float) and each > 0 for each in numbers):
        raise BadArtifact(f"r and lora_alpha are {numbers}, not numbers above 0")
    plain = LoraConfig().to_dict()
    for name, value in sorted(config.items()):
        if name in _HARMLESS or not value or value == plain.get(name):
            continue
        known = "" if name in plain else ", which this version does not know"
        raise BadArtifact(f"{adapter_files.CONFIG} says {name}{known}: this engine serves no adapter with it")


def _modules(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by module, in fp32; refuses any other weight by name."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    others = []
    for name, tensor in sorted(state.items()):
        if (match := _WEIGHT.match(name)) is None:
            others.append(name)
        elif not (tensor.is_floating_point() and tensor.dim() == 2 and bool(tensor.isfinite().all())):
            raise BadArtifact(f"{name} is not a matrix of finite numbers")
        else:
            sides.setdefault(match["module"], {})[match["side"]] = tensor.float()
    if others:
        raise BadArtifact(f"{_some(others)}: this engine serves LoRA matrices of decoder layers and nothing else")
    if single := [module for module, pair in sides.items() if len(pair) != 2]:
        raise BadArtifact(f"{_some(single)}: one of lora_A and lora_B is missing")
    if not sides:
        raise BadArtifact(f"{adapter_files.WEIGHTS} holds no weights")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _check_places(modules: Iterable[str], base: Base, model: ModelSettings) -> None:
    """Refuses modules that the engine has no slot for, by name."""
    first, names = start_layer(base, model.adapter_layers), targets(base, model.adapter_layers)
    strange, low = [], []
    for module in modules:
        layer = int(_layer(module))
        here = linears(base, layer) if layer < base.num_layers else []
        place = module.partition(f"layers.{layer}.")[2]
        if place not in here or place.rpartition(".")[2] not in names:
            strange.append(module)
        elif layer < first:
            low.append(layer)
    if strange:
        raise BadArtifact(f"{_some(strange)}: this engine has slots for {', '.join(names)} of {base.num_layers} layers")
    if low:
        raise BadArtifact(
            f"the adapter begins at layer {min(low)}, and adapters sit on the upper {base.num_layers - first} of "
            f"{base.num_layers}: set model.adapter_layers to {base.num_layers - min(low)}, on every replica and the "
            "learner"
        )


def _scaled(
    module: str, pair: tuple[torch.Tensor, torch.Tensor], config: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A (r, in), B (out, r) and the scale of B A, by PEFT's rules."""
    down, up = pair
    name = module.removeprefix("base_model.model.")
    rank = _by_pattern(config.get("rank_pattern"), name, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    if down.shape[0] != rank or up.shape[1] != rank:
        raise BadArtifact(f"{module} has rank {down.shape[0]}, its configuration says {rank}")
    return down, up, float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(patterns: Any, name: str, default: Any) -> Any:
    """The value of the first pattern that a module's name ends in, as `peft.utils.get_pattern_key` finds it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _layer(module: str) -> str:
    return module.partition("layers.")[2].partition(".")[0]


def _place(weight: str) -> str:
    """What names a weight of ours: layer, linear and side."""
    return weight.partition("layers.")[2].removesuffix(".weight")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
