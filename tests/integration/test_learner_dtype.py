"""A learner whose own passes round: ratios are of passes that are computed alike, and proofs know nothing of it."""

import random

import pytest
import torch
from plaudit.engine import adapters, packed
from plaudit.engine.base import Base
from plaudit.engine.frozen import exact, quicken
from plaudit.engine.protocol import ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import Misconfigured
from plaudit.learner.loop import _own_format
from plaudit.learner.measure import Measurer
from plaudit.learner.rewards import Rewarded
from plaudit.plugins import load_plugins
from plaudit.policy.train import PolicyTrainer
from plaudit.settings import EngineSettings, ModelSettings, PolicySettings
from plaudit.testing.models import tiny_model
from plaudit.testing.training import book_prompts, completion_task, random_adapter
from plaudit.types import Sampling

LAYERS = 1
HOW = Sampling(temperature=0.7, max_tokens=12)
in_bfloat16 = pytest.mark.skipif(not packed.multiplies_bfloat16(), reason="this processor does not multiply bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def base(folder):
    return Base.load(folder, device="cpu", dtype="float32")


@pytest.fixture
def engine(base):
    made = TorchEngine(base, EngineSettings(widths=(16,)), ModelSettings(adapter_layers=LAYERS))
    yield made
    made.close()


def _logits(base):
    tokens = torch.arange(40)[None] * 7 % base.vocab_size
    with torch.no_grad():
        return base.logits(base.upper(base.trunk(tokens, 0), 0))


@in_bfloat16
def test_a_block_computes_exactly_and_the_linears_round_again_behind_it(base):
    wanted = _logits(base)
    assert quicken(base, torch.bfloat16)
    rounded = _logits(base)
    assert (rounded - wanted).abs().max() > 1e-3
    with exact(base):
        assert base.format == torch.float32
        assert torch.equal(_logits(base), wanted)
    assert base.format == torch.bfloat16
    assert torch.equal(_logits(base), rounded)


@in_bfloat16
def test_a_policy_that_has_not_moved_has_no_distance_however_its_linears_round(base, engine, tmp_path):
    quicken(base, torch.bfloat16)
    adapters.inject(base, "policy", layers=LAYERS, rank=8, alpha=16, seed=0)
    prompts, drawn = book_prompts(engine, 4), random.Random(0)
    task = completion_task(
        base,
        engine,
        tmp_path,
        PolicySettings(max_tokens=12, temperature=0.7, epochs=1),
        layers=LAYERS,
        train=prompts,
        reward=lambda samples: Rewarded(torch.tensor([drawn.random() for _ in samples]), []),
    )
    stats = PolicyTrainer(task).iterate(prompts, 0)
    assert stats.parity > 1e-4  # what the engine and the trainer's pass make of the same tokens
    assert abs(stats.kl_nats_per_sequence) < 1e-5
    assert stats.updates >= 1


@in_bfloat16
def test_log_probs_of_the_proof_are_those_of_a_base_that_rounds_nothing(folder, base, engine):
    made = {}
    for name in ("rounds", "exact"):
        held = base if name == "rounds" else Base.load(folder, device="cpu", dtype="float32")
        if name == "rounds":
            quicken(held, torch.bfloat16)
        random_adapter(held, "policy", layers=LAYERS, seed=1, spread=0.2)
        engine.stage(key := ReleaseKey("echo/default", 0, ""), None)
        measurer = Measurer(
            held,
            engine,
            load_plugins(("echo",))["echo"],
            None,
            None,
            HOW,
            samples=1,
            start_layer=held.num_layers - LAYERS,
            seed=0,
            answers=None,
            probe_seed=0,
            detail=lambda line: None,
        )
        made[name] = measurer.proof(key, "policy", 0.7)
    assert made["rounds"] == made["exact"]


def test_the_learner_s_format_is_its_engine_s_unless_it_is_named(monkeypatch):
    assert _own_format("engine", EngineSettings(dtype="float32")) == torch.float32
    assert _own_format("float32", EngineSettings(dtype="auto")) == torch.float32
    monkeypatch.setattr(packed, "multiplies_bfloat16", lambda: True)
    assert _own_format("engine", EngineSettings(dtype="bfloat16")) == torch.bfloat16
    assert _own_format("auto", EngineSettings()) == torch.bfloat16
    monkeypatch.setattr(packed, "multiplies_bfloat16", lambda: False)
    with pytest.raises(Misconfigured, match=r"set model\.learner_dtype to auto or float32"):
        _own_format("bfloat16", EngineSettings())
