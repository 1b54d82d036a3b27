"""Whether servers serve as the protocol says: asked before a process starts, by loading an adapter made for that.

In: settings. Out: for each server what is wrong, or nothing. The adapter has the rank and the layers of a release and
random weights; it is unloaded again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from plaudit.engine import adapter_files, source
from plaudit.engine.base import Base
from plaudit.engine.protocol import EncodedPrompt
from plaudit.engine.targets import linears, start_layer, targets
from plaudit.engine.vllm import witness
from plaudit.engine.vllm.fleet import BASE, Fleet
from plaudit.engine.vllm.local import LocalModel, signature
from plaudit.engine.vllm.server import Unanswered
from plaudit.engine.vllm.shelf import Named, Shelf
from plaudit.errors import InternalError, PlauditError
from plaudit.settings import ModelSettings, Settings

# Nats by which the trial must move the base's log-probs on average: it is made to move them by more than one.
_MOVES = 0.1
_STRENGTH = 0.3


def try_servers(settings: Settings) -> Mapping[str, PlauditError | None]:
    """By address what is wrong with a server; None if it takes an adapter and gives the log-probs that are wanted.

    Raises Misconfigured if the model in `model.path` cannot be read.
    """
    wanted = settings.engine.vllm
    model = LocalModel(settings.model.path)
    known = signature(settings, model.digest) if wanted.check_base else None
    shelf = Shelf.of(settings)
    context = model.context_length(settings.engine.context_length)
    with tempfile.TemporaryDirectory() as folder:
        named = shelf.put(write_trial(Path(folder), settings.model))
    tokens = model.encode_text("one two three")

    async def try_all() -> dict[str, PlauditError | None]:
        found: dict[str, PlauditError | None] = {}
        for address in wanted.servers:
            fleet = Fleet.of(settings, known, context, [address])
            try:
                await _try(fleet, named, tokens)
                found[address] = None
            except Unanswered as error:
                found[address] = error.as_ours()
            except PlauditError as error:
                found[address] = error
            finally:
                await fleet.close()
        return found

    try:
        return asyncio.run(try_all())
    finally:
        shelf.remove(named)


async def _try(fleet: Fleet, named: Named, tokens: Sequence[int]) -> None:
    await fleet.open()
    await fleet.hold(named)
    try:
        shared, completion = EncodedPrompt(tuple(tokens[:1])), [tokens[1:]]
        (with_it,) = await fleet.score(named.name, shared, completion, 1.0)
        (without,) = await fleet.score(BASE, shared, completion, 1.0)
    finally:
        await fleet.let_go(named.name)
    if not witness.apart(with_it, without) > _MOVES:
        raise InternalError(
            "an adapter that was loaded changes nothing: the server ignores what this model's adapters sit on "
            f"(log-probs moved by {witness.apart(with_it, without):.3g} on average)"
        )


def write_trial(folder: Path, settings: ModelSettings) -> Path:
    """An adapter of random weights, of the shape that a release has."""
    found = source.find(settings.path)
    where, more = str(found.folder), found.options
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(where, **more)
        base = Base(AutoModelForCausalLM.from_config(config), AutoTokenizer.from_pretrained(where, **more), "")
    rank, names = settings.adapter_rank, targets(base, settings.adapter_layers)
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    layers = range(start_layer(base, settings.adapter_layers), base.num_layers)
    for index in layers:
        for name in linears(base, index):
            if name.rpartition(".")[2] in names:
                linear: Any = base.layer(index).get_submodule(name)
                outputs, inputs = linear.weight.shape
                prefix = f"base_model.model.{base.decoder.path}.{index}.{name}"
                state[f"{prefix}.lora_A.weight"] = _STRENGTH * torch.randn(rank, inputs, generator=generator)
                state[f"{prefix}.lora_B.weight"] = _STRENGTH * torch.randn(outputs, rank, generator=generator)
    adapter_files.write(
        folder,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": settings.adapter_alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": list(names),
            "layers_to_transform": list(layers),
        },
        state,
    )
    return folder
