"""A full server is alive, every call ends, and callers cannot make tenants."""

import contextlib
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from plaudit.client import Plaudit
from plaudit.errors import DeadlinePassed, QueueFull, UnknownTenant
from plaudit.plugins import load_plugins
from plaudit.testing.serving import local_server, serve_settings
from plaudit.v1 import feedback_pb2_grpc, releases_pb2, releases_pb2_grpc
from plaudit.wire import from_call

WORKERS = 3


@pytest.fixture
def make_server(tmp_path, tiny_engine):
    with contextlib.ExitStack() as stack:

        def make(**serve):
            settings = serve_settings(tmp_path / "data", **serve)
            plugins = load_plugins(("echo",))
            return stack.enter_context(local_server(tmp_path / "data", tiny_engine, plugins, settings=settings))

        yield make


def test_a_full_server_refuses_at_once_with_retry_information_and_says_that_it_is_alive(make_server):
    local = make_server(workers=WORKERS)
    with grpc.insecure_channel(local.target) as channel, contextlib.ExitStack() as stack:
        watches = [watch(channel, stack) for _ in range(2 * WORKERS)]
        refused = []
        for call in watches:
            try:
                next(call)
            except grpc.RpcError as error:
                refused.append(error)
        # No channel has served, so an accepted watch gives no state: those that are open time out, see `watch`.
        reasons = [type(from_call(error)) for error in refused]
        assert reasons.count(QueueFull) >= WORKERS
        full = next(error for error in refused if isinstance(from_call(error), QueueFull))
        assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert b"google.rpc.RetryInfo" in dict(full.trailing_metadata())["grpc-status-details-bin"]


def test_health_and_reflection_answer_while_every_place_is_taken(make_server):
    local = make_server(workers=WORKERS)
    with grpc.insecure_channel(local.target) as channel, contextlib.ExitStack() as stack:
        streams = [feedback_stream(channel, stack) for _ in range(2 * WORKERS)]
        listed = [reflection_stream(channel, stack) for _ in range(12)]
        wait_until(lambda: sum(call.code() is not None for call in streams if call.done()) >= WORKERS)
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(3):
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=20.0).status == 1
        seen = next(iter(health.Watch(health_pb2.HealthCheckRequest(), timeout=20.0)))
        assert seen.status == health_pb2.HealthCheckResponse.SERVING
        # Some reflection streams are open, the others were refused: none hangs, and a place is free again afterwards.
        for call in listed:
            call.cancel()
        wait_until(lambda: reflects(channel))
        for call in streams:
            call.cancel()
        with Plaudit(local.target, patience=30.0, timeout=30.0) as client:
            assert client.generate("echo", "Hello", max_tokens=2).handle


def test_watches_and_bulk_streams_have_a_deadline_and_may_be_opened_again(make_server):
    local = make_server(stream_seconds=0.3)
    with Plaudit(local.target, patience=0.0, timeout=30.0) as client:
        client.generate("echo", "Hello", max_tokens=2)
        for _ in range(2):
            states = []
            with pytest.raises(DeadlinePassed):
                states.extend(iter_into(states, client.watch(timeout=60.0)))
            assert [str(state.channel) for state in states] == ["echo/default"]
        # Without a timeout of its own a watch outlives the service's, and tells each state once.
        endless = client.watch()
        assert next(endless).generation == 0
        time.sleep(0.5)
        client.pin("echo/default")
        assert next(endless).generation == 1
        endless.close()
        waiting = threading.Event()
        with pytest.raises(DeadlinePassed):
            list(client.submit_many(never(waiting), timeout=60.0))
        waiting.set()


def test_callers_cannot_make_tenants(make_server):
    local = make_server(tenants=("default", "acme"))
    with Plaudit(local.target, patience=0.0, timeout=30.0) as client:
        for tenant in ("", "default", "acme"):
            assert client.generate("echo", "Hello", max_tokens=2, tenant=tenant).handle
        with pytest.raises(UnknownTenant, match=r"no tenant 'stranger'; its operator names tenants in serve\.tenants"):
            client.generate("echo", "Hello", max_tokens=2, tenant="stranger")
    assert {str(state.channel) for state in local.registry.states()} == {"echo/default", "echo/acme"}


def watch(channel, stack):
    call = releases_pb2_grpc.ReleaseServiceStub(channel).WatchReleases(releases_pb2.WatchReleasesRequest(), timeout=3.0)
    stack.callback(call.cancel)
    return call


def feedback_stream(channel, stack):
    """A bulk stream that is open and sends nothing."""
    ended = threading.Event()
    stack.callback(ended.set)
    call = feedback_pb2_grpc.FeedbackServiceStub(channel).StreamFeedback(never(ended), timeout=60.0)
    stack.callback(call.cancel)
    return call


def reflection_stream(channel, stack):
    ended = threading.Event()
    stack.callback(ended.set)
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(never(ended), timeout=60.0)
    stack.callback(call.cancel)
    return call


def reflects(channel):
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    try:
        (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=20.0)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return any(service.name == "plaudit.v1.AssistantService" for service in answer.list_services_response.service)


def never(ended):
    ended.wait(60.0)
    return
    yield


def iter_into(found, items):
    for item in items:
        found.append(item)
    return ()


def wait_until(condition, seconds=300.0):
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.02)
