"""LoRA adapters on the shared base, injected and saved by PEFT.

In: a Base. Out: named adapters on its upper layers. Between calls all adapters are off, so that the base is the
reference; `active` turns one on for a block. Files are those of `adapter_files`.
Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping_func import get_peft_model
from peft.tuners.lora import LoraLayer

from plaudit.engine import adapter_files, lora
from plaudit.engine.base import Base
from plaudit.engine.targets import linears, targets
from plaudit.errors import BadArtifact, Misconfigured


def _config(layers: range, names: tuple[str, ...], rank: int, alpha: int) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(names),
        layers_to_transform=list(layers),
        bias="none",
        task_type="CAUSAL_LM",
    )


def inject(base: Base, name: str, *, layers: int, rank: int, alpha: int, seed: int, stop: int | None = None) -> None:
    """Add an adapter with B = 0 (the model is unchanged) and seeded A, switched off.

    It sits on the `layers` layers below layer `stop`; None is the top.
    """
    end = base.num_layers if stop is None else stop
    span = range(max(0, end - layers), end)
    names = targets(base, span)
    if not names:
        raise Misconfigured(
            f"no linear of {type(base.model).__name__} can carry an adapter; use a base of the Llama family",
            setting="model.path",
        )
    config = _config(span, names, rank, alpha)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT asks transformers for names that it calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        peft = base.peft
        if peft is None:
            base.peft = get_peft_model(base.model, config, adapter_name=name)
        elif name in peft.peft_config:
            raise ValueError(f"adapter {name!r} is there already; remove it first")
        else:
            peft.add_adapter(name, config)
    for parameter in parameters(base, name):
        parameter.data = parameter.data.float()
    for layer in _lora_layers(base):
        lora.quicken(layer)
    _switch(base, None)
    _require_same(base, name, span, names)


def _require_same(base: Base, name: str, span: range, names: tuple[str, ...]) -> None:
    """Refuse a base on which PEFT adapts other weights than the engine's bank holds: nothing trained would load."""
    wanted = {base.place(index, n) for index in span for n in linears(base, index) if n.rpartition(".")[2] in names}
    mark = f".lora_A.{name}."
    before = base.decoder.path.rpartition(".")[0] + "."
    adapted = {n.partition(mark)[0].partition(before)[2] for n, _ in base.model.named_parameters() if mark in n}
    if adapted != wanted:
        remove(base, name)
        raise Misconfigured(
            f"adapters of {type(base.model).__name__} would sit on weights that this engine cannot serve; "
            "use another base",
            setting="model.path",
        )


def _lora_layers(base: Base) -> Iterator[LoraLayer]:
    for module in base.model.modules():
        if isinstance(module, LoraLayer):
            yield module


def _switch(base: Base, name: str | None) -> None:
    for layer in _lora_layers(base):
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name)
    for parameter in base.model.parameters():
        parameter.requires_grad_(False)
    if name is not None:
        for parameter in parameters(base, name):
            parameter.requires_grad_(True)


@contextlib.contextmanager
def active(base: Base, name: str | None) -> Iterator[None]:
    """Turn the adapter `name` on (None: all off) for a block; only its weights take gradients there."""
    _switch(base, name)
    try:
        yield
    finally:
        _switch(base, None)


def parameters(base: Base, name: str) -> list[torch.nn.Parameter]:
    """Weights of one adapter, in a fixed order."""
    marks = (f".lora_A.{name}.", f".lora_B.{name}.")
    return [p for n, p in sorted(base.model.named_parameters()) if any(mark in n for mark in marks)]


def export(base: Base, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and a copy of the weights (fp32, on CPU) of one adapter, as `read` gives them."""
    peft = base.peft
    assert peft is not None, "no adapter was injected"
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(peft, adapter_name=name)
    config = peft.peft_config[name].to_dict()
    # The base is known by its digest in the manifest; a path of the machine that trained would change the bytes.
    config["base_model_name_or_path"] = None
    config["inference_mode"] = True
    return config, {k: v.detach().cpu().float().clone().contiguous() for k, v in sorted(state.items())}


def save(base: Base, name: str, directory: Path) -> None:
    """Write one adapter in PEFT's format."""
    adapter_files.write(directory, *export(base, name))


def load(base: Base, name: str, directory: Path) -> None:
    """Add a saved adapter under `name`, switched off; raises BadArtifact if it does not fit the base."""
    config, state = adapter_files.read(directory)
    layers = config["layers_to_transform"]
    rank, alpha = config["r"], config["lora_alpha"]
    inject(base, name, layers=len(layers), rank=rank, alpha=alpha, seed=0, stop=max(layers) + 1)
    expected = get_peft_model_state_dict(base.peft, adapter_name=name)
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in state.items()}:
        remove(base, name)
        raise BadArtifact(f"the adapter in {directory.name!r} was made for another base")
    set_peft_model_state_dict(base.peft, state, adapter_name=name)


def names(base: Base) -> list[str]:
    """Adapters that are on the base now."""
    return [] if base.peft is None else sorted(base.peft.peft_config)


def remove(base: Base, name: str) -> None:
    """Forget an adapter."""
    peft = base.peft
    assert peft is not None, "no adapter was injected"
    if len(peft.peft_config) == 1:
        # PEFT keeps naming its last adapter as active after deleting it; without any the base is better bare.
        peft.unload()
        base.peft = None
    else:
        with warnings.catch_warnings():
            # PEFT tells that another adapter becomes the active one; all are switched off below.
            warnings.simplefilter("ignore", UserWarning)
            peft.delete_adapter(name)
    _switch(base, None)
