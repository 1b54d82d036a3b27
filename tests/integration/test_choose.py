"""The optimiser of ordered choices on a tiny real model: what it scores, where it moves, what holds it."""

import dataclasses
import math

import pytest
import torch
from plaudit.domain import OptionScore
from plaudit.engine import adapter_files, adapters
from plaudit.engine.base import Base
from plaudit.engine.protocol import ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.learner.rewards import OptionRewards
from plaudit.plugins import guard, load_plugins
from plaudit.policy import choices
from plaudit.policy.choose import ChoiceOptimizer, ChoiceTask, ChoiceTrainer, Judged
from plaudit.policy.loop import NAME, kept
from plaudit.policy.option_scores import OptionScorer
from plaudit.reward.completion import Completion
from plaudit.reward.model import RewardModel
from plaudit.settings import EngineSettings, ModelSettings, PolicySettings, RewardSettings
from plaudit.testing.models import tiny_model
from plaudit.testing.training import book_prompts, random_adapter
from plaudit.types import Channel, Option, Outcome, RewardTerms

LAYERS, TEMPERATURE = 2, 0.7
WORDS = (" tea", "cup", " And", "x")
SLATE = (1.0, 0.63, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def base(folder):
    return Base.load(folder)


@pytest.fixture
def engine(base):
    made = TorchEngine(base, EngineSettings(widths=(4,)), ModelSettings(adapter_layers=LAYERS))
    made.stage(ReleaseKey("toy/default", 0, "base"), None, temperature=TEMPERATURE)
    yield made
    made.close()


def _wants(option, valid=(True, True, True, True), reward=0.9):
    """A reward for one option and 0.1 for the others."""
    rewards = torch.full((len(WORDS),), 0.1, dtype=torch.float64)
    rewards[option] = reward
    return lambda prompts: [Judged(rewards, valid) for _ in prompts]


def _task(base, engine, folder, judge, *, train=(), held_out=(), labels=None, weights=(1.0,), live=None, **settings):
    plain = {"iterations": 6, "choice_prompts": 8, "minibatch": 4, "lr": 0.005, "choice_update_kl": 0.2}
    chosen = PolicySettings(**{**plain, "label_coef": 0.0, **settings})
    return ChoiceTask(
        channel=Channel("toy", "default"),
        base=base,
        live=live,
        train=train,
        held_out=held_out,
        model=ModelSettings(adapter_layers=LAYERS),
        settings=chosen,
        seed=0,
        folder=folder,
        progress=lambda line: None,
        judge=judge,
        labels=labels or {},
        place_weights=weights,
        option_score=OptionScore.SUM,
        end_of_turn=engine.end_of_turn,
        temperature=TEMPERATURE,
    )


def _scorer(base, engine, how=OptionScore.SUM, pass_tokens=2048):
    return OptionScorer(
        base,
        base.num_layers - LAYERS,
        temperature=TEMPERATURE,
        end_of_turn=engine.end_of_turn,
        how=how,
        pass_tokens=pass_tokens,
    )


def _served(engine, prompt, key):
    """Scores of the options as serving has them."""
    return [math.fsum(each) for each in engine.score_options(prompt.encoded, prompt.options, key).result(60)]


def _probabilities(base, engine, prompts, adapter):
    tiers = choices.tiers_of([[True] * len(prompt.options) for prompt in prompts])
    return choices.first_logprobs(torch.stack(_scorer(base, engine).scores(prompts, adapter)), tiers).exp()


def _random(base, name, folder):
    random_adapter(base, name, layers=LAYERS, seed=1, spread=0.1)
    adapters.save(base, name, folder)


def test_what_is_trained_is_what_is_served_with_and_without_an_adapter(base, engine, tmp_path):
    prompts = book_prompts(engine, 3, (*WORDS, "no thank you", "a box of tea", "tea", "yes"))
    _random(base, "one", tmp_path)
    key = ReleaseKey("toy/default", 1, "one")
    engine.stage(key, tmp_path, temperature=TEMPERATURE)
    for adapter, release in ((None, ReleaseKey("toy/default", 0, "base")), ("one", key)):
        wanted = [_served(engine, prompt, release) for prompt in prompts]
        for pass_tokens in (16, 4096):
            scorer = _scorer(base, engine, pass_tokens=pass_tokens)
            scorer.scores(prompts[:2], adapter)
            scorer.forget(0)
            found = scorer.scores(prompts, adapter)
            for row, served in zip(found, wanted, strict=True):
                assert row.tolist() == pytest.approx(served, abs=1e-4)
    means = _scorer(base, engine, OptionScore.MEAN).scores(prompts, "one")
    lengths = torch.tensor([len(option) + 1 for option in prompts[0].options])
    assert torch.allclose(means[0] * lengths, found[0])


@pytest.mark.parametrize("how", OptionScore)
@pytest.mark.parametrize("pass_tokens", [16, 4096])
def test_the_gradient_in_passes_is_that_of_one_plain_pass(base, engine, tmp_path, how, pass_tokens):
    words = ("yes", "no thank you", "a box of tea", "tea")
    prompts = book_prompts(engine, 2, words)
    _random(base, NAME, tmp_path)
    slopes = torch.randn(2, len(words), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    slopes[0, 1] = 0.0
    _scorer(base, engine, how, pass_tokens).backward(prompts, list(slopes), NAME)
    found = [parameter.grad.clone() for parameter in adapters.parameters(base, NAME)]
    for parameter in adapters.parameters(base, NAME):
        parameter.grad = None
    with adapters.active(base, NAME):
        total = 0.0
        for prompt, row in zip(prompts, slopes, strict=True):
            for option, slope in zip(prompt.options, row.tolist(), strict=True):
                tokens = (*option, engine.end_of_turn)
                fed = torch.tensor([[*prompt.encoded.tokens, *tokens[:-1]]])
                logits = base.logits(base.upper(base.trunk(fed, 0), 0))[0] / TEMPERATURE
                logprobs = torch.log_softmax(logits, -1)[-len(tokens) :].gather(1, torch.tensor(tokens)[:, None])
                total = total + slope * (logprobs.mean() if how is OptionScore.MEAN else logprobs.sum())
        total.backward()
    for parameter, gradient in zip(adapters.parameters(base, NAME), found, strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-4, rtol=1e-3)
    assert max(gradient.abs().max() for gradient in found) > 1e-2


@pytest.mark.parametrize(("weights", "first_place"), [((1.0,), "exact"), ((1.0,), "sampled"), (SLATE, "exact")])
def test_what_is_rewarded_becomes_more_probable_and_the_best_iterate_leaves(
    base, engine, tmp_path, weights, first_place
):
    prompts = book_prompts(engine, 12, WORDS)
    before = _probabilities(base, engine, prompts, None)[:, 1]
    task = _task(
        base, engine, tmp_path, _wants(1), train=prompts[:8], held_out=prompts[8:], weights=weights,
        first_place=first_place, samples=8,
    )  # fmt: skip
    optimised = ChoiceOptimizer().optimise(task)
    assert optimised.progressed, optimised.why
    assert adapters.names(base) == []
    adapters.load(base, "made", optimised.adapter)
    after = _probabilities(base, engine, prompts, "made")[:, 1]
    assert (after > before + 0.1).all()
    rewards = [each["reward"] for each in optimised.iterates]
    assert rewards[-1] > rewards[0]
    assert optimised.statistics[0]["kl_nats_per_sequence"] == pytest.approx(0.0, abs=1e-6)
    assert optimised.statistics[-1]["kl_nats_per_sequence"] > 0.01
    # The same task, the same weights.
    again = ChoiceOptimizer().optimise(task)
    assert adapter_files.read(again.adapter)[1].keys() == adapter_files.read(optimised.adapter)[1].keys()
    for name, weight in adapter_files.read(optimised.adapter)[1].items():
        assert torch.equal(weight, adapter_files.read(again.adapter)[1][name])


def test_labels_teach_without_any_reward_and_only_the_prompts_that_have_them(base, engine, tmp_path):
    prompts = book_prompts(engine, 8, WORDS)
    labels = {prompt.group: (0.0, 0.0, 1.0, 0.0) for prompt in prompts[4:]}
    same = lambda asked: [Judged(torch.full((len(WORDS),), 0.5), (True,) * len(WORDS)) for _ in asked]  # noqa: E731
    before = _probabilities(base, engine, prompts, None)[:, 2]
    task = _task(base, engine, tmp_path, same, train=prompts, labels=labels, label_coef=0.5, choice_prompts=4)
    optimised = ChoiceOptimizer().optimise(task)
    # Of four prompts an iteration two have labels.
    assert [each["labelled"] for each in optimised.statistics] == [2] * 6
    assert optimised.statistics[-1]["label_cross_entropy"] < optimised.statistics[0]["label_cross_entropy"]
    adapters.load(base, "made", optimised.adapter)
    assert (_probabilities(base, engine, prompts, "made")[:, 2] > before).all()
    none = ChoiceOptimizer().optimise(_task(base, engine, tmp_path, same, train=prompts, held_out=prompts[:2]))
    assert not none.progressed
    assert "held-out prompts rose by" in none.why


def test_rewards_of_options_are_centred_on_the_prompts_own_and_are_the_plugins(base, engine):
    plugin = load_plugins(("echo-choice",))["echo-choice"].inner

    class Doubling(type(plugin)):
        def parse(self, prompt, output):
            return Outcome(displayed=output, valid=output != "x", why_invalid="it is an x" if output == "x" else "")

        def reward(self, prompt, outcome, score):
            return RewardTerms(terms=(("score", score), ("again", score if outcome.valid else 0.0)))

    model = RewardModel(base, RewardSettings(adapter=False, layer=1, uncertainty=0.0), ModelSettings())
    (prompt,) = book_prompts(engine, 1, WORDS)
    options = tuple(Option(word, word) for word in WORDS)
    prompt = dataclasses.replace(prompt, rendered=dataclasses.replace(prompt.rendered, options=options))
    (judged,) = OptionRewards(model, guard([Doubling()])["echo-choice"], most_tokens=8)([prompt])
    raw = model.scores([Completion(prompt.encoded.tokens, tokens) for tokens in prompt.options]).mean(dim=-1)
    shaped = torch.sigmoid((raw - raw.mean()) / model.settings.temperature).double()
    assert judged.valid == (True, True, True, False)
    assert judged.rewards.tolist() == pytest.approx((shaped * torch.tensor([2.0, 2.0, 2.0, 1.0])).tolist(), abs=1e-5)
    # A shift of the whole prompt's scores changes nothing.
    model.bias.data += 3.0
    (again,) = OptionRewards(model, guard([Doubling()])["echo-choice"], most_tokens=8)([prompt])
    assert again.rewards.tolist() == pytest.approx(judged.rewards.tolist(), abs=1e-5)


def test_options_are_scored_in_parts_and_their_activations_forgotten(base, engine):
    plugin = load_plugins(("echo-choice",))["echo-choice"]
    model = RewardModel(base, RewardSettings(adapter=False, layer=1), ModelSettings())
    options = tuple(Option(word, word) for word in WORDS)
    prompts = [
        dataclasses.replace(each, rendered=dataclasses.replace(each.rendered, options=options))
        for each in book_prompts(engine, 6, WORDS)
    ]
    of_one = sum(len(tokens) + 1 for tokens in prompts[0].options) + max(len(each.encoded.tokens) for each in prompts)
    whole = OptionRewards(model, plugin, most_tokens=1_000_000)(prompts)
    parts, asked = [], model.scores
    model.scores = lambda completions: parts.append(len(completions)) or asked(completions)
    again = OptionRewards(model, plugin, most_tokens=2 * of_one)(prompts)
    assert len(parts) >= 3
    assert max(parts) <= 2 * len(WORDS)
    assert len(model.cache) == 0
    for one, other in zip(whole, again, strict=True):
        assert one.rewards.tolist() == pytest.approx(other.rewards.tolist(), abs=1e-5)


def test_an_invalid_option_is_never_first_and_its_reward_pulls_nothing(base, engine, tmp_path):
    prompts = book_prompts(engine, 6, WORDS)
    judge = _wants(1, (True, False, True, True))
    task = _task(base, engine, tmp_path, judge, train=prompts, labels={prompts[0].group: (0.0, 1.0, 0.0, 0.0)})
    adapters.inject(base, NAME, layers=LAYERS, rank=8, alpha=16, seed=0)
    trainer = ChoiceTrainer(task)
    slopes, _, _ = trainer.slopes(trainer.batch(prompts, 0, 2))
    assert slopes[:, 1].abs().max() == 0.0
    # The others are worth the same, and the policy is the base.
    assert slopes.abs().max() < 1e-9


def test_an_update_ends_when_the_policy_has_moved_and_the_controller_holds_it_to_the_base(base, engine, tmp_path):
    prompts = book_prompts(engine, 8, WORDS)

    def made(reward=0.9, **settings):
        task = _task(base, engine, tmp_path, _wants(1, reward=reward), train=prompts, **settings)
        return ChoiceOptimizer().optimise(task).statistics

    free = made(iterations=2, epochs=3, choice_update_kl=10.0)
    short = made(iterations=2, epochs=8, choice_update_kl=1e-4)
    assert free[0]["updates"] == 6
    assert short[0]["updates"] < 4
    assert short[0]["moved_nats"] > 1e-4
    # Held by 0.2 a nat, a lead of 0.1 tilts the odds by exp(0.5) and no more.
    held, loose = (
        made(reward=0.2, iterations=12, kl_coef=coef, choice_kl_target=target, warmup_updates=0)
        for coef, target in ((0.2, 0.01), (0.0, 10.0))
    )
    assert held[-1]["kl_nats_per_sequence"] < min(0.3, loose[-1]["kl_nats_per_sequence"] / 3)
    rising = [each["kl_coef"] for each in made(iterations=4, kl_coef=0.02, choice_kl_target=0.01, epochs=8)]
    assert rising[-1] > rising[1]


def test_the_live_release_is_the_start_and_its_kl_counts_beside_the_bases(base, engine, tmp_path):
    prompts = book_prompts(engine, 10, WORDS)
    first = ChoiceOptimizer().optimise(
        _task(base, engine, tmp_path / "first", _wants(1), train=prompts[:8], held_out=prompts[8:])
    )
    task = _task(
        base, engine, tmp_path / "second", _wants(2), train=prompts[:8], held_out=prompts[8:], live=first.adapter
    )
    second = ChoiceOptimizer().optimise(task)
    start = second.iterates[0]
    assert start["kl_live_nats_per_sequence"] == pytest.approx(0.0, abs=1e-6)
    assert start["kl_base_nats_per_sequence"] > 0.01
    assert second.statistics[-1]["kl_live_nats_per_sequence"] > 0.0
    for name, weight in adapter_files.read(first.adapter)[1].items():
        assert torch.allclose(weight, adapter_files.read(kept(task, 0))[1][name])
