"""Where a base comes from, and what names it.

In: `model.path`. Out: a folder with config.json, safetensors and tokenizer, or a GGUF file that has all of it, and the
digest of the model in it. The digest depends neither on the number format that the weights are loaded in nor on how
they are cut into files, so that a learner on CPUs and replicas on GPUs run the same base. That of a GGUF file is over
its bytes: the same weights as safetensors are another base.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from plaudit.errors import Misconfigured

INDEX, SINGLE, GGUF = "model.safetensors.index.json", "model.safetensors", ".gguf"
# What a hub id looks like: "name" or "owner/name".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w][\w.-]*)?")
_HUB_SECONDS = 5.0
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
# What a configuration says about its making or its running, not about what the model computes.
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "_attn_implementation")
_REMEDY = "correct model.path, or make a model: plaudit model prepare smollm2 --out FOLDER"


@dataclass(frozen=True, slots=True)
class Source:
    """A folder with a model, or the GGUF file in it that is the model."""

    folder: Path
    gguf: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What transformers wants to know beside the folder."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def find(path: str | Path) -> Source:
    """Where the model is that `path` names: a folder, a GGUF file, a hub id, or a GGUF file of a hub id.

    Fetched from the hub if it is not there; raises Misconfigured at once if none is.
    """
    name = str(path)
    if not name:
        raise Misconfigured(
            "no model: set model.path to a folder with weights, tokenizer and chat template", setting="model.path"
        )
    if Path(name).is_dir():
        return Source(Path(name))
    if Path(name).exists():
        if not name.endswith(GGUF):
            raise Misconfigured(f"{name} is a file; name the folder that it lies in", setting="model.path")
        return Source(Path(name).parent, Path(name).name)
    model, file = name, None
    if name.endswith(GGUF) and name.count("/") == 2:
        model, _, file = name.rpartition("/")
    if not _HUB_ID.fullmatch(model):
        raise Misconfigured(f"there is no folder {name}; {_REMEDY}", setting="model.path")
    cached = try_to_load_from_cache(model, file or "config.json")
    if isinstance(cached, str):
        return Source(Path(cached).parent, file)
    try:
        # One question without the library's retries, which take a minute to say that nobody answers.
        HfApi().model_info(model, timeout=_HUB_SECONDS)
        if file is not None:
            return Source(Path(hf_hub_download(model, file)).parent, file)
        return Source(Path(snapshot_download(model, allow_patterns=_WANTED)))
    except Exception as error:
        # Whatever the hub's library and the transports below it raise; each of them means the same here.
        raise Misconfigured(
            f"there is no folder {name}, and as a hub id it cannot be fetched ({_short(error)}); {_REMEDY}",
            setting="model.path",
        ) from error


def digest(source: Source, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over configuration, weights as they are stored, vocabulary and chat template, in hex."""
    sha = hashlib.sha256()
    if source.gguf is None:
        _take_folder(sha, source.folder)
    else:
        with (source.folder / source.gguf).open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    for word, index in sorted(tokenizer.get_vocab().items()):
        sha.update(f"{word}\0{index}\0".encode())
    sha.update(str(tokenizer.chat_template).encode())
    return sha.hexdigest()


def _take_folder(sha: hashlib._Hash, folder: Path) -> None:
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
