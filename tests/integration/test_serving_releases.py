"""What a replica does with releases: follows, proves, refuses, forgets; and what operators see."""

import contextlib
import datetime as dt
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import structlog
import structlog.testing
from grpc_health.v1 import health_pb2, health_pb2_grpc
from plaudit.client import Plaudit
from plaudit.errors import (
    DeadlinePassed,
    GenerationChanged,
    InvalidField,
    LogUnavailable,
    Misconfigured,
    NotServing,
    ProofFailed,
    ReleaseNotServable,
    UnknownChannel,
    UnknownRelease,
    WrongState,
)
from plaudit.eventlog import Topic
from plaudit.release.manifest import Probe
from plaudit.release.moves import Promote, RollBack
from plaudit.serving.proof import EXACT
from plaudit.serving.router import Router
from plaudit.serving.staging import Staging
from plaudit.testing.waiting import wait_until
from plaudit.types import Channel

CHANNEL = Channel("echo", "default")
NAME = "echo/default"


def test_a_promotion_is_served_recorded_and_counted(local, client, make_release):
    client.generate("echo", "Hello", max_tokens=2)
    row = make_release(local.registry, CHANNEL, 1)
    state = client.promote(NAME, row.version, reason="better")
    assert (state.live, state.generation) == (row.version, 1)
    wait_until(lambda: client.generate("echo", "Hello", max_tokens=2).completions[0].release_version == row.version)
    (change,) = local.records(Topic.RELEASES)
    assert (change.channel, change.live, change.generation, change.reason) == (CHANNEL, row.version, 1, "better")
    value = local.metrics.registry.get_sample_value
    # Told a moment after it is served.
    wait_until(lambda: value("plaudit_swaps_total", {"channel": NAME}) == 2)  # version 0, then this one
    assert value("plaudit_replica_release", {"channel": NAME}) == row.version


def test_the_first_reply_of_a_release_tells_once_how_long_the_newest_act_took(local, client, make_release):
    acted = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=90)
    client.generate("echo", "Hello", max_tokens=2)
    row = make_release(local.registry, CHANNEL, 1, spoil=lambda made: made.replace(newest_feedback_at=acted))
    client.promote(NAME, row.version)

    def served():
        reply = client.generate("echo", "Hello", max_tokens=2, purpose="evaluate")
        return reply.completions[0].release_version == row.version

    wait_until(served)
    value = local.metrics.registry.get_sample_value
    labels = {"channel": NAME}
    assert not value("plaudit_feedback_to_served_seconds_count", labels), "EVALUATE is no caller's reply"
    told = {**labels, "version": str(row.version), "digest": row.digest[:12]}
    wait_until(lambda: value("plaudit_release_info", told) == 1)
    for _ in range(2):
        client.generate("echo", "Hello", max_tokens=2)
    assert value("plaudit_feedback_to_served_seconds_count", labels) == 1
    assert 90 <= value("plaudit_feedback_to_served_seconds_sum", labels) < 90 + 300


def test_a_release_samples_at_its_own_temperature_unless_the_caller_names_one(local, client, make_release):
    row = make_release(local.registry, CHANNEL, 1, temperature=0.5)
    client.generate("echo", "Hello", max_tokens=2, release_versions=[row.version])
    client.generate("echo", "Hello", max_tokens=2, release_versions=[row.version], temperature=0.25)
    own, asked = local.records(Topic.INTERACTIONS)
    assert (own.candidates[0].sampling.temperature, asked.candidates[0].sampling.temperature) == (0.5, 0.25)


def off_by(amount):
    def spoil(manifest):
        first, *rest = manifest.probes
        shifted = tuple(x - amount for x in first.logprobs)
        return manifest.replace(
            probes=(
                Probe(prompt_tokens=first.prompt_tokens, completion_tokens=first.completion_tokens, logprobs=shifted),
                *rest,
            )
        )

    return spoil


SPOILT = {
    "log-probs that differ from the trainer's": {"spoil": off_by(2e-3)},
    "no probes": {"spoil": lambda manifest: manifest.replace(probes=())},
    "an adapter that changes nothing": {"strength": 1e-4},
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_release_that_fails_its_proof_is_not_served_and_serving_goes_on(local, client, make_release, case):
    client.generate("echo", "Hello", max_tokens=2)
    row = make_release(local.registry, CHANNEL, 3, **SPOILT[case])
    client.promote(NAME, row.version)
    value = local.metrics.registry.get_sample_value
    refused = ("plaudit_release_refusals_total", {"channel": NAME, "reason": "PROOF_FAILED"})
    wait_until(lambda: value("plaudit_replica_behind", {"channel": NAME}) == 1)
    assert value(*refused) == 1
    assert client.generate("echo", "Hello", max_tokens=2).completions[0].release_version == 0
    with pytest.raises(ProofFailed):
        client.generate("echo", "Hello", max_tokens=2, release_versions=[row.version])
    # What an operator does next: the roll-back is followed at once.
    client.roll_back(NAME)
    wait_until(lambda: value("plaudit_replica_behind", {"channel": NAME}) == 0)


def test_a_difference_within_the_tolerance_passes_the_proof(local, client, make_release):
    row = make_release(local.registry, CHANNEL, 3, spoil=off_by(5e-4))
    assert client.generate("echo", "Hello", max_tokens=2, release_versions=[row.version])


def test_a_release_of_a_trainer_in_bf16_is_proved_at_the_tolerance_of_bf16(local, client, make_release):
    def spoil(manifest):
        return off_by(2e-3)(manifest).replace(base_dtype="bfloat16")

    row = make_release(local.registry, CHANNEL, 3, spoil=spoil)
    assert client.generate("echo", "Hello", max_tokens=2, release_versions=[row.version])


def test_a_damaged_artifact_is_not_servable(local, client, make_release):
    row = make_release(local.registry, CHANNEL, 4)
    (weights,) = local.settings.data_dir.glob("registry/**/*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(bytes(data))
    with pytest.raises(ReleaseNotServable):
        client.generate("echo", "Hello", max_tokens=2, release_versions=[row.version])


def test_a_replica_that_starts_late_serves_the_live_release_from_its_first_call(tmp_path, tiny_engine, make_release):
    from plaudit.plugins import load_plugins
    from plaudit.testing.serving import local_server

    plugins = load_plugins(("echo",))
    with local_server(tmp_path / "data", tiny_engine, plugins) as first:
        row = make_release(first.registry, CHANNEL, 5)
        first.registry.change(CHANNEL, Promote(row.version), expected_generation=None, actor="test", reason="")
    with local_server(tmp_path / "data", tiny_engine, plugins) as second, Plaudit(second.target) as client:
        assert client.generate("echo", "Hello", max_tokens=2).completions[0].release_version == row.version


@pytest.mark.parametrize("error", [LogUnavailable("no broker answers"), Misconfigured("the brokers refuse the user")])
def test_a_turn_whose_promotion_the_log_does_not_take_has_promoted_and_is_served(local, client, make_release, error):
    from types import SimpleNamespace

    from plaudit.learner.outcome import TurnOutcome
    from plaudit.learner.steps.promote import promote
    from plaudit.store.leases import Leases

    client.generate("echo", "Hello", max_tokens=2)
    row = make_release(local.registry, CHANNEL, 6)

    def away(*_):
        raise error

    learner = SimpleNamespace(
        registry=local.registry,
        metrics=local.metrics,
        log=SimpleNamespace(append=away),
        status=SimpleNamespace(step=lambda number, name: None),
    )
    generation = local.registry.state(CHANNEL).generation
    with Leases(local.registry.database).take("learn") as lease:
        assert promote(learner, CHANNEL, row.version, generation, lease)[0] is TurnOutcome.PROMOTED
    wait_until(lambda: client.generate("echo", "Hello", max_tokens=2).completions[0].release_version == row.version)


@pytest.mark.usefixtures("kafka_leftovers")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_releases_move_forth_and_back_while_kafka_is_away(tmp_path, tiny_engine, make_release):
    from plaudit.eventlog import open_serving_log
    from plaudit.plugins import load_plugins
    from plaudit.settings import KafkaSettings, LogSettings
    from plaudit.testing.serving import local_server, serve_settings

    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        away = KafkaSettings(bootstrap=f"127.0.0.1:{taken.getsockname()[1]}", timeout_seconds=0.3)
        settings = serve_settings(tmp_path / "data").model_copy(update={"log": LogSettings(kind="kafka", kafka=away)})
        settings.data_dir.mkdir()
        log = open_serving_log(settings)
        local = local_server(settings.data_dir, tiny_engine, load_plugins(("echo",)), settings=settings, event_log=log)
        with local as server, Plaudit(server.target, timeout=60.0) as client:

            def served():
                return client.generate("echo", "Hello", max_tokens=2).completions[0].release_version

            assert served() == 0
            row = make_release(server.registry, CHANNEL, 5)
            client.promote(NAME, row.version)
            wait_until(lambda: served() == row.version)
            client.roll_back(NAME)
            wait_until(lambda: served() == 0)
            assert len(log._box.oldest(Topic.RELEASES, 10, 1 << 20)) == 2, "both changes wait for the brokers"
        log.close()


def test_one_channels_damage_is_its_own_and_the_replica_stays_in_rotation(tmp_path, tiny_engine, make_release):
    from plaudit.plugins import load_plugins
    from plaudit.testing.serving import local_server

    plugins = load_plugins(("echo",))
    with local_server(tmp_path / "data", tiny_engine, plugins) as first:
        row = make_release(first.registry, CHANNEL, 5, spoil=off_by(1.0))
        first.registry.change(CHANNEL, Promote(row.version), expected_generation=None, actor="test", reason="")
    second_server = local_server(tmp_path / "data", tiny_engine, plugins)
    with second_server as second, grpc.insecure_channel(second.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "plaudit.v1.AssistantService", "plaudit.v1.FeedbackService"):
            asked = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(asked).status == health_pb2.HealthCheckResponse.SERVING
        value = second.metrics.registry.get_sample_value
        assert value("plaudit_replica_behind", {"channel": NAME}) == 1
        with Plaudit(second.target, patience=0.0, timeout=30.0) as client:
            for _ in range(3):
                with pytest.raises(NotServing, match=r"cannot serve the live release of echo/default"):
                    client.generate("echo", "Hello")
            # Refused from memory: a damaged release is not fetched and proved again for each request.
            refusals = {"channel": NAME, "reason": "PROOF_FAILED"}
            assert value("plaudit_release_refusals_total", refusals) == 1
            assert client.generate("echo", "Hello", tenant="other", max_tokens=2).completions[0].release_version == 0
            second.registry.change(CHANNEL, RollBack(), expected_generation=None, actor="test", reason="")
            wait_until(lambda: value("plaudit_replica_behind", {"channel": NAME}) == 0)
            assert client.generate("echo", "Hello", max_tokens=2).completions[0].release_version == 0


def channels_with_releases(registry, make_release, how_many):
    """Channels that serve a release each."""
    channels = [Channel("echo", f"t{seed}") for seed in range(how_many)]
    for seed, channel in enumerate(channels):
        row = make_release(registry, channel, seed)
        registry.change(channel, Promote(row.version), expected_generation=None, actor="test", reason="")
    return channels


def test_more_channels_than_slots_are_all_served_and_the_replica_is_in_rotation(tmp_path, tiny_engine, make_release):
    from plaudit.plugins import load_plugins
    from plaudit.testing.serving import local_server

    plugins = load_plugins(("echo",))
    with local_server(tmp_path / "data", tiny_engine, plugins) as first:
        slots = first.settings.engine.adapter_slots
        channels = channels_with_releases(first.registry, make_release, slots + 2)
    with (
        local_server(tmp_path / "data", tiny_engine, plugins) as second,
        Plaudit(second.target, timeout=30.0) as client,
    ):
        for channel in [*channels, *channels]:
            reply = client.generate("echo", "Hello", tenant=channel.tenant, max_tokens=2)
            assert reply.completions[0].release_version == 1
            assert len([key for key in second.engine.staged() if key.version]) <= slots
        with grpc.insecure_channel(second.target) as channel:
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
        assert status == health_pb2.HealthCheckResponse.SERVING


def test_requests_for_a_channel_that_is_being_staged_wait_and_others_do_not(
    tmp_path, tiny_engine, make_release, monkeypatch
):
    from plaudit.plugins import load_plugins
    from plaudit.testing.serving import local_server

    begun, go_on = threading.Event(), threading.Event()
    plugins = load_plugins(("echo",))
    with (
        local_server(tmp_path / "data", tiny_engine, plugins) as local,
        Plaudit(local.target, patience=0.0, timeout=300.0) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        monkeypatch.setattr(local.server.router, "look", lambda: None)  # only requests look at the states
        (slow,) = channels_with_releases(local.registry, make_release, 1)
        fetch = local.registry.fetch

        def slowly(channel, version, into, **more):
            begun.set()
            assert go_on.wait(300)
            return fetch(channel, version, into, **more)

        monkeypatch.setattr(local.registry, "fetch", slowly)
        first = pool.submit(client.generate, "echo", "Hello", tenant=slow.tenant, max_tokens=2)
        assert begun.wait(300)
        # Another channel begins and answers meanwhile, and a second request ends by its own deadline.
        assert client.generate("echo", "Hello", tenant="quick", max_tokens=2).completions[0].release_version == 0
        with pytest.raises(DeadlinePassed):
            client.generate("echo", "Hello", tenant=slow.tenant, timeout=0.3)
        go_on.set()
        assert first.result(300).completions[0].release_version == 1


def test_more_named_releases_than_slots_are_served_by_forgetting_the_longest_unused(local, client, make_release):
    slots = local.settings.engine.adapter_slots
    rows = [make_release(local.registry, CHANNEL, seed) for seed in range(slots + 1)]
    for row in [*rows, rows[0]]:
        reply = client.generate("echo", "Hello", max_tokens=2, release_versions=[row.version])
        assert reply.completions[0].release_version == row.version
        assert len([key for key in local.engine.staged() if key.version]) <= slots


def test_a_release_that_a_request_holds_stays_whatever_is_promoted(local, client, make_release):
    client.generate("echo", "Hello", max_tokens=2)
    slots = local.settings.engine.adapter_slots
    rows = [make_release(local.registry, CHANNEL, seed) for seed in range(slots + 1)]
    serving = local.server.router.serving
    client.promote(NAME, rows[0].version)
    wait_until(lambda: serving()[CHANNEL].version == rows[0].version)
    with local.server.router.lease(CHANNEL) as (held,):
        for row in rows[1:]:
            client.promote(NAME, row.version)
            wait_until(lambda row=row: serving()[CHANNEL].version == row.version)
        assert held.key.version == rows[0].version
        assert held.key in local.engine.staged()


def test_a_release_that_made_room_is_proved_again_when_it_comes_back(local, client, make_release):
    slots = local.settings.engine.adapter_slots
    rows = [make_release(local.registry, CHANNEL, seed) for seed in range(slots + 1)]
    for row in rows:
        client.generate("echo", "Hello", max_tokens=2, release_versions=[row.version])
    # What lies in the cache is damaged after it was checked: the proof finds it.
    (cached,) = local.settings.data_dir.glob(f"serve-cache/**/{rows[0].version}-*/**/adapter_model.safetensors")
    cached.chmod(0o600)
    (other,) = local.settings.data_dir.glob(f"serve-cache/**/{rows[1].version}-*/**/adapter_model.safetensors")
    cached.write_bytes(other.read_bytes())
    with pytest.raises(ProofFailed):
        client.generate("echo", "Hello", max_tokens=2, release_versions=[rows[0].version])


def test_operators_read_and_move_releases(local, client, make_release):
    with pytest.raises(UnknownChannel):
        client.releases(NAME)
    client.generate("echo", "Hello", max_tokens=2)
    row = make_release(local.registry, CHANNEL, 1)
    state, rows = client.releases(NAME)
    assert (state.live, state.generation, [r.version for r in rows]) == (0, 0, [0, row.version])
    assert rows[1] == local.registry.release(CHANNEL, row.version)
    found = client.release(NAME, row.version)
    assert found.row == rows[1]
    assert local.registry.manifest(CHANNEL, row.version).to_json() == found.manifest_json
    with pytest.raises(GenerationChanged):
        client.promote(NAME, row.version, expected_generation=5)
    client.promote(NAME, row.version, expected_generation=0)
    assert client.pin(NAME, reason="a fair").pinned
    with pytest.raises(WrongState):
        client.promote(NAME, row.version)
    assert not client.pin(NAME, False).pinned
    assert client.roll_back(NAME).live == 0
    assert [change.generation for change in local.records(Topic.RELEASES)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.releases("echo"), InvalidField),
        (lambda c: c.releases("echo/nobody"), UnknownChannel),
        (lambda c: c.release("echo/default", 9), UnknownRelease),
        (lambda c: c.promote("echo/default", 9), UnknownRelease),
        (lambda c: c.promote("echo/default", 0, reason="r" * 1025), InvalidField),
        (lambda c: list(c.watch("echo/nobody")), UnknownChannel),
    ],
)
def test_bad_release_calls_are_refused(client, call, error):
    client.generate("echo", "Hello", max_tokens=2)
    with pytest.raises(error):
        call(client)


def test_a_watcher_sees_the_state_and_then_each_change(local, client, make_release):
    client.generate("echo", "Hello", max_tokens=2)
    row = make_release(local.registry, CHANNEL, 1)
    seen = []
    with contextlib.closing(client.watch(NAME, timeout=300.0)) as states:
        for state in states:
            seen.append((state.generation, state.live))
            if state.live == row.version:
                break
            client.promote(NAME, row.version)
    assert seen == [(0, 0), (1, row.version)]
    with pytest.raises(DeadlinePassed):
        list(client.watch(NAME, timeout=0.3))


def test_serving_goes_on_while_the_channel_states_cannot_be_read(local, client, monkeypatch):
    client.generate("echo", "Hello", max_tokens=2)

    def broken():
        raise OSError("the database is gone")

    value = local.metrics.registry.get_sample_value
    with structlog.testing.capture_logs() as lines:
        monkeypatch.setattr(local.registry, "states", broken)
        wait_until(lambda: value("plaudit_follower_errors_total") >= 4)
    said = [line for line in lines if "channel states cannot be read" in line["event"]]
    assert len(said) == 1, "an outage is one line, not one for each look"
    assert client.generate("echo", "Hello", max_tokens=2).text is not None


def test_a_router_refuses_a_release_of_another_base(local, make_release):
    row = make_release(local.registry, CHANNEL, 1)

    class OtherBase:
        base_digest = "0" * 64

    cache = local.settings.data_dir / "other"
    router = Router(
        local.registry,
        Staging(local.registry, OtherBase(), local.metrics, cache=cache, most=4, tolerance=EXACT),
        local.metrics,
        base_digest=OtherBase.base_digest,
        domains=("echo",),
        poll_seconds=1.0,
        ready_at_start=2,
    )
    router.look()
    assert router.serving() == {}
    assert local.registry.state(CHANNEL).live == 0
    assert row.version == 1


def test_files_of_releases_are_a_bounded_cache_and_come_again_when_they_are_asked_for(local, make_release):
    rows = [make_release(local.registry, CHANNEL, seed) for seed in range(4)]
    cache = local.settings.data_dir / "other"

    def opened(most):
        return Staging(local.registry, local.engine, local.metrics, cache=cache, most=most, tolerance=EXACT)

    def kept():
        return {int(path.name.split("-")[0]) for path in cache.glob("*/*/*")}

    def ask(staging, version):
        with staging.hold(CHANNEL, version) as held:
            assert held.key.version == version
        local.engine.unstage(held.key)

    staging = opened(most=3)  # the base is one of them
    for row in rows:
        ask(staging, row.version)
    assert kept() == {3, 4}
    ask(staging, 1)
    assert kept() == {4, 1}
    # In work: what somebody makes ready is not deleted under his hands.
    place = staging._places[CHANNEL, 4]
    with place.lock:
        ask(staging, 2)
        ask(staging, 3)
        assert 4 in kept()
    # Somebody tidied up: files are fetched anew.
    for path in cache.glob("*/*/*"):
        shutil.rmtree(path)
    ask(staging, 3)
    assert kept() == {3}

    # A process that starts keeps the newest of what an earlier one left, and ends what that had begun to delete.
    ask(staging, 1)
    (cache / "echo" / "default" / ".gone-1").mkdir()
    opened(most=1)
    assert kept() == {1}


def test_versions_that_callers_make_up_fill_no_memory(local, make_release):
    make_release(local.registry, CHANNEL, 1)
    staging = Staging(
        local.registry, local.engine, local.metrics, cache=local.settings.data_dir / "other", most=4, tolerance=EXACT
    )
    for version in range(2, 50):
        with pytest.raises(UnknownRelease), staging.hold(CHANNEL, version):
            pass
    assert len(staging._places) <= 4
