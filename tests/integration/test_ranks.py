"""Two processes share out the passes of a fit: what comes out is what one process makes, and a lost one ends it."""

import dataclasses
import datetime as dt
import os
import random
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from plaudit.engine import adapters, torchrun
from plaudit.engine.base import Base
from plaudit.engine.ranks import Alone, Here, split
from plaudit.engine.torch_engine import TorchEngine
from plaudit.engine.torchrun import lead
from plaudit.errors import InternalError, LearnerProcessLost, Misconfigured, PromptTooLong
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.learner.outcome import TurnOutcome, failed
from plaudit.policy.train import Ppo
from plaudit.reward import trunk
from plaudit.reward.batch import Treatment
from plaudit.reward.completion import Completion
from plaudit.reward.fit import fit_reward
from plaudit.reward.model import trunk_cache
from plaudit.settings import EngineSettings, ModelSettings, PolicySettings, RewardSettings
from plaudit.testing.evidence import make_interaction
from plaudit.testing.models import tiny_model
from plaudit.testing.training import book_prompts, completion_task
from plaudit.types import Candidate, Channel, FeedbackKind, Message, Pair, PairOutcome, Sampling

LAYERS = 2
ENGINE = EngineSettings(widths=(16,), prefill_chunk=1024)
MODEL = ModelSettings(adapter_layers=LAYERS)
# Of how far training moved the adapter. Rounding alone makes about 1e-4 of it; AdamW makes a whole step of each
# gradient's sign, so that a wrong share of a gradient shows at once.
CLOSE = 0.01
FOLLOWER = f"""
import sys
from plaudit.engine.base import Base
from plaudit.engine.ranks import Here
from plaudit.engine.torch_engine import TorchEngine
from plaudit.engine.torchrun import follow
from plaudit.settings import EngineSettings, ModelSettings

base = Base.load(sys.argv[1], device="cpu", dtype="float32")
engine = TorchEngine(base, EngineSettings(widths=(16,), prefill_chunk=1024), ModelSettings(adapter_layers={LAYERS}))
follow(Here(base, engine))
engine.close()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def base(folder):
    return Base.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def engine(base):
    made = TorchEngine(base, ENGINE, MODEL)
    yield made
    made.close()


@contextmanager
def two(folder, base, engine, port, seconds=1800):
    """This process as rank 0, and another that follows it."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    other = subprocess.Popen([sys.executable, "-c", FOLLOWER, str(folder)], env={**os.environ, **place, "RANK": "1"})
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**place, "RANK": "0"}.items():
                patch.setenv(name, value)
            both = lead(Here(base, engine), seconds)
        try:
            yield both, other
        finally:
            both.close()
        assert other.wait(300) in (0, -9)
    finally:
        other.kill()
        other.wait()


@pytest.fixture(scope="module")
def pair(folder, base, engine, free_port):
    with two(folder, base, engine, free_port()) as found:
        yield found


# Shares that break --------------------------------------------------------------------------------------


def _answered(here, share):
    if share == "refused":
        raise PromptTooLong("a prompt of 9,999 tokens", limit=512)
    if share == "broken":
        raise ValueError("what somebody wrote")
    return f"{share} of {here.base.digest}"


def test_what_a_share_raises_ends_the_turn_and_no_process(base, pair):
    both = pair[0]
    with pytest.raises(PromptTooLong, match="9,999") as refused:
        both.spread(_answered, ["good", "refused"], None)
    assert refused.value.metadata == {"limit": "512"}
    with pytest.raises(InternalError, match="ValueError at process 1") as broken:
        both.spread(_answered, [None, "broken"], None)
    assert "somebody" not in str(broken.value)
    assert failed(broken.value).outcome is TurnOutcome.FAILED
    with pytest.raises(ValueError, match="somebody"):
        both.spread(_answered, ["broken", "good"], None)
    both.check()
    assert both.spread(_answered, ["one", "two"], None) == [f"one of {base.digest}", f"two of {base.digest}"]


def test_an_update_that_ends_early_keeps_no_activations(base, engine, pair):
    both = pair[0]
    adapters.inject(base, "early", layers=LAYERS, rank=2, alpha=4, seed=0)
    try:
        with adapters.active(base, "early"), torch.enable_grad():
            both.forward(_logits, [[1, 2], [3]], "early")
        both.spread(_answered, ["one", "two"], None)
        assert both._own is None
    finally:
        adapters.remove(base, "early")


class _Breaks(torch.autograd.Function):
    """Passes on what it gets, and has no memory for the way back."""

    @staticmethod
    def forward(ctx, inputs):
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("what somebody wrote")


def _logits_and_no_way_back(here, tokens):
    return _Breaks.apply(_logits(here, tokens)) if torchrun.place()[0] else _logits(here, tokens)


def test_a_backward_pass_that_breaks_ends_the_turn_and_no_process(base, pair):
    both = pair[0]
    adapters.inject(base, "broken", layers=LAYERS, rank=2, alpha=4, seed=0)
    own, zero = adapters.parameters(base, "broken"), lambda: [setattr(each, "grad", None) for each in own]

    def gradient(work):
        zero()
        with adapters.active(base, "broken"), torch.enable_grad():
            both.forward(work, [[1, 2], [3]], "broken").sum().backward()
            both.backward("broken")
        return torch.cat([each.grad.flatten() for each in own])

    try:
        whole = gradient(_logits)
        with pytest.raises(InternalError, match="OutOfMemoryError at process 1") as broken:
            gradient(_logits_and_no_way_back)
        assert "somebody" not in str(broken.value)
        assert failed(broken.value).outcome is TurnOutcome.FAILED
        both.check()
        assert torch.equal(gradient(_logits), whole)
    finally:
        adapters.remove(base, "broken")


def _logits(here, tokens):
    base = here.base
    return base.logits(base.upper(base.trunk(torch.tensor([tokens]), 0), 0))[0, :, 0].cpu()


def test_a_process_with_another_base_is_refused_and_may_end(base, engine, monkeypatch):
    told = []

    def gathered(own, found, dst):
        found[:] = [own, {**own, "base": "another"}]

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(torchrun, "_begin", lambda patience: None)
    monkeypatch.setattr(torchrun.dist, "gather_object", gathered)
    monkeypatch.setattr(torchrun.dist, "scatter_object_list", lambda heard, said, src: told.append(said))
    monkeypatch.setattr(torchrun.dist, "destroy_process_group", lambda: told.append("over"))
    with pytest.raises(Misconfigured, match="process 1 of this learner has another base"):
        lead(Here(base, engine), 60)
    assert told == [[None, None], "over"]


# A policy ----------------------------------------------------------------------------------------------


def policy(base, engine, folder, shared):
    prompts = book_prompts(engine, 5)
    task = completion_task(
        base,
        engine,
        folder,
        PolicySettings(
            max_tokens=6, temperature=0.7, prompts=3, samples=4, minibatch=8, iterations=2, epochs=2, lr=1e-3
        ),
        layers=LAYERS,
        train=prompts[:3],
        held_out=prompts[3:],
        seed=5,
        ranks=shared,
    )
    folder.mkdir()
    made = Ppo().optimise(task)
    return made, torch.cat([each.flatten() for each in _weights(folder / "iterate-2")])


def _weights(folder):
    from safetensors.torch import load_file

    return [tensor for _, tensor in sorted(load_file(folder / "adapter_model.safetensors").items())]


def apart(one, other):
    """Greatest difference of two adapters."""
    return float((one - other).abs().max())


def test_two_processes_make_the_policy_of_one(base, engine, pair, tmp_path, monkeypatch):
    start = _started(base, tmp_path)
    one, alone = policy(base, engine, tmp_path / "one", Alone(base, engine))
    both, shared = policy(base, engine, tmp_path / "two", pair[0])
    moved = apart(alone, start)
    print(f"policy: one and two processes differ by {apart(alone, shared):.1e}, training moved it by {moved:.1e}")
    # The engines' widths are the same, and so are the tokens, bit by bit; gradients are summed in another order.
    for name in ("updates", "reward", "mean_tokens"):
        assert [each[name] for each in one.statistics] == [each[name] for each in both.statistics]
    assert apart(alone, shared) < CLOSE * moved
    # What that bound can see: a gradient without the other process's share.
    whole = torchrun.dist.reduce

    def own_share(total, dst):
        own = total.clone()
        whole(total, dst=dst)
        total.copy_(own)

    monkeypatch.setattr(torchrun.dist, "reduce", own_share)
    _, half = policy(base, engine, tmp_path / "half", pair[0])
    assert apart(alone, half) > 10 * CLOSE * moved


def _started(base, folder):
    adapters.inject(base, "start", layers=LAYERS, rank=MODEL.adapter_rank, alpha=MODEL.adapter_alpha, seed=5)
    adapters.save(base, "start", folder / "start")
    adapters.remove(base, "start")
    return torch.cat([each.flatten() for each in _weights(folder / "start")])


# A reward model ----------------------------------------------------------------------------------------


def planted(base, size=24):
    """Choices between two texts; whoever says tea is liked."""
    draw, now, channel = random.Random(0), dt.datetime(2027, 1, 1, tzinfo=dt.UTC), Channel("toy", "test")
    words = ("you", "cup", "walk", "rain", "book", "kind", "warm", "tea")
    interactions, rows = {}, []
    for number in range(size):
        texts = [" ".join(draw.choices(words, k=draw.randint(2, 6))) for _ in range(2)]
        prompt = base.encode([Message("user", f"{words[number % 7]} {words[number % 3]}")]).tokens
        candidates = []
        for place, text in enumerate(texts):
            tokens = (*base.encode_text(text), min(base.eos_ids))
            candidates.append(
                Candidate(
                    candidate_id=f"c{place}",
                    release_version=0,
                    release_digest="",
                    tokens=tokens,
                    logprobs_raw=(0.0,) * len(tokens),
                    logprobs_sampled=(0.0,) * len(tokens),
                    text=text,
                    displayed_text=text,
                    finish_reason=None,
                    sampling=Sampling(),
                    seed=0,
                    width=4,
                )
            )
        name = f"i{number}"
        asked = make_interaction(name, group=f"g{number % 7}")
        interactions[name] = dataclasses.replace(asked, candidates=tuple(candidates), prompt_tokens=prompt)
        outcome = PairOutcome.FIRST if "tea" in texts[0] else PairOutcome.SECOND
        rows.append(
            EvidenceRow(
                interaction_id=name,
                feedback_id=name,
                index=0,
                kind=FeedbackKind.CHOICE,
                evidence=Pair(first="c0", second="c1", outcome=outcome),
                who=f"rater{number % 4}",
                accepted_at=now,
                rater_split=Split.TRAIN,
                group_split=Split.TRAIN,
                prompt_group=f"g{number % 7}",
            )
        )
    return FrozenDataSet(
        channel=channel, as_of=now, digest="0" * 64, offsets=(), rows=tuple(rows), interactions=interactions
    )


def reward(base, data, shared, epochs=2):
    settings = RewardSettings(epochs=epochs, units_per_step=5, heads=2, adapter_layers=2)
    cache = trunk_cache(base, settings, ranks=shared)
    model = fit_reward(base, data, {}, settings, MODEL, seed=3, cache=cache, treatment=Treatment.CONTRAST)
    try:
        found = torch.cat([each.detach().flatten().clone() for each in model.adapter_parameters()])
        return found, torch.cat([model.weight.flatten(), model.scales]), model.facts["steps"]
    finally:
        model.close()


def test_two_processes_fit_the_reward_model_of_one(base, engine, pair):
    data = planted(base)
    adapter, heads, steps = reward(base, data, Alone(base, engine))
    shared_adapter, shared_heads, shared_steps = reward(base, data, pair[0])
    first_step = reward(base, data, Alone(base, engine), epochs=0.05)[0]
    moved = apart(adapter, first_step)
    print(f"reward: adapters differ by {apart(adapter, shared_adapter):.1e}, training moved it by {moved:.1e}")
    assert steps == shared_steps == 10
    assert apart(adapter, shared_adapter) < CLOSE * moved
    assert apart(heads, shared_heads) < 1e-6


class Counted(Alone):
    """Two ranks in one process, which notes how many tokens each was sent, or sends."""

    size = 2

    def __init__(self, base):
        super().__init__(base)
        self.most = 0

    def spread(self, work, shares, adapter):
        for share in (each for each in shares if each is not None):
            texts = [(row.prompt, *row.shown) for row in share.rows] if hasattr(share, "rows") else share.completions
            self.most = max(self.most, sum(len(part) for text in texts for part in text))
        return super().spread(work, shares, adapter)


def test_features_of_much_evidence_are_exchanged_in_parts(base, monkeypatch):
    settings = RewardSettings(adapter_layers=2)
    texts = [Completion(tuple(range(3, 9 + i % 5)), tuple(range(20, 24 + i))) for i in range(40)]
    last, mean = trunk_cache(base, settings).plain(texts)
    monkeypatch.setattr(trunk, "MOST_SENT_TOKENS", 150)
    counted = Counted(base)
    in_parts = trunk_cache(base, settings, ranks=counted)
    with torch.no_grad():
        for found in (in_parts.plain(texts), in_parts.pooled(texts)):
            assert torch.allclose(found[0], last, atol=1e-5)
            assert torch.allclose(found[1], mean, atol=1e-5)
    assert 100 < counted.most < 300


# Processes that go ------------------------------------------------------------------------------------


def test_a_process_that_is_lost_ends_the_turn_as_lost_and_the_learner(base, pair):
    both, other = pair
    other.kill()
    other.wait()
    with pytest.raises(LearnerProcessLost, match="went away") as lost:
        both.spread(_digest, [None, "anything"], None)
    result = failed(lost.value)
    assert result.outcome is TurnOutcome.LOST
    assert "start all of them again" in result.reason
    with pytest.raises(LearnerProcessLost):
        both.check()


def _digest(here, share):
    return here.base.digest


def test_places_that_make_no_sense_are_refused():
    assert torchrun.place({}) == (0, 1)
    assert torchrun.place({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}) == (1, 2)
    for environ in (
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "first"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
    ):
        with pytest.raises(Misconfigured, match="torchrun"):
            torchrun.place(environ)


def test_parts_cover_everything_once():
    assert split(5, 2) == [range(0, 2), range(2, 5)]
    assert split(1, 3) == [range(0, 0), range(0, 0), range(0, 1)]
