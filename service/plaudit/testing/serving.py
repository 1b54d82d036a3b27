"""A whole server on loopback, for tests: real gRPC, real embedded log, real registry, an engine of the caller's.

What enters: a data directory and an engine. What leaves: a running server and its parts; everything but the engine is
closed at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from plaudit.domain import DomainPlugin
from plaudit.engine.protocol import Engine
from plaudit.eventlog import EventLog, Topic, open_log
from plaudit.eventlog.codec import Decoded, decode
from plaudit.metrics import Metrics
from plaudit.release.registry import Registry
from plaudit.serving.server import Server
from plaudit.settings import ServeSettings, Settings


@dataclass(frozen=True)
class LocalServer:
    """A server that runs, and its parts."""

    target: str
    server: Server
    settings: Settings
    engine: Engine
    log: EventLog
    registry: Registry
    metrics: Metrics

    def records(self, topic: Topic) -> list[Decoded]:
        """Everything in a topic, oldest first."""
        consumer = self.log.consumer((topic,), "test-reader", dict)
        found: list[Decoded] = []
        try:
            while batch := consumer.poll(0.2, 1000):
                found += [decode(record.value) for record in batch]
        finally:
            consumer.close()
        return found


def serve_settings(data_dir: Path, **serve: object) -> Settings:
    """Settings of a server on a free loopback port that looks at the channel states often."""
    wanted = {
        "port": 0,
        "metrics_port": 0,
        "poll_seconds": 0.05,
        "drain_seconds": 5.0,
        "workers": 32,
        "tenants": ("*",),
        **serve,
    }
    return Settings(data_dir=data_dir, serve=ServeSettings.model_validate(wanted))


@contextmanager
def local_server(
    data_dir: Path,
    engine: Engine,
    plugins: Mapping[str, DomainPlugin],
    *,
    settings: Settings | None = None,
    event_log: EventLog | None = None,
) -> Iterator[LocalServer]:
    """Runs a server until the block ends. The engine stays its caller's, and so does a log that is given."""
    data_dir.mkdir(parents=True, exist_ok=True)
    settings = settings or serve_settings(data_dir)
    metrics = Metrics(CollectorRegistry())
    log = event_log or open_log(settings)
    registry = Registry(settings.store_url, settings.registry_root)
    server = Server(settings, engine, log, registry, plugins, metrics)
    try:
        port = server.start()
        yield LocalServer(f"127.0.0.1:{port}", server, settings, engine, log, registry, metrics)
    finally:
        server.stop(grace=settings.serve.drain_seconds)
        registry.close()
        if event_log is None:
            log.close()
