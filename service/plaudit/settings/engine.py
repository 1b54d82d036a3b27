"""`engine.*`: decoding, in this process or by vLLM servers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from plaudit.settings.section import Section


class VllmSettings(Section):
    """vLLM servers that run the model of `plaudit serve` (docs/vllm.md)."""

    servers: tuple[str, ...] = ()
    """Address of each server (http://host:port): every replica itself, not a balancer in front of them."""
    api_key: SecretStr = SecretStr("")
    """Key that the servers ask for (their --api-key)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format that the servers compute in (their --dtype); it decides how exactly a release is proved."""
    adapters: str = ""
    """Folder for adapters that the servers can read; empty is vllm-adapters/ in the data directory."""
    adapters_there: str = ""
    """The same folder by the path under which the servers see it; empty is the same path."""
    check_base: bool = True
    """Compare the servers' base with the weights in model.path, which are loaded for it once per data directory."""
    silence_seconds: float = Field(default=60.0, ge=0.1, le=3_600)
    """Longest time without a byte of an answer; then the request goes on at another server."""
    patience_seconds: float = Field(default=10.0, ge=0, le=3_600)
    """How long a request looks for a server that answers before it is refused with ENGINE_UNAVAILABLE."""


class EngineSettings(Section):
    """Decoding."""

    kind: Literal["torch", "vllm"] = "torch"
    """What runs the model that is served: this process, or vLLM servers."""
    vllm: VllmSettings = VllmSettings()
    """vLLM servers, where kind is vllm."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "float32"
    """Format of linears that serve and sample on CPUs; auto: bfloat16 if the processor has it; int8: least memory."""
    widths: tuple[int, ...] = (4, 16, 64)
    """Batch widths, ascending; a completion keeps its width, so that its bits never depend on other traffic."""
    adapter_slots: int = Field(default=6, ge=2, le=64)
    """Adapters that can be staged at once, the base not counted."""
    max_waiting: int = Field(default=512, ge=1, le=1_000_000)
    """Completions and choices that may wait; more are refused with QUEUE_FULL."""
    prefill_chunk: int = Field(default=128, ge=16, le=65_536)
    """Prompt tokens computed between two decode steps; also the maximum number of tokens of options."""
    kv_memory_mb: int = Field(default=0, ge=0, le=10_000_000)
    """Memory (MiB) for keys and values; 0 is a quarter of the machine's, the container's or the GPU's."""
    score_memory_mb: int = Field(default=256, ge=16, le=65_536)
    """Memory (MiB) for scoring the options of a choice; they are computed in pieces that fit."""
    score_tokens: int = Field(default=65_536, ge=1, le=10_000_000)
    """Largest number of tokens of one choice's options, shared beginnings counted once (OPTIONS_TOO_LONG)."""
    context_length: int = Field(default=0, ge=0, le=1_048_576)
    """Maximum number of tokens of prompt and completion; 0 takes the model's own, up to 2,048."""

    @model_validator(mode="after")
    def _servers_are_named(self) -> Self:
        if self.kind == "vllm" and not self.vllm.servers:
            raise ValueError('kind=vllm needs servers; name them, such as vllm.servers=["http://127.0.0.1:8000"]')
        return self
