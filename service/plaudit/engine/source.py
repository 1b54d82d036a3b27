"""Where a base comes from, and what names it.

In: `model.path`. Out: a folder with config.json, safetensors and tokenizer, and the digest of the model in it. The
digest depends neither on the number format that the weights are loaded in nor on how they are cut into files, so that
a learner on CPUs and replicas on GPUs run the same base.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from plaudit.errors import Misconfigured

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# What a hub id looks like: "name" or "owner/name".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w][\w.-]*)?")
_HUB_SECONDS = 5.0
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
# What a configuration says about its making or its running, not about what the model computes.
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "_attn_implementation")
_REMEDY = "correct model.path, or make a model: plaudit model prepare smollm2 --out FOLDER"


def find(path: str | Path) -> Path:
    """The folder that `path` names, fetched from the hub if it is a hub id; raises Misconfigured at once if none is."""
    name = str(path)
    if not name:
        raise Misconfigured(
            "no model: set model.path to a folder with weights, tokenizer and chat template", setting="model.path"
        )
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise Misconfigured(f"{name} is a file; name the folder that it lies in", setting="model.path")
    if not _HUB_ID.fullmatch(name):
        raise Misconfigured(f"there is no folder {name}; {_REMEDY}", setting="model.path")
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return Path(cached).parent
    try:
        # One question without the library's retries, which take a minute to say that nobody answers.
        HfApi().model_info(name, timeout=_HUB_SECONDS)
        return Path(snapshot_download(name, allow_patterns=_WANTED))
    except Exception as error:
        # Whatever the hub's library and the transports below it raise; each of them means the same here.
        raise Misconfigured(
            f"there is no folder {name}, and as a hub id it cannot be fetched ({_short(error)}); {_REMEDY}",
            setting="model.path",
        ) from error


def digest(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over configuration, weights as they are stored, vocabulary and chat template, in hex."""
    sha = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
    sha.update(json.dumps(kept, sort_keys=True).encode())
    try:
        for name, tensor in _tensors(folder):
            sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise Misconfigured(
            f"the weights in {folder} cannot be read ({_short(error)}); save the model again as safetensors",
            setting="model.path",
        ) from error
    for word, index in sorted(tokenizer.get_vocab().items()):
        sha.update(f"{word}\0{index}\0".encode())
    sha.update(str(tokenizer.chat_template).encode())
    return sha.hexdigest()


def _tensors(folder: Path) -> Any:
    """(name, tensor) of all weights in order of name, one at a time."""
    if (folder / INDEX).exists():
        where = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files: dict[str, Any] = {file: safe_open(folder / file, framework="pt") for file in set(where.values())}
    else:
        files = {SINGLE: safe_open(folder / SINGLE, framework="pt")}
        where = dict.fromkeys(files[SINGLE].keys(), SINGLE)
    for name in sorted(where):
        yield name, files[where[name]].get_tensor(name)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
