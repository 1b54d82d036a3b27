"""PPO on a tiny real model: the checks that an implementation must pass before its curves mean anything."""

import dataclasses
import runpy
import sys
from pathlib import Path

import pytest
import torch
from plaudit.engine import adapter_files, adapters
from plaudit.engine.base import Base
from plaudit.engine.protocol import Generated, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import NotServing
from plaudit.learner.measure import logprobs_of
from plaudit.learner.references import SampledReferences
from plaudit.learner.rewards import ModelReward, shown_so_far
from plaudit.plugins import load_plugins
from plaudit.policy import rollout as rollout_module
from plaudit.policy.loop import kept
from plaudit.policy.optimizer import Practice, Rewarded, hold_out
from plaudit.policy.ppo import sequence_kl
from plaudit.policy.rollout import Sample, collate, sample
from plaudit.policy.train import PolicyTrainer, Ppo, with_practice
from plaudit.policy.value import BLANK
from plaudit.reward.model import RewardModel
from plaudit.settings import EngineSettings, ModelSettings, PolicySettings, RewardSettings
from plaudit.testing.models import tiny_model
from plaudit.testing.training import book_prompts, completion_task, share_of_even
from plaudit.types import FinishReason, Message, Sampling

ROOT = Path(__file__).resolve().parents[2]
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


def _task(base, engine, folder, seed=0, reward=None, live=None, train=(), held_out=(), text_checks=None, **settings):
    chosen = PolicySettings(**{"max_tokens": 12, "temperature": 0.7, **settings})
    return completion_task(
        base,
        engine,
        folder,
        chosen,
        layers=LAYERS,
        live=live,
        train=train,
        held_out=held_out,
        reward=reward or _chance,
        text_checks=text_checks or (lambda samples: ()),
        seed=seed,
    )


def _trainer(base, engine, folder, seed=0, **settings):
    adapters.inject(base, "policy", layers=LAYERS, rank=8, alpha=16, seed=seed)
    return PolicyTrainer(_task(base, engine, folder, seed, **settings))


def _rewarded(samples, totals):
    """Rewards without an outlook: the values know only how far a completion is."""
    return Rewarded(totals, [torch.full((len(s.generated.tokens),), 0.5) for s in samples])


def _chance(samples):
    return _rewarded(samples, torch.rand(len(samples)))


def _said(base, prompt, text, ended=True):
    tokens = (*base.encode_text(text), *((min(base.eos_ids),) if ended else ()))
    generated = Generated(
        tokens=tokens,
        text=base.decode(tokens),
        logprobs_raw=(0.0,) * len(tokens),
        logprobs_sampled=(0.0,) * len(tokens),
        finish_reason=FinishReason.EOS if ended else FinishReason.LENGTH,
        width=1,
        release=ReleaseKey("toy/default", 0, ""),
    )
    return Sample(prompt=prompt, generated=generated)


def test_the_outlook_of_a_token_knows_nothing_of_what_comes_later(base, engine):
    """Where the displayed text is cut depends on later tokens; a baseline must not."""
    (prompt,) = book_prompts(engine, 1)
    plugin = load_plugins(("instruction",))["instruction"]
    model = RewardModel(base, RewardSettings(adapter=False), ModelSettings(adapter_layers=LAYERS))
    references = SampledReferences(base, plugin, None, Sampling(max_tokens=8))
    reward = ModelReward(model, plugin, references, most_references=2, outlook=True)
    same = "you have tea. put the book in"
    samples = [_said(base, prompt, f"{same} a box. enjoy!"), _said(base, prompt, f"{same} tea and and", ended=False)]
    first, second = reward(samples).outlook
    assert [len(first), len(second)] == [len(each.generated.tokens) for each in samples]
    known = len(base.encode_text(same)) + 1
    assert torch.allclose(first[:known], second[:known], atol=1e-5)
    assert (first[:known] - BLANK).abs().max() > 1e-3
    # Behind a full sentence people would be shown that sentence until another ends.
    lengths = shown_so_far(base, plugin, samples[0])
    sentence = len(base.encode_text("you have tea."))
    assert lengths == sorted(lengths)
    assert set(lengths[sentence:known]) == {sentence}
    assert torch.all(first[sentence:known] == first[sentence])
    assert lengths[-1] > known


def _snapshot(base):
    return {name: p.detach().clone() for name, p in base.model.named_parameters()}


class Blind:
    """An engine that returns no activations."""

    capture_layer = None

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def submit(self, jobs):
        return self._engine.submit([dataclasses.replace(job, capture=False) for job in jobs])


def test_an_engine_that_captures_nothing_trains_the_same_adapter(folder, tmp_path):
    made = {}
    for blind in (False, True):
        base = Base.load(folder)
        engine = TorchEngine(
            base, EngineSettings(widths=(64,), prefill_chunk=4096), ModelSettings(adapter_layers=LAYERS)
        )
        prompts = book_prompts(engine, 8)
        task = _task(
            base,
            Blind(engine) if blind else engine,
            tmp_path / str(blind),
            reward=share_of_even,
            train=prompts[:6],
            held_out=prompts[6:],
            iterations=2,
        )
        optimised = Ppo().optimise(task)
        made[blind] = adapter_files.read(optimised.adapter)[1]
        engine.close()
    assert any(weights.abs().max() > 0 for name, weights in made[True].items() if "lora_B" in name)
    for name, weights in made[False].items():
        assert torch.allclose(weights, made[True][name], atol=1e-3), name


class Failing(Blind):
    """An engine whose second job breaks; it notes what is cancelled."""

    def __init__(self, engine):
        super().__init__(engine)
        self.cancelled = 0

    def submit(self, jobs):
        return [
            Noted(ticket, self, job.seed % 101 == 1) for ticket, job in zip(super().submit(jobs), jobs, strict=True)
        ]


class Noted:
    def __init__(self, ticket, engine, breaks):
        self._ticket, self._engine, self._breaks = ticket, engine, breaks

    def result(self):
        if self._breaks:
            raise NotServing("the row broke")
        return self._ticket.result()

    def cancel(self):
        self._engine.cancelled += 1
        self._ticket.cancel()


def test_if_one_completion_fails_the_others_are_not_left_waiting(base, engine):
    key = ReleaseKey("toy/default", 0, "base")
    engine.stage(key, None)
    failing = Failing(engine)
    with pytest.raises(NotServing, match="the row broke"):
        sample(failing, book_prompts(engine, 3), key, Sampling(max_tokens=200), samples=4, seed=0)
    assert failing.cancelled == 12
    assert engine.load()[1] == 0


def test_before_the_first_update_the_policy_is_the_base(base, engine, tmp_path):
    trainer = _trainer(base, engine, tmp_path)
    rollout = collate(
        sample(
            engine,
            book_prompts(engine, 4),
            trainer.stage(),
            trainer.task.sampling,
            samples=4,
            seed=1,
            capture=True,
        ),
        base,
        base.num_layers - LAYERS,
    )
    reference = logprobs_of(base, rollout, None, base.num_layers - LAYERS, 0.7)
    policy = logprobs_of(base, rollout, "policy", base.num_layers - LAYERS, 0.7)
    assert torch.equal(policy, reference)
    assert torch.allclose(rollout.logprobs, reference, atol=1e-4)


def test_the_first_minibatch_has_ratio_one_and_only_the_policys_adapter_moves(base, engine, tmp_path):
    trainer = _trainer(base, engine, tmp_path)
    adapters.inject(base, "reward", layers=LAYERS, rank=8, alpha=16, seed=5)
    before = _snapshot(base)
    stats = trainer.iterate(book_prompts(engine, 4), 0)
    assert stats.parity < 1e-4
    assert abs(stats.kl_nats_per_sequence) < 1e-3
    after = _snapshot(base)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".policy." in name for name in moved)


def test_with_the_adapter_off_the_model_is_bit_equal_to_the_base(base, engine, folder, tmp_path):
    trainer = _trainer(base, engine, tmp_path, lr=1e-2)
    trainer.iterate(book_prompts(engine, 4), 0)
    tokens = torch.tensor([engine.encode([Message("user", "tea")]).tokens])
    fresh = Base.load(folder)
    with adapters.active(base, None):
        assert torch.equal(
            base.logits(base.upper(base.trunk(tokens, 0), 0)), fresh.logits(fresh.upper(fresh.trunk(tokens, 0), 0))
        )


def test_saved_loaded_and_served_give_the_same_logprobs(base, engine, tmp_path):
    trainer = _trainer(base, engine, tmp_path, lr=1e-2)
    prompts = book_prompts(engine, 4)
    for i in range(2):
        trainer.iterate(prompts, i)
    adapters.save(base, "policy", tmp_path)
    adapters.load(base, "again", tmp_path)
    key = ReleaseKey("toy/default", 1, "saved")
    engine.stage(key, tmp_path, temperature=0.7)
    start = base.num_layers - LAYERS
    samples = sample(engine, prompts, key, trainer.task.sampling, samples=4, seed=3, capture=True)
    rollout = collate(samples, base, start)
    trained = logprobs_of(base, rollout, "policy", start, 0.7)
    assert torch.equal(trained, logprobs_of(base, rollout, "again", start, 0.7))
    assert torch.allclose(trained, rollout.logprobs, atol=1e-3)
    reference = logprobs_of(base, rollout, None, start, 0.7)
    assert (trained - reference)[rollout.mask].abs().mean() > 1e-2


def test_padding_changes_no_logprob(base, engine, tmp_path):
    trainer = _trainer(base, engine, tmp_path)
    rollout = collate(
        sample(
            engine,
            book_prompts(engine, 6),
            trainer.stage(),
            trainer.task.sampling,
            samples=2,
            seed=2,
            capture=True,
        ),
        base,
        base.num_layers - LAYERS,
    )
    start = base.num_layers - LAYERS
    together = logprobs_of(base, rollout, None, start, 0.7)
    for row, each in enumerate(rollout.samples):
        alone = logprobs_of(base, collate([each], base, start), None, start, 0.7)[0]
        assert torch.allclose(together[row][rollout.mask[row]], alone, atol=1e-5)


def _flat(samples):
    return _rewarded(samples, torch.full((len(samples),), 0.7))


def test_the_reference_is_the_base_and_its_kl_holds_the_policy_back(base, engine, folder, tmp_path):
    prompts = book_prompts(engine, 8)
    start = base.num_layers - LAYERS
    ends = {}
    # The controller's target pushes the coefficient to its greatest and its smallest.
    for target in (0.01, 1000.0):
        options = {"advantage": "rloo", "lr": 3e-3, "samples": 8, "update_kl": 0.05, "kl_target": target}
        trainer = _trainer(
            base, engine, tmp_path, reward=share_of_even, kl_coef=0.2 if target < 1 else 0.005, **options
        )
        for i in range(4):
            stats = trainer.iterate(prompts, i)
        rollout = trainer.sampled(prompts, 9)
        ends[target] = sequence_kl(rollout.logprobs, trainer.logprobs_under(rollout, None), rollout.mask).mean().item()
        trainer.unstage()
        adapters.remove(base, "policy")
    fresh = Base.load(folder)
    reference = logprobs_of(fresh, collate(rollout.samples, fresh, start), None, start, 0.7)
    assert ends[1000.0] == pytest.approx(sequence_kl(rollout.logprobs, reference, rollout.mask).mean().item(), abs=1e-3)
    assert stats.kl_nats_per_sequence > 0.1
    assert ends[0.01] < 0.7 * ends[1000.0]


def test_the_controller_acts_at_each_update(base, engine, tmp_path):
    coefficients = {}
    for target in (0.01, 1000.0):
        trainer = _trainer(base, engine, tmp_path, reward=share_of_even, lr=1e-2, kl_target=target, minibatch=8)
        first, second = (trainer.iterate(book_prompts(engine, 4), i) for i in range(2))
        assert first.kl_coef == 0.02
        coefficients[target] = second.kl_coef
        trainer.unstage()
        adapters.remove(base, "policy")
    # By 4% at each of the first iteration's updates, and up as soon as the policy has left the base.
    assert first.updates > 1
    assert coefficients[1000.0] == pytest.approx(0.02 * 0.96**first.updates, rel=1e-3)
    assert coefficients[0.01] > 1.05 * coefficients[1000.0]


def test_an_update_in_passes_of_a_prompt_is_that_of_its_minibatch(base, engine, tmp_path, monkeypatch):
    found = []
    for tokens in (1, 10**6):
        monkeypatch.setattr(rollout_module, "PASS_TOKENS", tokens)
        trainer = _trainer(base, engine, tmp_path, reward=share_of_even, samples=4, minibatch=8, epochs=1)
        slopes = []
        take = trainer._steps.take
        monkeypatch.setattr(
            trainer._steps,
            "take",
            lambda take=take, slopes=slopes: (
                slopes.append([each.grad.clone() for each in adapters.parameters(base, "policy")]),
                take(),
            ),
        )
        stats = trainer.iterate(book_prompts(engine, 4), 0)
        found.append((slopes, stats))
        trainer.unstage()
        adapters.remove(base, "policy")
    (one, by_prompt), (other, whole) = found
    assert by_prompt.updates == whole.updates == len(one) == 2
    for mine, wanted in zip(one[0], other[0], strict=True):
        assert (mine - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-9
    for name, wanted in whole.as_dict().items():
        assert by_prompt.as_dict()[name] == pytest.approx(wanted, rel=1e-3, abs=1e-6), name


def test_updates_end_inside_an_epoch_once_the_policy_has_moved_far_enough(base, engine, tmp_path):
    trainer = _trainer(
        base, engine, tmp_path, reward=share_of_even, lr=5e-2, warmup_updates=1, minibatch=4, epochs=4, update_kl=0.02
    )
    stats = trainer.iterate(book_prompts(engine, 8), 0)
    assert 1 < stats.updates < 8
    assert stats.clip_fraction > 0


def test_the_kl_to_live_holds_a_second_turn_near_its_live_release(base, engine, tmp_path):
    adapters.inject(base, "made", layers=LAYERS, rank=8, alpha=16, seed=3)
    for p in adapters.parameters(base, "made"):
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(p.numel()))
    adapters.save(base, "made", tmp_path / "live")
    adapters.remove(base, "made")
    prompts = book_prompts(engine, 8)
    ends = {}
    for coef in (0.0, 1.0):
        task = _task(
            base,
            engine,
            tmp_path / str(coef),
            reward=share_of_even,
            live=tmp_path / "live",
            train=prompts[:6],
            held_out=prompts[6:],
            **{"advantage": "rloo", "iterations": 4, "samples": 8, "lr": 3e-3, "update_kl": 0.05},
            kl_live_coef=coef,
        )
        made = Ppo().optimise(task).statistics
        # The first rollout is the live release's own; it is far from the base.
        assert abs(made[0]["kl_live_nats_per_sequence"]) < 1e-3
        assert made[0]["kl_nats_per_sequence"] > 0.1
        ends[coef] = made[-1]["kl_live_nats_per_sequence"]
    assert ends[1.0] < 0.7 * ends[0.0]


def test_the_best_state_on_held_out_prompts_leaves(base, engine, tmp_path):
    """The reward turns once the policy has left the base: a state on the way is the best one."""
    prompts = book_prompts(engine, 24)
    options = {"iterations": 6, "compared": 6, "samples": 8, "lr": 1e-2, "update_kl": 0.2, "kl_live_coef": 0.0}
    task = _task(base, engine, tmp_path, reward=share_of_even, train=prompts[:8], held_out=prompts[8:], **options)
    asked = []

    def soured(samples):
        """As share_of_even for training; on held-out prompts it falls after the third look."""
        rewarded = share_of_even(samples)
        if samples[0].prompt.group != prompts[8].group:
            return rewarded
        asked.append(rewarded.totals.mean().item())
        return rewarded if len(asked) <= 3 else rewarded._replace(totals=rewarded.totals - 0.5)

    optimised = Ppo().optimise(dataclasses.replace(task, reward=soured))
    assert [each["iteration"] for each in optimised.iterates] == list(range(7))
    assert len(optimised.statistics) == 6
    assert optimised.chosen == 2
    assert optimised.progressed
    assert optimised.adapter == kept(task, 2)
    assert asked[2] > asked[0]
    # What leaves is that state, not the last one.
    last, left = (adapter_files.read(kept(task, n))[1] for n in (6, 2))
    assert any(not torch.equal(last[name], left[name]) for name in last)


def test_a_state_that_the_gate_would_refuse_for_its_texts_does_not_leave(base, engine, tmp_path):
    """More reward by saying less: the states that the checks refuse are passed over, and the reason names the check."""
    prompts = book_prompts(engine, 16)
    options = {"iterations": 4, "compared": 4, "samples": 4, "epochs": 1, "kl_live_coef": 0.0}
    looks = []

    def rising(samples):
        """As share_of_even for training; more at each look at the held-out prompts, whatever the policy learns."""
        rewarded = share_of_even(samples)
        own = samples[0].prompt.group == prompts[8].group
        return rewarded._replace(totals=torch.full_like(rewarded.totals, float(len(looks)))) if own else rewarded

    def refused(samples):
        assert {each.prompt.group for each in samples} == {p.group for p in prompts[8:]}
        looks.append(len(samples))
        return () if len(looks) in (1, 3) else ("distinct_2",)

    task = _task(
        base, engine, tmp_path, reward=rising, train=prompts[:8], held_out=prompts[8:], text_checks=refused, **options
    )
    optimised = Ppo().optimise(task)
    assert len(looks) == 5
    assert [each["text_checks_failed"] for each in optimised.iterates] == [0, 1, 0, 1, 1]
    assert optimised.chosen == 2
    assert optimised.iterates[-1]["reward"] > optimised.iterates[2]["reward"]

    looks.clear()
    always = dataclasses.replace(task, text_checks=lambda samples: looks.append(0) or ("distinct_2",))
    assert Ppo().optimise(always).chosen == 4, "if the start is refused, too, reward decides"


def _odd(samples):
    """Harm: of twelve tokens fewer than eight have an even id."""
    assert all(each.prompt.case for each in samples), "asked of what people asked"
    return [value < 0.6 for value in share_of_even(samples).totals.tolist()]


def _cases(engine, count):
    return [dataclasses.replace(prompt, case=f"case-{prompt.group}") for prompt in book_prompts(engine, count)]


@pytest.mark.parametrize(("share", "practised"), [(0.0, 0), (0.01, 1), (0.25, 2), (0.5, 4)])
def test_a_share_of_each_rollout_is_practice(base, engine, tmp_path, share, practised):
    prompts = book_prompts(engine, 12)
    task = _task(base, engine, tmp_path, train=prompts, prompts=8, iterations=3, practice_share=share)
    assert [len(each) for each in with_practice(task)] == [8] * 3
    drawn = with_practice(dataclasses.replace(task, practice=Practice(train=_cases(engine, 5))))
    assert [[bool(prompt.case) for prompt in each] for each in drawn] == [
        [False] * (8 - practised) + [True] * practised
    ] * 3
    # In turn: no case comes again before all have come.
    asked = [prompt.case for each in drawn for prompt in each if prompt.case]
    assert len(set(asked)) == min(5, len(asked))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_conduct_is_learnt_from_practice_alone(base, engine, tmp_path, penalty):
    """People like all answers alike, so that nothing but the penalty moves the policy: away from the harm."""
    prompts = [*book_prompts(engine, 4), *_cases(engine, 8)[4:]]
    options = {"samples": 8, "lr": 3e-3, "update_kl": 0.3, "kl_coef": 0.0, "practice_penalty": penalty}
    alike = lambda samples: _rewarded(samples, torch.full((len(samples),), 0.5))  # noqa: E731
    trainer = _trainer(base, engine, tmp_path, reward=alike, **options)
    trainer.task = dataclasses.replace(
        trainer.task, practice=Practice(train=prompts[4:], held_out=prompts[4:], does_harm=_odd), held_out=prompts[:4]
    )
    rollout = trainer.sampled(prompts, 0)
    harmful = torch.tensor([False] * 32 + _odd(rollout.samples[32:]))
    look = trainer.look(0)
    assert 0 < look.harm < 1
    stats = trainer.iterate(prompts, 0)
    trainer.unstage()
    # What practice takes is not in the reward that is reported, nor in that of held-out prompts.
    assert (stats.practice_asked, stats.practice_failed) == (32, int(harmful.sum()))
    assert stats.reward == look.reward == 0.5
    moved = ((trainer.logprobs_under(rollout, "policy") - rollout.logprobs) * rollout.mask).sum(dim=1)
    if not penalty:
        assert moved.abs().max() < 1e-4
        return
    own = torch.arange(64) >= 32
    assert moved[own & harmful].mean() < moved[own & ~harmful].mean() - 0.1


def test_without_a_rise_there_is_no_candidate_and_it_says_why(base, engine, tmp_path):
    prompts = book_prompts(engine, 8)
    task = _task(
        base, engine, tmp_path, reward=_flat, train=prompts[:4], held_out=prompts[4:], iterations=2, advantage="rloo"
    )
    optimised = Ppo().optimise(task)
    assert not optimised.progressed
    assert "reward on 4 held-out prompts rose by 0.000 at best, which must exceed 0.000" in optimised.why


def test_held_out_groups_are_the_last_ones_and_never_sampled(engine):
    prompts = [*book_prompts(engine, 10), *book_prompts(engine, 10)]
    train, held_out = hold_out(prompts, PolicySettings(held_out=2))
    assert {p.group for p in held_out} == {"8", "9"}
    assert len(held_out) == 4
    assert [p.group for p in train] == [*map(str, range(8)), *map(str, range(8))]
    # Of few prompts a quarter is held out.
    assert {p.group for p in hold_out(prompts, PolicySettings())[1]} == {"8", "9"}
    assert hold_out(prompts, PolicySettings(held_out=0)) == (prompts, [])


def test_equal_rewards_teach_nothing_but_the_kl(base, engine, tmp_path):
    trainer = _trainer(base, engine, tmp_path, reward=_flat, advantage="rloo", kl_coef=0.005)
    before = _snapshot(base)
    stats = trainer.iterate(book_prompts(engine, 4), 0)
    assert abs(stats.kl_nats_per_sequence) < 1e-3
    # The policy equals the reference and all rewards are equal: what rounding leaves of zero must not be made large.
    moved = max((before[n] - p).abs().max().item() for n, p in base.model.named_parameters())
    assert moved < 1e-3


@pytest.mark.parametrize(("advantage", "seed"), [("gae", 0), ("rloo", 1)])
def test_ppo_solves_a_toy_task(folder, tmp_path, advantage, seed):
    """Reward is the share of generated tokens that are one word; > .9 is asked within 40 iterations."""
    base = Base.load(folder)
    wanted = base.encode_text(f" {WANTED}")[0]
    engine = TorchEngine(base, EngineSettings(widths=(64,), prefill_chunk=4096), ModelSettings(adapter_layers=LAYERS))

    def reward(samples):
        totals = torch.tensor([s.generated.tokens.count(wanted) / len(s.generated.tokens) for s in samples])
        return _rewarded(samples, totals)

    trainer = _trainer(
        base,
        engine,
        tmp_path,
        seed,
        reward=reward,
        advantage=advantage,
        lr=1e-2,
        update_kl=0.2,
        max_tokens=8,
        kl_coef=0.005,
        kl_target=1000.0,
        temperature=1.0,
    )
    prompts = book_prompts(engine, 16)
    reached = next((i for i in range(40) if trainer.iterate(prompts, i).reward > 0.9), None)
    engine.close()
    assert reached is not None


def test_the_benchmark_of_whole_loops_starts(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["turns.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / "turns.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "--seeds" in capsys.readouterr().out
