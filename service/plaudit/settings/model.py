"""`model.*`: the frozen base."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from plaudit.settings.section import Section


class ModelSettings(Section):
    """The frozen base."""

    path: str = ""
    """Folder with weights, tokenizer and chat template, or a hub id."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes CUDA if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format; auto is float32 on CPU, bfloat16 on CUDA."""
    threads: int = Field(default=0, ge=0, le=65_536)
    """CPU threads of the model; 0 leaves the library's choice."""
    adapter_layers: int = Field(default=10, ge=1, le=1024)
    """Adapters sit on this many upper layers; the trunk below is shared by policy, reference, value and reward."""
    adapter_rank: int = Field(default=8, ge=1, le=64)
    """LoRA rank."""
    adapter_alpha: int = Field(default=16, ge=1, le=1024)
    """LoRA alpha; the scale is alpha / rank."""
    learner_dtype: Literal["engine", "auto", "float32", "bfloat16"] = "engine"
    """Format of the linears in the learner's own passes on CPUs; engine: as engine.dtype, for int8 float32."""
    shard: bool = False
    """Each process of a learner under torchrun holds a slice of the base; vLLM servers sample (docs/learner.md)."""
