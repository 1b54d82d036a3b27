"""The process: starts, tells where it listens, drains on SIGTERM, and loses nothing that it acknowledged."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from plaudit.client import Plaudit
from plaudit.client.replies import drafts
from plaudit.engine.protocol import EncodedPrompt, Generated, Usage
from plaudit.errors import (
    Cancelled,
    DeadlinePassed,
    InternalError,
    LogUnavailable,
    Misconfigured,
    NotServing,
    PluginFailed,
    QueueFull,
    StoreUnavailable,
)
from plaudit.eventlog import Topic, open_log
from plaudit.eventlog.codec import decode
from plaudit.learner.loop import learn
from plaudit.metrics import Metrics, expose
from plaudit.plugins import guard, load_plugins
from plaudit.serving.keys import handle_signer, pseudonym_key
from plaudit.serving.server import read_address
from plaudit.settings import Settings
from plaudit.testing.models import tiny_model
from plaudit.testing.serving import local_server, serve_settings
from plaudit.testing.waiting import wait_until
from plaudit.types import FinishReason
from prometheus_client import CollectorRegistry

CODE = "import sys; from plaudit.cli import main; sys.argv = ['plaudit', *sys.argv[1:]]; main()"
# Serving takes no peft: of the processes, only the learner finds it.
WITHOUT_PEFT = "import sys; sys.modules['peft'] = None; "


@contextmanager
def started(command, tmp_path, data, first=""):
    """A process of the command line that runs the code `first`, and the file of its standard error."""
    flags = {
        "model.path": tiny_model(tmp_path / "model"),
        "serve.port": 0,
        "serve.metrics_port": 0,
        "serve.drain_seconds": 600,
        "model.adapter_layers": 2,
        "log_format": "json",
    }
    arguments = [part for key, value in flags.items() for part in ("--set", f"{key}={value}")]
    code = first + (CODE if command == "learn" else WITHOUT_PEFT + CODE)
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(
            [sys.executable, "-c", code, command, "--data-dir", str(data), *arguments], stderr=log
        )
    try:
        yield running, tmp_path / "log"
    finally:
        if running.poll() is None:
            running.kill()
        running.wait(300)


@pytest.fixture
def process(tmp_path):
    with started("serve", tmp_path, tmp_path / "data") as (running, log):
        yield running, tmp_path / "data", log


@pytest.mark.parametrize(("command", "up"), [("serve", "listens"), ("learn", "learn.ready")])
def test_a_process_whose_store_is_away_at_its_start_waits_for_it_and_says_so(command, up, small_disk, tmp_path):
    data, filler = small_disk / "data", small_disk / "filler"
    data.mkdir()
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with started(command, tmp_path, data) as (running, log):

        def said(event):
            return event in log.read_text() or running.poll() is not None

        wait_until(lambda: said(f'"{command}.waits"'), 300)
        assert running.poll() is None, log.read_text()
        assert "its disk is full" in log.read_text()
        filler.unlink()
        wait_until(lambda: said(f'"{up}"'), 300)
        assert running.poll() is None, log.read_text()
        running.send_signal(signal.SIGTERM)
        assert running.wait(300) in (0, 128 + signal.SIGTERM)


def test_one_look_does_not_wait_for_a_store_that_is_away(small_disk, tmp_path):
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    (small_disk / "data").mkdir()
    with pytest.raises(StoreUnavailable, match="its disk is full"):
        learn(Settings(data_dir=small_disk / "data", learn={"nice": 0}), once=True)


def test_a_replica_drains_on_sigterm_and_what_it_acknowledged_is_in_the_log(process):
    running, data, log = process
    wait_until(lambda: read_address(data) is not None or running.poll() is not None, 300)
    assert running.poll() is None, log.read_text()
    acknowledged, after = [], []
    with Plaudit(read_address(data), patience=0.0, timeout=300.0) as client:
        assert client.generate("echo", "Hello", max_tokens=2).handle
        stream = client.stream("echo", "Hello", n=4, max_tokens=300)
        next(stream)
        running.send_signal(signal.SIGTERM)
        *_, reply = stream
        acknowledged.append(reply.interaction_id)
        with pytest.raises(NotServing):
            _ask_until_refused(client, after)
    assert running.wait(300) == 0, log.read_text()
    event_log = open_log(Settings(data_dir=data))
    consumer = event_log.consumer((Topic.INTERACTIONS,), "test", dict)
    recorded = set()
    while records := consumer.poll(1.0, 100):
        recorded |= {decode(record.value).interaction_id for record in records}
    consumer.close()
    event_log.close()
    assert {*acknowledged, *after} <= recorded
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert {"listens", "drains", "ended"} <= {line["event"] for line in lines}
    # Neither prompts nor handles are logged.
    assert "Hello" not in log.read_text()


def test_keys_are_made_once_private_and_differ(tmp_path):
    settings = Settings(data_dir=tmp_path)
    found = []
    threads = [threading.Thread(target=lambda: found.append(pseudonym_key(settings))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    handle_signer(settings)
    for name in ("handle.key", "pseudonym.key"):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == 0o600
    assert (tmp_path / "handle.key").read_bytes() != (tmp_path / "pseudonym.key").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["handle.key", "pseudonym.key"]


@pytest.mark.parametrize(
    ("serve", "setting"),
    [
        ({"handle_keys": {"a": "short"}}, "serve.handle_keys.a"),
        ({"handle_keys": {"a": "k" * 32}, "handle_key_id": "b"}, "serve.handle_key_id"),
        ({"pseudonym_key": "short"}, "serve.pseudonym_key"),
    ],
)
def test_a_bad_key_is_misconfigured_by_name_and_never_shown(tmp_path, serve, setting):
    settings = serve_settings(tmp_path, **serve)
    reads = pseudonym_key if setting == "serve.pseudonym_key" else handle_signer
    with pytest.raises(Misconfigured) as caught:
        reads(settings)
    assert caught.value.metadata["setting"] == setting
    assert "short" not in caught.value.message
    assert "kkkk" not in caught.value.message


def test_the_last_of_the_given_keys_signs_unless_one_is_named(tmp_path):
    keys = {"old": "o" * 32, "new": "n" * 32}
    signed = {
        name: _signed(handle_signer(serve_settings(tmp_path, handle_keys=keys, handle_key_id=name))) for name in keys
    }
    assert _signed(handle_signer(serve_settings(tmp_path, handle_keys=keys))) == signed["new"] != signed["old"]


def test_health_knows_every_service_and_reflection_lists_them(local):
    with grpc.insecure_channel(local.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "plaudit.v1.AssistantService", "plaudit.v1.ReleaseService", "plaudit.v1.PrivacyService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        older = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        v1 = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        for ask in (older, v1):
            (listed,) = ask(iter([request]))
            names = {service.name for service in listed.list_services_response.service}
            assert {"plaudit.v1.AssistantService", "plaudit.v1.FeedbackService", "grpc.health.v1.Health"} <= names


def test_a_port_that_is_taken_is_misconfigured(local, tmp_path, tiny_engine):
    port = int(local.target.rsplit(":", 1)[1])
    settings = serve_settings(tmp_path / "other", port=port)
    with (
        pytest.raises(Misconfigured, match=str(port)),
        local_server(tmp_path / "other", tiny_engine, {}, settings=settings),
    ):
        pass


def test_a_log_that_is_gone_acknowledges_nothing(local, client):
    reply = client.generate("echo", "Hello", n=2, max_tokens=2)
    local.log.close()
    with pytest.raises(LogUnavailable):
        client.generate("echo", "Hello", max_tokens=2)
    with pytest.raises(LogUnavailable):
        reply.thumbs_up()
    with pytest.raises(LogUnavailable):
        list(client.stream("echo", "Hello", max_tokens=2))
    give = drafts(reply.handle, reply.candidate_ids)
    answers = list(client.submit_many([give.thumbs_up(), give.thumbs_down()]))
    assert [type(answer.error) for answer in answers] == [LogUnavailable, LogUnavailable]


class Stalled:
    """An engine whose completions never end, or break; no real engine does so on demand."""

    base_digest = "0" * 64
    base_dtype = "float32"
    context_length = 512
    widths = (4,)

    def __init__(self):
        self.submitted = self.cancelled = 0
        self.breaks = None
        self.refuses = None

    def encode(self, messages):
        return EncodedPrompt((1, 2, 3))

    def submit(self, jobs):
        if self.refuses:
            raise self.refuses
        self.submitted += len(jobs)
        return [StalledTicket(self, job) for job in jobs]

    @contextmanager
    def hold(self, key, adapter, *, temperature=1.0):
        yield True

    def staged(self):
        return {}

    def load(self):
        return (0, 0)

    def usage(self):
        return Usage(0, 0, 0, 0)

    def observe(self, observer):
        pass


class StalledTicket:
    def __init__(self, engine, job):
        self.engine = engine
        self.done = Future()
        if engine.breaks:
            self.done.set_exception(engine.breaks)
        self.generated = Generated(
            tokens=(1,),
            text="x",
            logprobs_raw=(0.0,),
            logprobs_sampled=(0.0,),
            finish_reason=FinishReason.EOS,
            width=4,
            release=job.release,
        )

    def deltas(self, timeout=None):
        yield "x"
        self.done.result(timeout)

    def result(self, timeout=None):
        return self.done.result(timeout)

    def so_far(self):
        return dataclasses.replace(self.generated, finish_reason=FinishReason.CANCELLED)

    def cancel(self):
        if not self.done.done():
            self.engine.cancelled += 1
            self.done.set_exception(Cancelled())


@pytest.fixture
def stalled(tmp_path):
    engine = Stalled()
    running = local_server(tmp_path / "data", engine, load_plugins(("echo",)))
    with running as server, Plaudit(server.target, patience=0.0) as client:
        yield engine, server, client


def test_the_deadline_of_a_stalled_completion_cancels_its_tickets(stalled):
    engine, server, client = stalled
    value = server.metrics.registry.get_sample_value
    labels = {"service": "AssistantService", "code": "DEADLINE_EXCEEDED"}
    for method, call in (
        ("Generate", lambda seconds: client.generate("echo", "Hello", n=3, timeout=seconds)),
        ("StreamGenerate", lambda seconds: list(client.stream("echo", "Hello", n=3, timeout=seconds))),
    ):
        engine.submitted = engine.cancelled = 0
        # On a slow machine a deadline may pass before the engine has the jobs: then a later one does it.
        tries = 0
        for seconds in (1.0, 5.0, 25.0, 125.0):
            tries += 1
            with pytest.raises(DeadlinePassed):
                call(seconds)
            wait_until(lambda: value("plaudit_requests_in_flight") == 0)
            if engine.submitted:
                break
        assert (engine.submitted, engine.cancelled) == (3, 3)
        assert 1 <= value("plaudit_requests_total", {**labels, "method": method}) <= tries
    # Of the stream people saw something, of the other call nothing.
    (stopped,) = server.records(Topic.INTERACTIONS)
    assert [each.finish_reason for each in stopped.candidates] == [FinishReason.CANCELLED] * 3
    assert [each.displayed_text for each in stopped.candidates] == ["x"] * 3


def test_a_call_that_outlives_the_drain_is_ended(tmp_path):
    engine = Stalled()
    settings = serve_settings(tmp_path / "data", drain_seconds=0.3)
    outcome = []
    with (
        local_server(tmp_path / "data", engine, load_plugins(("echo",)), settings=settings) as server,
        Plaudit(server.target, patience=0.0) as client,
    ):

        def ask():
            try:
                client.generate("echo", "Hello", timeout=600.0)
            except (Cancelled, NotServing) as error:
                outcome.append(error)

        caller = threading.Thread(target=ask)
        caller.start()
        wait_until(lambda: engine.submitted == 1)
        began = time.monotonic()
        server.server.stop()
        caller.join(300)
        assert time.monotonic() - began < 300, "its own deadline is later"
        assert len(outcome) == 1
        wait_until(lambda: engine.cancelled == 1)


def test_a_completion_that_breaks_is_an_answer(stalled):
    engine, _, client = stalled
    engine.breaks = RuntimeError("a bug in the engine")
    for call in (lambda: client.generate("echo", "Hello"), lambda: list(client.stream("echo", "Hello", n=2))):
        with pytest.raises(InternalError):
            call()


def test_a_full_queue_is_an_answer(stalled):
    engine, _, client = stalled
    engine.refuses = QueueFull("4 of 4 wait", waiting=4, limit=4)
    with pytest.raises(QueueFull) as caught:
        client.generate("echo", "Hello")
    assert caught.value.metadata == {"waiting": "4", "limit": "4"}


def test_a_plugin_that_raises_is_one_failed_call_and_one_count(tmp_path, tiny_engine):
    echo = load_plugins(("echo",))["echo"].inner

    class Broken(type(echo)):
        def parse(self, prompt, output):
            raise ZeroDivisionError

    with (
        local_server(tmp_path / "data", tiny_engine, guard([Broken()])) as server,
        Plaudit(server.target, patience=0.0) as client,
    ):
        with pytest.raises(PluginFailed) as caught:
            client.generate("echo", "Hello", max_tokens=2)
        failed = {"domain": "echo", "member": "parse", "why": "raised"}
        assert caught.value.metadata == failed
        value = server.metrics.registry.get_sample_value
        assert value("plaudit_plugin_failures_total", failed) == 1


def _ask_until_refused(client, answered):
    ends = time.monotonic() + 300
    while time.monotonic() < ends:
        answered.append(client.generate("echo", "late", max_tokens=2).interaction_id)


def _signed(signer):
    import datetime as dt

    from plaudit.serving.handle import HandleClaims

    return signer.sign(
        HandleClaims(
            tenant="t",
            domain="d",
            interaction_id="i",
            candidate_ids=(),
            answer="ab" * 16,
            rater="",
            expires_at=dt.datetime(2030, 1, 1, tzinfo=dt.UTC),
        )
    )


# A start that has no end, however quick the machine is: the base is never loaded.
NO_ENGINE = "import time; from plaudit.engine import opening; opening.open_engine = lambda settings: time.sleep(3600); "


def test_a_replica_that_is_told_to_end_while_it_starts_does_not_start(tmp_path):
    data = tmp_path / "data"
    with started("serve", tmp_path, data, NO_ENGINE) as (running, log):
        status = f"/proc/{running.pid}/status"
        if not os.path.exists(status):
            pytest.skip("which signals a process catches is read from /proc")

        def catches():
            with open(status) as lines:
                return int(lines.read().split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1

        wait_until(catches, 300)
        running.send_signal(signal.SIGTERM)
        assert running.wait(300) == 128 + signal.SIGTERM
        assert "listens" not in log.read_text()
        assert read_address(data) is None


def test_a_taken_port_names_itself(tmp_path, tiny_engine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = serve_settings(tmp_path / "data")
        serve = settings.serve.model_copy(update={"port": port})
        with (
            pytest.raises(Misconfigured, match=rf"127\.0\.0\.1:{port}.*another serve\.port"),
            local_server(tmp_path / "data", tiny_engine, {}, settings=settings.model_copy(update={"serve": serve})),
        ):
            pass
        with pytest.raises(Misconfigured, match=rf"metrics cannot be served on 127\.0\.0\.1:{port}"):
            expose(Metrics(CollectorRegistry()), port)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_host_serves_calls_and_metrics(tmp_path, tiny_engine, host, free_port):
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    settings = serve_settings(tmp_path / "data")
    settings = settings.model_copy(update={"serve": settings.serve.model_copy(update={"host": host})})
    plugins = load_plugins(("echo",))
    with local_server(tmp_path / "data", tiny_engine, plugins, settings=settings):
        target = read_address(tmp_path / "data")
        assert target.startswith("[::1]:")
        with Plaudit(target, patience=0.0, timeout=30.0) as client:
            assert client.generate("echo", "Hello", max_tokens=2).handle
    port = free_port()
    expose(Metrics(CollectorRegistry()), port, host)
    with socket.create_connection(("::1", port), timeout=30):
        pass
