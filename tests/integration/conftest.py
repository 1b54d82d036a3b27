"""Fixtures of tests over a real channel: the tiny base once a session, an engine and a server for each test."""

import threading
import time

import pytest
from plaudit.settings import EngineSettings, ModelSettings

ADAPTER_LAYERS = 2


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    from plaudit.engine.base import Base
    from plaudit.testing.models import tiny_model

    return Base.load(tiny_model(tmp_path_factory.mktemp("tiny")), device="cpu", dtype="float32")


@pytest.fixture
def tiny_engine(tiny_base):
    from plaudit.engine.torch_engine import TorchEngine

    engine = TorchEngine(tiny_base, EngineSettings(widths=(4, 16)), ModelSettings(adapter_layers=ADAPTER_LAYERS))
    yield engine
    engine.close()


@pytest.fixture
def stands():
    """Lets an engine stand still before a decode step: `with stands(engine, after=steps) as reached, go_on`.

    `reached` is set once it stands and `go_on` lets it go on; a job that was cancelled lets it go on too, so that a
    test may wait for a cancellation that comes over a network. Then no test depends on how quick an engine is.
    """
    return Standing


class Standing:
    SECONDS = 300.0

    def __init__(self, engine, after=0):
        self.engine, self.left = engine, after
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __enter__(self):
        self.engine._step = self._step
        return self.reached, self.go_on

    def __exit__(self, *_):
        self.go_on.set()
        del self.engine._step

    def _step(self, lane):
        self.left -= 1
        if self.left < 0:
            self.reached.set()
            ends = time.monotonic() + self.SECONDS
            while not (self.go_on.wait(0.002) or self._cancelled() or time.monotonic() > ends):
                pass
        type(self.engine)._step(self.engine, lane)

    def _cancelled(self):
        return any(ticket.cancelled for ticket in list(self.engine._rows.values()))


@pytest.fixture
def local(tmp_path, tiny_engine):
    from plaudit.plugins import load_plugins
    from plaudit.testing.serving import local_server

    with local_server(tmp_path / "data", tiny_engine, load_plugins(("echo", "echo-choice"))) as server:
        yield server


@pytest.fixture
def client(local):
    from plaudit.client import Plaudit

    with Plaudit(local.target, patience=0.0, timeout=30.0) as client:
        yield client


@pytest.fixture(scope="session")
def trainer_base(tmp_path_factory):
    """A second copy of the tiny base, as the learner has its own: adapters are made and measured here."""
    from plaudit.engine.base import Base
    from plaudit.testing.models import tiny_model

    return Base.load(tiny_model(tmp_path_factory.mktemp("trainer")), device="cpu", dtype="float32")


@pytest.fixture
def make_release(trainer_base, tmp_path):
    """Registers a release with a seeded random adapter and honest probes, gated; `spoil` may change its manifest."""
    return ReleaseMaker(trainer_base, tmp_path / "releases")


class ReleaseMaker:
    # At a strength of .3 a token of seed 0 is 1.6e-3 nats off in float32 itself (the trainer's, from the same
    # in float64), which is more than the proof allows between two ways to sum.
    def __init__(self, base, folder):
        self.base = base
        self.folder = folder

    def __call__(self, registry, channel, seed, *, temperature=0.7, strength=0.2, spoil=lambda manifest: manifest):
        import datetime as dt
        import hashlib

        from plaudit.engine import adapters
        from plaudit.release.decision import Decision
        from plaudit.release.manifest import ADAPTER_WEIGHTS, Adapter, Manifest
        from plaudit.testing.training import random_adapter

        registry.ensure_channel(channel, self.base.digest)
        artifacts = self.folder / f"{channel.tenant}-{seed}"
        random_adapter(self.base, "made", layers=ADAPTER_LAYERS, seed=seed, spread=strength)
        try:
            adapters.save(self.base, "made", artifacts / "policy")
            probes = self._probes(temperature)
        finally:
            adapters.remove(self.base, "made")
        weights = (artifacts / ADAPTER_WEIGHTS).read_bytes()
        manifest = Manifest(
            channel=channel,
            base_digest=self.base.digest,
            temperature=temperature,
            adapter=Adapter(digest=hashlib.sha256(weights).hexdigest(), rank=8, alpha=16, layers=ADAPTER_LAYERS),
            probes=probes,
        )
        row = registry.register(spoil(manifest), artifacts)
        return registry.decide(channel, row.version, Decision(True, (), dt.datetime.now(dt.UTC)))

    def _probes(self, temperature):
        import torch
        from plaudit.engine import adapters
        from plaudit.engine.targets import start_layer
        from plaudit.release.manifest import Probe
        from plaudit.types import Message

        start = start_layer(self.base, ADAPTER_LAYERS)
        probes = []
        for text in ("Name a colour.", "What is tea?"):
            prompt = self.base.encode([Message("user", text)]).tokens
            completion = self.base.encode_text("a warm drink for the afternoon")
            tokens = torch.tensor([[*prompt, *completion]])
            with torch.no_grad(), adapters.active(self.base, "made"):
                hidden = self.base.upper(self.base.trunk(tokens, start), start)
                logprobs = torch.log_softmax(self.base.logits(hidden) / temperature, dim=-1)[0]
            # The log-prob of token t stands at the position before it.
            at = [float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(completion)]
            probes.append(Probe(prompt_tokens=prompt, completion_tokens=completion, logprobs=tuple(at)))
        return tuple(probes)
