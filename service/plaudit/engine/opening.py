"""The engine that a process's settings name."""

from __future__ import annotations

from plaudit.engine.protocol import Engine
from plaudit.settings import Settings


def open_engine(settings: Settings) -> Engine:
    """An engine that serves; raises Misconfigured, or EngineUnavailable if it needs servers and none answers."""
    if settings.engine.kind == "vllm":
        from plaudit.engine.vllm.engine import VllmEngine

        return VllmEngine.of(settings)
    from plaudit.engine.base import Base
    from plaudit.engine.torch_engine import TorchEngine

    return TorchEngine(Base.of(settings), settings.engine, settings.model)
