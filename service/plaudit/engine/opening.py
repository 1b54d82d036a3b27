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

    base = Base.of(settings)
    engine = TorchEngine(base, settings.engine, settings.model)
    if engine.base_dtype == "int8":
        base.let_go()  # nobody else computes with it in this process
    return engine
