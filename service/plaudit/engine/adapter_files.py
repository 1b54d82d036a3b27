"""Adapters as files, in PEFT's own format: adapter_config.json and adapter_model.safetensors.

In: a folder. Out: configuration and weights. Reading them takes no PEFT, so that a replica serves without it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from plaudit.errors import BadArtifact

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def write(directory: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Write one adapter."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(state, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True, default=_plain))


def read(directory: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and weights of a saved adapter; raises BadArtifact for anything that is not one."""
    try:
        config = json.loads((directory / CONFIG).read_text())
        return config, load_file(directory / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise BadArtifact(
            f"the adapter in {directory.name!r} cannot be read ({error}); fetch the release again or train it again"
        ) from error


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
