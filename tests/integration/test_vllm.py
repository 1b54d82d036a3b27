"""The engine over a real vLLM server (`make test-vllm`): what it answers is what our own engine would.

PLAUDIT_TEST_VLLM names the program `vllm`, or the address of a server that runs
`plaudit model prepare tiny` as docs/vllm.md says, in float32.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
from plaudit.client import Plaudit
from plaudit.demo import vllm
from plaudit.doctor.vllm import servers as doctor
from plaudit.engine.protocol import Job, ReleaseKey
from plaudit.errors import Cancelled, EngineUnavailable, Misconfigured, ProofFailed
from plaudit.eventlog import Topic
from plaudit.plugins import load_plugins
from plaudit.serving.proof import REMOTE, prove
from plaudit.settings import load_settings
from plaudit.testing.serving import local_server
from plaudit.testing.waiting import wait_until
from plaudit.types import Channel, FinishReason, Message, Sampling

GIVEN = os.environ.get("PLAUDIT_TEST_VLLM", "")
pytestmark = [
    pytest.mark.skipif(not GIVEN, reason="NO VLLM: set PLAUDIT_TEST_VLLM (make test-vllm); nothing of vLLM was tested"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
START_SECONDS = 600
CHANNEL = Channel("echo", "default")
BASE = ReleaseKey(str(CHANNEL), 0, "base")
TEXTS = ("Name a colour.", "What is tea?", "Tell me of the sea, in a long sentence.")
CLOSE = REMOTE.greatest


class RealServer:
    def __init__(self, address, command, environ, log):
        self.address, self._command, self._environ, self._log = address, command, environ, log
        self._process = None

    def start(self):
        if self._command:
            with self._log.open("ab") as output:
                # A group of its own: vLLM's workers must not outlive it.
                self._process = subprocess.Popen(
                    self._command, env=self._environ, stdout=output, stderr=output, start_new_session=True
                )
        end = time.monotonic() + START_SECONDS
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.address}/health", timeout=5, trust_env=False).is_success:
                    return
            died = self._process is not None and self._process.poll() is not None
            assert not died, f"vLLM ended:\n{self._log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"vLLM did not start:\n{self._log.read_text()[-3000:]}"
            time.sleep(0.5)

    def kill(self):
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def mortal(self):
        return bool(self._command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from plaudit.testing.models import pretrained_tiny

    return pretrained_tiny(tmp_path_factory.mktemp("vllm-model") / "tiny")


@pytest.fixture(scope="module")
def tiny_base(folder):
    """The base of our own engine, to compare with."""
    from plaudit.engine.base import Base

    return Base.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def trainer_base(folder):
    """A copy of it on which adapters are made."""
    from plaudit.engine.base import Base

    return Base.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    if GIVEN.startswith("http"):
        real = RealServer(GIVEN, None, None, None)
        real.start()
        yield real
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = vllm.command(GIVEN, folder, port, context_length=512)
    log = tmp_path_factory.mktemp("vllm-log") / "serve.log"
    real = RealServer(f"http://127.0.0.1:{port}", command, dict(vllm.environ(threads=1)), log)
    try:
        real.start()
        yield real
    finally:
        real.kill()


@pytest.fixture
def settings(tmp_path, folder, server):
    return load_settings(
        overrides=[
            f"data_dir={tmp_path / 'data'}",
            f"model.path={folder}",
            "model.adapter_layers=2",
            "engine.kind=vllm",
            f'engine.vllm.servers=["{server.address}"]',
            "engine.vllm.dtype=float32",
            "engine.vllm.silence_seconds=120",  # the first request of a run compiles
            "serve.port=0",
            "serve.metrics_port=0",
            "serve.poll_seconds=0.05",
        ],
        environ={},
    )


@pytest.fixture
def remote(settings):
    from plaudit.engine.vllm.engine import VllmEngine

    engine = VllmEngine.of(settings)
    yield engine
    engine.close()


@pytest.fixture
def own(tiny_engine):
    return tiny_engine


@contextmanager
def served(tmp_path, settings, remote):
    with local_server(tmp_path / "data", remote, load_plugins(("echo",)), settings=settings) as local:
        local.server.router._staging._tolerance = REMOTE
        yield local


@pytest.fixture
def local(tmp_path, settings, remote):
    with served(tmp_path, settings, remote) as server:
        yield server


def staged(engines, registry, row, tmp_path):
    """A registered release in engines, under its key."""
    key = ReleaseKey(str(CHANNEL), row.version, row.digest)
    for engine in engines:
        engine.stage(key, fetched(registry, row, tmp_path), temperature=0.7)
    return key


def fetched(registry, row, tmp_path):
    return registry.fetch(CHANNEL, row.version, tmp_path / f"fetched-{row.version}") / "policy"


def asked(engine, release, text, tokens=24, seed=5, **more):
    prompt = engine.encode([Message("user", text)])
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": tokens, **more})
    return Job(prompt=prompt, release=release, sampling=sampling, seed=seed)


def apart(one, other):
    return max(abs(x - y) for x, y in zip(one, other, strict=True))


@pytest.fixture
def releases(local, remote, own, make_release, tmp_path):
    """The base and two releases, staged in both engines."""
    rows = [make_release(local.registry, CHANNEL, seed) for seed in (1, 2)]
    for engine in (remote, own):
        engine.stage(BASE, None)
    return [BASE, *(staged((remote, own), local.registry, row, tmp_path) for row in rows)]


def test_answers_are_those_of_our_own_engine(remote, own, releases):
    for release in releases:
        for text in TEXTS:
            job = asked(own, release, text)
            assert remote.encode([Message("user", text)]) == job.prompt
            mine, theirs = own.submit([job])[0].result(60), remote.submit([job])[0].result(120)
            assert (mine.tokens, mine.text, mine.finish_reason) == (theirs.tokens, theirs.text, theirs.finish_reason)
            assert apart(mine.logprobs_raw, theirs.logprobs_raw) < CLOSE
            assert theirs.logprobs_sampled == mine.logprobs_sampled
    greedy = {remote.submit([asked(own, release, TEXTS[0])])[0].result(60).tokens for release in releases}
    assert len(greedy) == 3


def test_log_probs_are_those_of_what_was_drawn(remote, own, releases):
    release = releases[1]
    for more in ({"temperature": 0.7}, {"temperature": 1.0}, {"temperature": 1.3}):
        job = asked(own, release, TEXTS[1], **more)
        drawn = remote.submit([job])[0].result(60)
        for temperature, found in ((more["temperature"], drawn.logprobs_sampled), (1.0, drawn.logprobs_raw)):
            assert apart(own.score(job.prompt, [drawn.tokens], release, temperature)[0], found) < CLOSE
        assert remote.submit([job])[0].result(60).tokens == drawn.tokens
        assert remote.submit([asked(own, release, TEXTS[1], seed=6, **more)])[0].result(60).tokens != drawn.tokens
    job = asked(own, release, TEXTS[1], temperature=0.9, top_k=3, top_p=0.8)
    drawn = remote.submit([job])[0].result(60)
    (raw,) = own.score(job.prompt, [drawn.tokens], release, 1.0)
    (whole,) = own.score(job.prompt, [drawn.tokens], release, 0.9)
    assert apart(raw, drawn.logprobs_raw) < CLOSE
    # What is left out gives its share to what is kept.
    assert all(kept >= all_ - CLOSE for kept, all_ in zip(drawn.logprobs_sampled, whole, strict=True))


def test_a_stream_stops_where_ours_does_and_can_be_given_up(remote, own, releases):
    release = releases[1]
    whole = own.submit([asked(own, release, TEXTS[2], tokens=60)])[0].result(60)
    stop = whole.text[12:15]
    job = asked(own, release, TEXTS[2], tokens=60, stop=(stop,))
    mine, theirs = own.submit([job])[0].result(60), remote.submit([job])[0]
    assert "".join(theirs.deltas(60)) == mine.text
    assert (theirs.result(60).tokens, theirs.result(60).finish_reason) == (mine.tokens, FinishReason.STOP)
    ticket = remote.submit([asked(own, release, TEXTS[2], tokens=300, temperature=1.5)])[0]
    shown = next(iter(ticket.deltas(60)))
    ticket.cancel()
    with pytest.raises(Cancelled):
        ticket.result(60)
    kept = ticket.so_far()
    assert kept.text.startswith(shown)
    (raw,) = own.score(job.prompt, [kept.tokens], release, 1.0)
    assert apart(raw, kept.logprobs_raw) < CLOSE


def test_options_are_scored_as_by_our_own_engine(remote, own, releases):
    prompt = own.encode([Message("user", TEXTS[0])])
    options = [own.encode_text(text) for text in ("a warm drink", "a warm day", "no", "the sea is blue and wide")]
    for release in releases:
        mine, theirs = (each.score_options(prompt, options, release, 0.7).result(120) for each in (own, remote))
        assert max(apart(x, y) for x, y in zip(mine, theirs, strict=True)) < CLOSE


def test_the_proof_passes_for_the_right_adapter_and_fails_for_another(remote, local, make_release, tmp_path):
    right, wrong = (make_release(local.registry, CHANNEL, seed) for seed in (11, 12))
    remote.stage(BASE, None)
    manifest = local.registry.manifest(CHANNEL, right.version)
    key = staged([remote], local.registry, right, tmp_path)
    proof = prove(remote, key, BASE, manifest, tolerance=REMOTE)
    print(f"proof over vLLM: greatest {proof.greatest:.2e}, mean {proof.mean:.2e}, from base {proof.from_base:.2e}")
    other = staged([remote], local.registry, wrong, tmp_path)
    with pytest.raises(ProofFailed, match="trainer"):
        prove(remote, other, BASE, manifest, tolerance=REMOTE)
    # Somebody loaded other weights under the name before us.
    remote.unstage(key)
    remote.unstage(other)
    name = remote._shelf.put(fetched(local.registry, right, tmp_path)).name
    body = {"lora_name": name, "lora_path": str(fetched(local.registry, wrong, tmp_path))}
    httpx.post(f"{local.settings.engine.vllm.servers[0]}/v1/load_lora_adapter", json=body, trust_env=False)
    key = staged([remote], local.registry, right, tmp_path)
    with pytest.raises(ProofFailed, match="trainer"):
        prove(remote, key, BASE, manifest, tolerance=REMOTE)


def test_swaps_while_streaming_drop_and_alter_nothing(local, own, make_release, tmp_path):
    rows = [make_release(local.registry, CHANNEL, seed) for seed in (21, 22)]
    done, failures, replies = threading.Event(), [], []

    def ask(worker):
        with Plaudit(local.target, patience=0.0, timeout=120.0) as client:
            seed = worker * 1000
            while not done.is_set():
                try:
                    *_, reply = client.stream("echo", f"Question {seed}", n=2, max_tokens=16, seed=seed)
                    replies.append(reply)
                except Exception as error:
                    failures.append(error)
                seed += 2

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    with Plaudit(local.target, timeout=60.0) as operator:
        for index in range(6):
            version = rows[index % 2].version
            operator.promote(str(CHANNEL), version)
            wait_until(lambda version=version: local.server.router.serving()[CHANNEL].version == version)
            answered = len(replies)
            wait_until(lambda answered=answered: len(replies) > answered + 2)
    done.set()
    for thread in threads:
        thread.join(120)
    assert failures == []
    for row in rows:
        staged([own], local.registry, row, tmp_path)
    own.stage(ReleaseKey(str(CHANNEL), 0, local.registry.release(CHANNEL, 0).digest), None)
    counted = {}
    for interaction in local.records(Topic.INTERACTIONS):
        for candidate in interaction.candidates:
            named = ReleaseKey(str(CHANNEL), candidate.release_version, candidate.release_digest)
            for key in own.staged():
                (raw,) = own.score(prompt_of(interaction), [candidate.tokens], key, 1.0)
                same = apart(raw, candidate.logprobs_raw) < CLOSE
                assert same == (key == named), (named, key, apart(raw, candidate.logprobs_raw))
            counted[named.version] = counted.get(named.version, 0) + 1
    print(f"completions by release, over six swaps: {counted}")
    assert {row.version for row in rows} <= set(counted)


def prompt_of(interaction):
    from plaudit.engine.protocol import EncodedPrompt

    return EncodedPrompt(interaction.prompt_tokens)


def test_a_server_with_too_few_places_for_adapters_is_refused(remote, settings):
    from plaudit.engine.vllm.engine import VllmEngine

    (place,) = remote._fleet._places
    assert (place.max_loras or 0) > settings.engine.adapter_slots
    greedy = settings.engine.model_copy(update={"adapter_slots": place.max_loras})
    with pytest.raises(Misconfigured, match=f"has {place.max_loras} places for adapters"):
        VllmEngine.of(settings.model_copy(update={"engine": greedy}))


def test_the_doctor_finds_the_server_well_and_a_wrong_address_bad(settings, tmp_path):
    (finding,) = doctor(settings)
    assert finding.status == "good", finding
    elsewhere = settings.engine.vllm.model_copy(update={"servers": ("http://127.0.0.1:9",)})
    engine = settings.engine.model_copy(update={"vllm": elsewhere})
    (finding,) = doctor(settings.model_copy(update={"engine": engine}))
    assert (finding.status, "127.0.0.1:9" in finding.message) == ("bad", True)


def test_a_killed_server_is_unavailable_and_a_restarted_one_proves_itself(remote, own, releases, server):
    if not server.mortal:
        pytest.skip("NOT OUR SERVER: a restart of vLLM was not tested")
    job = asked(own, releases[1], TEXTS[0])
    remote.score(job.prompt, [own.encode_text("a warm drink")], releases[1], 0.7)
    before = remote.submit([job])[0].result(60)
    server.kill()
    with pytest.raises(EngineUnavailable, match=server.address):
        remote.submit([job])[0].result(60)
    server.start()
    wait_until(lambda: remote.servers() == (1, 1))
    after = remote.submit([job])[0].result(120)
    assert (after.tokens, after.text) == (before.tokens, before.text)
    assert apart(after.logprobs_raw, before.logprobs_raw) < CLOSE
