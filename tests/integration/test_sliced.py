"""Two processes hold half a base each: passes, policies and reward models are those of one that holds all of it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from plaudit.engine import adapters, sliced, torchrun
from plaudit.engine.base import Base
from plaudit.engine.ranks import Alone, Here
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import InternalError, LearnerProcessLost, Misconfigured
from plaudit.learner.loop import learn
from plaudit.settings import load_settings
from plaudit.testing.models import tiny_family, tiny_model

from .test_ranks import CLOSE, ENGINE, LAYERS, MODEL, _started, apart, planted, policy, reward

FOLLOWER = """
import sys
from types import SimpleNamespace
from plaudit.engine import sliced, torchrun
from plaudit.engine.ranks import Here
from tests.integration.test_sliced import settings_of

torchrun.begin(300)
torchrun.follow(Here(sliced.load(settings_of(sys.argv[1]), 1, 2), None))
"""


def settings_of(folder, *more):
    wanted = ["engine.kind=vllm", 'engine.vllm.servers=["http://127.0.0.1:9"]', "engine.vllm.check_base=false"]
    model = [f"model.path={folder}", "model.device=cpu", "model.dtype=float32", "model.shard=true"]
    return load_settings(overrides=[*wanted, *model, *more], environ={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose head has weights of its own; of the one in tests/e2e/test_torchrun.py they are the embedding's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tied = str(tiny_model(tmp_path_factory.mktemp("models") / "tiny"))
    made = tmp_path_factory.mktemp("models") / "untied"
    model = AutoModelForCausalLM.from_pretrained(tied, tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().flip(0).clone())
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(tied).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def whole(folder):
    return Base.load(folder, device="cpu", dtype="float32")


class Remote:
    """An engine over servers, which gives no activations: here one on a base of its own."""

    capture_layer = None

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)


@pytest.fixture(scope="module")
def engine(folder):
    made = TorchEngine(Base.load(folder, device="cpu", dtype="float32"), ENGINE, MODEL)
    yield Remote(made)
    made.close()


@pytest.fixture(scope="module")
def halves(folder, engine, free_port):
    """This process's half of the base, the processes together, and the other process."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    other = subprocess.Popen([sys.executable, "-c", FOLLOWER, str(folder)], env={**os.environ, **place, "RANK": "1"})
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**place, "RANK": "0"}.items():
                patch.setenv(name, value)
            torchrun.begin(300)
            half = sliced.load(settings_of(folder), 0, 2)
            both = torchrun.lead(Here(half, engine), 300)
        try:
            yield half, both, other
        finally:
            both.close()
        assert other.wait(300) in (0, -9)
    finally:
        other.kill()
        other.wait()


def held(base):
    """Weights that lie in this process's memory."""
    return sum(getattr(each, "to_local", lambda each=each: each)().numel() for each in base.model.parameters())


def logits(base, tokens):
    return base.logits(base.upper(base.trunk(torch.tensor([tokens]), 1), 1))


def slope(base, name):
    with adapters.active(base, name), torch.enable_grad():
        logits(base, [5, 7, 11]).square().mean().backward()
        found = torch.cat([each.grad.flatten() for each in adapters.parameters(base, name)])
    for each in adapters.parameters(base, name):
        each.grad = None
    return found


def test_each_process_holds_half_and_computes_what_a_whole_base_does(whole, halves):
    half = halves[0]
    assert half.digest == whole.digest
    assert half.context_length == whole.context_length
    assert held(half) < 0.51 * held(whole)
    assert torch.equal(logits(half, [3, 4, 5, 6]), logits(whole, [3, 4, 5, 6]))
    assert held(half) < 0.51 * held(whole)
    for base in (half, whole):
        adapters.inject(base, "some", layers=LAYERS, rank=2, alpha=4, seed=0)
        for each in adapters.parameters(base, "some"):
            each.data += 0.01
    try:
        assert torch.allclose(slope(half, "some"), slope(whole, "some"), rtol=1e-5, atol=1e-9)
    finally:
        for base in (half, whole):
            adapters.remove(base, "some")


def test_two_halves_make_the_policy_of_one_process(whole, halves, engine, tmp_path):
    start = _started(whole, tmp_path)
    one, alone = policy(whole, engine, tmp_path / "one", Alone(whole, engine))
    both, shared = policy(halves[0], engine, tmp_path / "two", halves[1])
    moved = apart(alone, start)
    print(f"policy: one process and two halves differ by {apart(alone, shared):.1e}, training moved it by {moved:.1e}")
    for name in ("updates", "reward", "mean_tokens"):
        assert [each[name] for each in one.statistics] == [each[name] for each in both.statistics]
    assert apart(alone, shared) < CLOSE * moved


def test_two_halves_fit_the_reward_model_of_one_process(whole, halves):
    data = planted(whole)
    adapter, heads, _ = reward(whole, data, Alone(whole))
    shared_adapter, shared_heads, _ = reward(halves[0], data, halves[1])
    first_step = reward(whole, data, Alone(whole), epochs=0.05)[0]
    moved = apart(adapter, first_step)
    print(f"reward: adapters differ by {apart(adapter, shared_adapter):.1e}, training moved it by {moved:.1e}")
    assert apart(adapter, shared_adapter) < CLOSE * moved
    assert apart(heads, shared_heads) < 1e-6


def _uneven(here, count):
    """As many passes as the share says; the last breaks if that is negative."""
    for _ in range(abs(count)):
        found = logits(here.base, [1, 2, 3])
    if count < 0:
        raise ValueError("what somebody wrote")
    return float(found.sum())


def test_processes_may_compute_more_or_less_than_others_and_break(whole, halves):
    both = halves[1]
    expected = float(logits(whole, [1, 2, 3]).sum())
    assert both.spread(_uneven, [1, 3], None) == [expected, expected]
    assert both.spread(_uneven, [None, 2], None) == [expected]
    with pytest.raises(InternalError, match="ValueError at process 1"):
        both.spread(_uneven, [4, -2], None)
    with pytest.raises(ValueError, match="somebody"):
        both.spread(_uneven, [-1, 3], None)
    assert both.spread(_uneven, [2, None], None) == [expected]


def test_a_lost_half_ends_the_turn_as_lost(halves):
    half, both, other = halves
    other.kill()
    other.wait()
    with pytest.raises(LearnerProcessLost):
        logits(half, [1, 2, 3])
    with pytest.raises(LearnerProcessLost):
        both.check()


def test_slices_without_servers_or_processes_are_refused(folder, tmp_path):
    with pytest.raises(Misconfigured, match=r"engine\.kind is torch"):
        load_settings(overrides=["model.shard=true"], environ={})
    with pytest.raises(Misconfigured, match="check_base=false"):
        settings_of(folder, "engine.vllm.check_base=true")
    with pytest.raises(Misconfigured, match="start it by torchrun"):
        learn(settings_of(folder, f"data_dir={tmp_path}"), once=True)


def test_a_base_that_its_own_forward_pass_runs_is_not_sliced(tmp_path):
    gpt2 = tiny_family(tmp_path / "gpt2", "gpt2", n_embd=64, n_layer=2, n_head=4)
    with pytest.raises(Misconfigured, match=r"its own forward pass.*model\.shard = false"):
        sliced.load(settings_of(gpt2), 0, 2)
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    with pytest.raises(Misconfigured, match="GGUF file cannot be read in slices"):
        sliced.load(settings_of(tmp_path / "one.gguf"), 0, 2)


def test_a_signal_amid_a_gather_ends_this_process_which_asks_the_others_for_nothing_more(monkeypatch):
    slices, asked = sliced.Slices([[None]], torch.device("cpu")), []

    def ended(found, mine):
        asked.append(int(mine))
        raise SystemExit(143)

    monkeypatch.setattr(sliced.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(sliced.dist, "all_gather", ended)
    with pytest.raises(SystemExit), slices.together():
        slices.take(0)
    assert asked == [0]
    # Nor does rank 0 wait for what they made of their shares.
    leading = object.__new__(torchrun._Leading)
    leading._here, leading._lost, leading.size = Here(SimpleNamespace(slices=slices), None), None, 2
    monkeypatch.setattr(leading, "_say", lambda orders: None)
    slices.lost = False
    with pytest.raises(SystemExit):
        leading._made(lambda here, share: slices.take(0), [1, 2], None, gradient=False)
    with pytest.raises(LearnerProcessLost, match="told to end"):
        leading.check()
