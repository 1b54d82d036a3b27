"""The serving process: one gRPC server, and the start and end of everything it needs.

What enters: settings. What leaves: a server that answers until it is told to end. Never trains. Starts in the order
model, log, registry, plugins, router, server, and ends in the reverse order: 1 health says NOT_SERVING; 2 no new call
is taken; 3 calls under way have `drain_seconds`; 4 router, engine and log close.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from plaudit.access.admission import Admission, check_exposure, say_exposure
from plaudit.access.limits import Limits
from plaudit.access.tls import Certificates
from plaudit.addresses import address
from plaudit.decoding import policy_temperature
from plaudit.domain import DomainPlugin
from plaudit.engine.observing import observe
from plaudit.engine.protocol import Engine
from plaudit.errors import Misconfigured
from plaudit.eventlog import Consumer, EventLog, Topic, open_serving_log, with_person_keys
from plaudit.eventlog.outbox import OutboxLog, OutboxState
from plaudit.garbage import set_aside
from plaudit.metrics import Metrics, expose
from plaudit.plugins import count_failures, load_plugins
from plaudit.plugins.recognisers import Recognisers
from plaudit.release.registry import Registry
from plaudit.serving.acts import Acts
from plaudit.serving.assistant import AssistantServicer
from plaudit.serving.domains import DomainServicer
from plaudit.serving.erased import ErasedWatch
from plaudit.serving.feedback import FeedbackServicer
from plaudit.serving.generation import Generation
from plaudit.serving.http.door import Door
from plaudit.serving.interceptors import CallInterceptor
from plaudit.serving.keys import agreed_pseudonym_key, handle_signer, pseudonym_key
from plaudit.serving.privacy import PrivacyServicer
from plaudit.serving.proof import EXACT, Tolerance
from plaudit.serving.recording import Recorder
from plaudit.serving.redacting import Redactor
from plaudit.serving.reflecting import reflect
from plaudit.serving.releases import ReleaseServicer
from plaudit.serving.router import Router
from plaudit.serving.staging import Staging
from plaudit.settings import ADDRESS_FILE, ChannelPrivacySettings, Settings
from plaudit.signals import stop_on_signals
from plaudit.store.files import private_folder
from plaudit.store.processes import Beat
from plaudit.telemetry import configure, get_logger
from plaudit.types import Action, Consent
from plaudit.v1 import assistant_pb2_grpc, domains_pb2_grpc, feedback_pb2_grpc, privacy_pb2_grpc, releases_pb2_grpc
from plaudit.waiting import opened_at_last

SERVICES = (
    "plaudit.v1.AssistantService",
    "plaudit.v1.FeedbackService",
    "plaudit.v1.ReleaseService",
    "plaudit.v1.DomainService",
    "plaudit.v1.PrivacyService",
)
_ASSISTANT = SERVICES[0]
# Above the service's own limit the message still arrives and is refused with an ErrorInfo; above this it does not.
_LIBRARY_LIMIT_FACTOR = 4
# Threads beside those of the open calls: for refusals, health and reflection, so that a full server says it is alive.
_OTHER_WORKERS = 8
_REFLECTIONS = _OTHER_WORKERS // 2
# Two servers on one port would split traffic silently; the second must fail instead.
_ONE_PER_PORT = (("grpc.so_reuseport", 0),)

log = get_logger("plaudit.serve")


class Server:
    """The gRPC server over an engine, a log and a registry that are given to it and stay its caller's."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        event_log: EventLog,
        registry: Registry,
        plugins: Mapping[str, DomainPlugin],
        metrics: Metrics,
        *,
        tolerance: Tolerance = EXACT,
        outbox: Callable[[], OutboxState] | None = None,
    ) -> None:
        count_failures(plugins, metrics)
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._draining = threading.Event()
        self._health = health.HealthServicer()
        self._domains = [name for name, each in plugins.items() if each.declaration.action is Action.COMPLETION]
        self._door: Door | None = None
        self._private = ""
        self._certificates = Certificates(settings.access.tls) if settings.access.tls.certificate else None
        self.port = 0
        self.http_port: int | None = None
        signer, person_key = handle_signer(settings), pseudonym_key(settings)
        recorder = Recorder(
            event_log, signer, person_key, metrics, remembered_bytes=settings.serve.remembered_mb * 1024 * 1024
        )
        self.router = Router(
            registry,
            Staging(
                registry,
                engine,
                metrics,
                cache=settings.data_dir / "serve-cache",
                most=settings.serve.cached_releases,
                tolerance=tolerance,
            ),
            metrics,
            base_digest=engine.base_digest,
            domains=tuple(plugins),
            poll_seconds=settings.serve.poll_seconds,
            ready_at_start=settings.engine.adapter_slots,
            temperature=lambda channel: policy_temperature(
                plugins[channel.domain], settings.for_channel(channel).policy
            ),
            bell=_bell(event_log),
            beat=Beat(registry.database, "serve"),
            look_also=ErasedWatch(registry.database, recorder).look,
            engine_servers=observe(engine, metrics).servers,
            outbox=outbox,
        )
        generation = Generation(
            engine,
            self.router,
            recorder,
            plugins,
            metrics,
            policy=lambda channel: settings.for_channel(channel).policy,
            costs=lambda channel: settings.for_channel(channel).decision.costs,
            compare_share=lambda channel: settings.for_channel(channel).serve.compare_share,
            consent=lambda channel: _consent(settings.for_channel(channel).privacy),
            max_tokens=settings.serve.max_tokens,
            tenants=settings.serve.tenants,
        )
        limits = Limits(settings.access.limits)
        recognisers = Recognisers(settings, lambda *labels: metrics.plugin_failures.labels(*labels).inc())
        redactor = Redactor(lambda channel: recognisers.redaction(settings.for_channel(channel).privacy), metrics)
        self._server = _grpc_server(settings, metrics, Admission.of(settings, registry.database, limits))
        self._probes = _health_server(self._health) if settings.serve.health_port else None
        server: Any = self._server
        assistant_pb2_grpc.add_AssistantServiceServicer_to_server(
            AssistantServicer(generation, settings.serve, metrics, limits, redactor), server
        )
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(
            FeedbackServicer(
                Acts(plugins, signer, person_key, limits, redactor),
                event_log,
                metrics,
                limits,
                stream_seconds=settings.serve.stream_seconds,
            ),
            server,
        )
        releases_pb2_grpc.add_ReleaseServiceServicer_to_server(
            ReleaseServicer(
                registry,
                event_log,
                poll_seconds=settings.serve.poll_seconds,
                stream_seconds=settings.serve.stream_seconds,
                draining=self._draining.is_set,
            ),
            server,
        )
        domains_pb2_grpc.add_DomainServiceServicer_to_server(DomainServicer(plugins), server)
        privacy_pb2_grpc.add_PrivacyServiceServicer_to_server(
            PrivacyServicer(settings, registry.database, person_key), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflect((*SERVICES, health.SERVICE_NAME), server)

    def start(self) -> int:
        """Stages and proves what the channels serve, then listens; returns the port."""
        for service in SERVICES:
            self._set_health(service, healthy=False)
        serve = self._settings.serve
        check_exposure(self._settings)
        say_exposure(self._settings)
        encryption = self._certificates.for_grpc() if self._certificates else None
        self.port = _listens(self._server, serve.host, serve.port, "serve.port", encryption)
        # The door's own way in, which others on this machine cannot open: it brings its callers' credentials.
        self._private = tempfile.mkdtemp(prefix="plaudit-")
        self._server.add_insecure_port(self._door_target)
        if self._probes is not None:
            _listens(self._probes, serve.host, serve.health_port, "serve.health_port", None)
            self._probes.start()
        self._server.start()
        self.router.start()
        # A replica is ready with its base and its engine; a channel that it cannot serve is that channel's UNAVAILABLE.
        for service in SERVICES:
            self._set_health(service, healthy=True)
        self._open_door()
        _write_address(self._settings, self.port, self.http_port)
        log.info("listens", host=self._settings.serve.host, port=self.port, http_port=self.http_port)
        return self.port

    @property
    def _door_target(self) -> str:
        return f"unix:{self._private}/door"

    def _open_door(self) -> None:
        serve = self._settings.serve
        if serve.http_port < 0:
            return
        self._door = Door(
            serve.host,
            serve.http_port,
            self._door_target,
            self._domains,
            max_bytes=serve.max_message_bytes,
            deadline_seconds=serve.default_deadline_seconds,
            encryption=self._certificates.for_http() if self._certificates else None,
        )
        self._door.start()
        self.http_port = self._door.port

    def stop(self, grace: float | None = None) -> None:
        """Drains: health first, then calls under way have `grace` seconds (drain_seconds if None)."""
        self._draining.set()
        self._health.enter_graceful_shutdown()
        seconds = self._settings.serve.drain_seconds if grace is None else grace
        # gRPC ends the calls under way, those of the door too; the door then tells its callers.
        ended = self._server.stop(seconds)
        if self._door is not None:
            self._door.stop(seconds)
        ended.wait()
        if self._probes is not None:
            self._probes.stop(None).wait()
        self.router.stop()
        shutil.rmtree(self._private, ignore_errors=True)

    def _set_health(self, service: str, *, healthy: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        self._health.set(service, status)
        if service == _ASSISTANT:
            # The whole server is as ready as its main service: this is what a load balancer asks for.
            self._health.set(health.OVERALL_HEALTH, status)


def serve(settings: Settings) -> None:
    """The process: loads the base, opens everything, answers until SIGTERM or SIGINT, drains, closes.

    A store that is away at the start, and an embedded log, is waited for; until then nothing listens. Kafka is not: its
    records go to the outbox.
    """
    configure(settings.log_format, settings.log_level, "serve")
    check_exposure(settings)
    if settings.model.threads:
        # The model's library reads it once, when it is imported.
        os.environ["OMP_NUM_THREADS"] = str(settings.model.threads)
    # torch takes seconds to import and only the processes that run the model have it.
    from plaudit.engine.opening import open_engine

    plugins = load_plugins(settings.plugins.allow, budget_seconds=settings.plugins.budget_seconds)
    private_folder(settings.data_dir)
    metrics = Metrics(CollectorRegistry())
    engine = opened_at_last("serve", lambda: open_engine(settings))
    registry = opened_at_last("serve", lambda: Registry(settings.store_url, settings.registry_root))
    event_log, outbox = opened_at_last("serve", lambda: _serving_log(settings, metrics))
    agreed_pseudonym_key(settings, registry.database)
    tolerance = Tolerance.of(settings.engine.kind, engine.base_dtype)
    server = Server(settings, engine, event_log, registry, plugins, metrics, tolerance=tolerance, outbox=outbox)
    try:
        expose(metrics, settings.serve.metrics_port, settings.serve.host)
        set_aside()  # before releases are staged, which come and go
        server.start()
        # Until here a signal ends the start at once (plaudit.signals); from here on it begins the drain.
        stop_on_signals().wait()
    finally:
        log.info("drains", seconds=settings.serve.drain_seconds)
        server.stop()
        engine.close()
        event_log.close()
        registry.close()
        log.info("ended")


def _serving_log(settings: Settings, metrics: Metrics) -> tuple[EventLog, Callable[[], OutboxState] | None]:
    """The log, with what its outbox does as metrics, and what lies in the outbox if there is one."""
    event_log = open_serving_log(
        settings,
        kept=lambda topic, records: metrics.outbox_kept.labels(topic.value).inc(records),
        drained=lambda topic, records: metrics.outbox_drained.labels(topic.value).inc(records),
    )
    outbox = event_log.state if isinstance(event_log, OutboxLog) else None
    if outbox is not None:
        metrics.outbox_records.set_function(lambda: outbox().records)
        metrics.outbox_bytes.set_function(lambda: outbox().size)
        metrics.outbox_oldest_seconds.set_function(lambda: outbox().oldest_seconds)
    return with_person_keys(settings, event_log), outbox


def read_address(data_dir: Path) -> str | None:
    """Where the replica of this data directory listens, as "host:port"; None if none has started."""
    try:
        written = json.loads((data_dir / ADDRESS_FILE).read_text())
    except FileNotFoundError:
        return None
    return address(written["host"], written["port"])


def _listens(server: grpc.Server, host: str, port: int, setting: str, encryption: grpc.ServerCredentials | None) -> int:
    """Gives the server a port; returns its number."""
    where = address(host, port)
    try:
        return server.add_insecure_port(where) if encryption is None else server.add_secure_port(where, encryption)
    except RuntimeError as error:
        raise Misconfigured(
            f"cannot listen on {where}: {error}; end the program that has the port, or choose another {setting} or "
            "serve.host",
            setting=setting,
        ) from error


def _health_server(servicer: health.HealthServicer) -> grpc.Server:
    """A server of health alone."""
    server = grpc.server(ThreadPoolExecutor(2, thread_name_prefix="plaudit-health"), options=_ONE_PER_PORT)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return server


def _grpc_server(settings: Settings, metrics: Metrics, admission: Admission) -> grpc.Server:
    limit = settings.serve.max_message_bytes
    return grpc.server(
        ThreadPoolExecutor(settings.serve.workers + _OTHER_WORKERS, thread_name_prefix="plaudit-grpc"),
        interceptors=[
            CallInterceptor(
                metrics, limit, open_calls=settings.serve.workers, reflections=_REFLECTIONS, admission=admission
            ),
        ],
        options=[
            ("grpc.max_receive_message_length", _LIBRARY_LIMIT_FACTOR * limit),
            ("grpc.max_send_message_length", -1),
            *_ONE_PER_PORT,
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
    )


def _consent(privacy: ChannelPrivacySettings) -> Consent:
    return Consent(store=privacy.store, train=privacy.train)


def _bell(event_log: EventLog) -> Callable[[], Consumer]:
    # A group of its own for each replica: every one must hear every change.
    group = f"plaudit-serve-{uuid.uuid4().hex}"
    return lambda: event_log.consumer((Topic.RELEASES,), group, dict)


def _write_address(settings: Settings, port: int, http_port: int | None) -> None:
    """Tells the other processes of this machine where the replica listens; the rename makes it whole or absent."""
    private_folder(settings.data_dir)
    written_down = {
        "host": settings.serve.host,
        "port": port,
        "http_port": http_port,
        "metrics_port": settings.serve.metrics_port,
        "pid": os.getpid(),
    }
    written = settings.data_dir / f".{ADDRESS_FILE}.{os.getpid()}"
    written.write_text(json.dumps(written_down) + "\n")
    written.replace(settings.data_dir / ADDRESS_FILE)
