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
from plaudit.testing.waiting import wait_until
from plaudit.v1 import feedback_pb2_grpc, releases_pb2, releases_pb2_grpc
from plaudit.wire import from_call

WORKERS = 3
LONG = 600.0  # seconds: ends what hangs, and nothing else


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
        # No channel has served, so an accepted watch gives no state and stays open.
        watches = [watch(channel, stack) for _ in range(2 * WORKERS)]
        wait_until(lambda: sum(call.done() for call in watches) >= WORKERS)
        refused = [call for call in watches if call.done()]
        assert {type(from_call(call)) for call in refused} == {QueueFull}
        assert len(refused) == WORKERS, "the others have a place"
        full = refused[0]
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
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=LONG).status == 1
        seen = next(iter(health.Watch(health_pb2.HealthCheckRequest(), timeout=LONG)))
        assert seen.status == health_pb2.HealthCheckResponse.SERVING
        # Some reflection streams are open, the others were refused: none hangs, and a place is free again afterwards.
        for call in listed:
            call.cancel()
        wait_until(lambda: reflects(channel))
        for call in streams:
            call.cancel()
        with Plaudit(local.target, patience=LONG, timeout=LONG) as client:
            assert client.generate("echo", "Hello", max_tokens=2).handle


def test_watches_and_bulk_streams_have_a_deadline_and_may_be_opened_again(make_server):
    def watched(seconds):
        """The server, and what watches on it that end by its own limit have shown."""
        local, shown = make_server(stream_seconds=seconds), []
        with Plaudit(local.target, patience=0.0, timeout=LONG) as client:
            client.generate("echo", "Hello", max_tokens=2)
            for _ in range(2):
                states = []
                with pytest.raises(DeadlinePassed):
                    states.extend(iter_into(states, client.watch(timeout=LONG)))
                shown.append([str(state.channel) for state in states])
        return local, shown

    # On a slow machine the limit may be over before a first state is there: then a longer one shows it.
    for seconds in (0.3, 3.0, 30.0):
        local, shown = watched(seconds)
        if all(shown):
            break
    assert shown == [["echo/default"]] * 2
    with Plaudit(local.target, patience=0.0, timeout=LONG) as client:
        # Without a timeout of its own a watch outlives the service's, and tells each state once.
        endless = client.watch()
        assert next(endless).generation == 0
        time.sleep(seconds + 0.2)
        client.pin("echo/default")
        assert next(endless).generation == 1
        endless.close()
        waiting = threading.Event()
        with pytest.raises(DeadlinePassed):
            list(client.submit_many(never(waiting), timeout=LONG))
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
    asked = releases_pb2.WatchReleasesRequest()
    call = releases_pb2_grpc.ReleaseServiceStub(channel).WatchReleases(asked, timeout=LONG)
    stack.callback(call.cancel)
    return call


def feedback_stream(channel, stack):
    """A bulk stream that is open and sends nothing."""
    ended = threading.Event()
    stack.callback(ended.set)
    call = feedback_pb2_grpc.FeedbackServiceStub(channel).StreamFeedback(never(ended), timeout=LONG)
    stack.callback(call.cancel)
    return call


def reflection_stream(channel, stack):
    ended = threading.Event()
    stack.callback(ended.set)
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(never(ended), timeout=LONG)
    stack.callback(call.cancel)
    return call


def reflects(channel):
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    try:
        (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=LONG)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return any(service.name == "plaudit.v1.AssistantService" for service in answer.list_services_response.service)


def never(ended):
    ended.wait(LONG)
    return
    yield


def iter_into(found, items):
    for item in items:
        found.append(item)
    return ()
