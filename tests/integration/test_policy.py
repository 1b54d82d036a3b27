"""PPO on a tiny real model: the checks that an implementation must pass before its curves mean anything."""

import pytest
import torch
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.protocol import ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.learner.measure import logprobs_of
from plaudit.policy.rollout import TrainPrompt, collate, sample
from plaudit.policy.train import PolicyTrainer, Rewarded
from plaudit.settings import EngineSettings, ModelSettings, PolicySettings
from plaudit.testing.models import tiny_model
from plaudit.types import Message, Prompt

LAYERS = 2
WANTED = "tea"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def base(folder):
    return Base.load(folder)


@pytest.fixture
def engine(base):
    made = TorchEngine(base, EngineSettings(widths=(64,), prefill_chunk=4096), ModelSettings(adapter_layers=LAYERS))
    yield made
    made.close()


def _prompts(engine, count):
    found = []
    for i in range(count):
        messages = (Message("user", f"list {i} of your kind books"),)
        found.append(TrainPrompt(rendered=Prompt(messages=messages, group=str(i)), encoded=engine.encode(messages)))
    return found


def _trainer(base, engine, seed=0, **settings):
    adapters.inject(base, "policy", layers=LAYERS, rank=8, alpha=16, seed=seed)
    chosen = PolicySettings(**{"max_tokens": 12, "temperature": 0.7, **settings})
    return PolicyTrainer(base, engine, chosen, name="policy", channel="toy/default", layers=LAYERS, seed=seed)


def _rewarded(samples, totals):
    """Rewards without an outlook: the values know only how far a completion is."""
    return Rewarded(totals, [torch.full((len(s.generated.tokens),), 0.5) for s in samples])


def _chance(samples):
    return _rewarded(samples, torch.rand(len(samples)))


def _snapshot(base):
    return {name: p.detach().clone() for name, p in base.model.named_parameters()}


def test_before_the_first_update_the_policy_is_the_base(base, engine):
    trainer = _trainer(base, engine)
    rollout = collate(
        sample(engine, _prompts(engine, 4), trainer.stage(), trainer.sampling, samples=4, seed=1, capture=True)
    )
    reference = logprobs_of(base, rollout, None, base.num_layers - LAYERS, 0.7)
    policy = logprobs_of(base, rollout, "policy", base.num_layers - LAYERS, 0.7)
    assert torch.equal(policy, reference)
    assert torch.allclose(rollout.logprobs, reference, atol=1e-4)


def test_the_first_minibatch_has_ratio_one_and_only_the_policys_adapter_moves(base, engine):
    trainer = _trainer(base, engine)
    adapters.inject(base, "reward", layers=LAYERS, rank=8, alpha=16, seed=5)
    before = _snapshot(base)
    stats = trainer.iterate(_prompts(engine, 4), _chance, 0)
    assert stats.parity < 1e-4
    assert abs(stats.kl_nats_per_sequence) < 1e-3
    after = _snapshot(base)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".policy." in name for name in moved)


def test_with_the_adapter_off_the_model_is_bit_equal_to_the_base(base, engine, folder):
    trainer = _trainer(base, engine, lr=1e-2)
    trainer.iterate(_prompts(engine, 4), _chance, 0)
    tokens = torch.tensor([engine.encode([Message("user", "tea")]).tokens])
    fresh = Base.load(folder)
    with adapters.active(base, None):
        assert torch.equal(
            base.logits(base.upper(base.trunk(tokens, 0), 0)), fresh.logits(fresh.upper(fresh.trunk(tokens, 0), 0))
        )


def test_saved_loaded_and_served_give_the_same_logprobs(base, engine, tmp_path):
    trainer = _trainer(base, engine, lr=1e-2)
    prompts = _prompts(engine, 4)
    for i in range(2):
        trainer.iterate(prompts, _chance, i)
    adapters.save(base, "policy", tmp_path)
    adapters.load(base, "again", tmp_path)
    key = ReleaseKey("toy/default", 1, "saved")
    engine.stage(key, tmp_path, temperature=0.7)
    rollout = collate(sample(engine, prompts, key, trainer.sampling, samples=4, seed=3, capture=True))
    start = base.num_layers - LAYERS
    trained = logprobs_of(base, rollout, "policy", start, 0.7)
    assert torch.equal(trained, logprobs_of(base, rollout, "again", start, 0.7))
    assert torch.allclose(trained, rollout.logprobs, atol=1e-3)
    reference = logprobs_of(base, rollout, None, start, 0.7)
    assert (trained - reference)[rollout.mask].abs().mean() > 1e-2


def test_padding_changes_no_logprob(base, engine):
    trainer = _trainer(base, engine)
    rollout = collate(
        sample(engine, _prompts(engine, 6), trainer.stage(), trainer.sampling, samples=2, seed=2, capture=True)
    )
    start = base.num_layers - LAYERS
    together = logprobs_of(base, rollout, None, start, 0.7)
    for row, each in enumerate(rollout.samples):
        alone = logprobs_of(base, collate([each]), None, start, 0.7)[0]
        assert torch.allclose(together[row][rollout.mask[row]], alone, atol=1e-5)


def test_equal_rewards_teach_nothing_but_the_kl(base, engine):
    trainer = _trainer(base, engine, advantage="rloo", kl_coef=0.005)
    before = _snapshot(base)
    stats = trainer.iterate(
        _prompts(engine, 4), lambda samples: _rewarded(samples, torch.full((len(samples),), 0.7)), 0
    )
    assert abs(stats.kl_nats_per_sequence) < 1e-3
    # The policy equals the reference and all rewards are equal: every advantage is what rounding leaves of zero.
    moved = max((before[n] - p).abs().max().item() for n, p in base.model.named_parameters())
    assert moved < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("advantage", "seeds", "wanted_seeds"), [("gae", 5, 4), ("rloo", 1, 1)])
def test_ppo_solves_a_toy_task(folder, advantage, seeds, wanted_seeds):
    """Reward is the share of generated tokens that are one word; > .9 is asked of four seeds in five."""
    solved = 0
    for seed in range(seeds):
        base = Base.load(folder)
        wanted = base.encode_text(f" {WANTED}")[0]
        engine = TorchEngine(
            base, EngineSettings(widths=(64,), prefill_chunk=4096), ModelSettings(adapter_layers=LAYERS)
        )
        trainer = _trainer(
            base,
            engine,
            seed,
            advantage=advantage,
            lr=1e-2,
            max_tokens=8,
            kl_coef=0.005,
            kl_target=1e9,
            temperature=1.0,
        )

        def reward(samples, wanted=wanted):
            totals = torch.tensor([s.generated.tokens.count(wanted) / len(s.generated.tokens) for s in samples])
            return _rewarded(samples, totals)

        prompts = _prompts(engine, 16)
        for i in range(40):
            stats = trainer.iterate(prompts, reward, i)
            if stats.reward > 0.9:
                solved += 1
                break
        engine.close()
        if solved >= wanted_seeds:
            break
    assert solved >= wanted_seeds
