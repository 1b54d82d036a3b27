"""An engine's work as metrics of a process."""

from __future__ import annotations

from typing import TypedDict

from plaudit.engine.protocol import Engine, PrefixFound
from plaudit.metrics import Metrics


class ServerFacts(TypedDict):
    """Whether a server takes requests, and its places for adapters (None: it does not say)."""

    up: bool
    max_loras: int | None


class EngineMetrics:
    """An `engine.protocol.Observer`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._servers: dict[str, ServerFacts] = {}

    def queued(self, seconds: float) -> None:
        """See Observer."""
        self._metrics.engine_queue_seconds.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """See Observer."""
        self._metrics.engine_first_token_seconds.observe(seconds)

    def stepped(self, seconds: float | None, used: int, idle: int) -> None:
        """See Observer."""
        if seconds is not None:
            self._metrics.engine_token_seconds.observe(seconds)
        self._metrics.engine_rows.labels("used").inc(used)
        self._metrics.engine_rows.labels("idle").inc(idle)

    def prefix(self, found: PrefixFound) -> None:
        """See Observer."""
        self._metrics.engine_prefixes.labels(found.value).inc()

    def server(self, address: str, up: bool, adapters: int, max_loras: int | None) -> None:
        """See Observer."""
        self._servers[address] = {"up": up, "max_loras": max_loras}
        self._metrics.engine_server_up.labels(address).set(up)
        self._metrics.engine_server_adapters.labels(address).set(adapters)

    def servers(self) -> dict[str, ServerFacts]:
        """What is known now of each server, by its address; empty for an engine that has none."""
        return dict(self._servers)


def observe(engine: Engine, metrics: Metrics) -> EngineMetrics:
    """Let an engine's work be seen in the metrics of its process, from now on."""
    metrics.engine_decoding.set_function(lambda: engine.load()[0])
    metrics.engine_waiting.set_function(lambda: engine.load()[1])
    metrics.engine_kv_bytes.set_function(lambda: engine.usage().kv_bytes)
    metrics.engine_kv_limit_bytes.set_function(lambda: engine.usage().kv_limit)
    metrics.engine_slots.set_function(lambda: engine.usage().slots)
    metrics.engine_slots_used.set_function(lambda: engine.usage().slots_used)
    seen = EngineMetrics(metrics)
    engine.observe(seen)
    return seen
