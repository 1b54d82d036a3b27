"""The quick runner is the model: tokens of transformers and PEFT, the bits of a reply whatever is beside it."""

import dataclasses
import os
import random
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from plaudit.engine import adapters, fidelity, frozen, kernels, packed, torch_engine
from plaudit.engine.bank import AdapterBank
from plaudit.engine.base import Base
from plaudit.engine.fused import Fused
from plaudit.engine.llama import LlamaLayer
from plaudit.engine.packed import Packed, stand_alone
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.runner import Modules
from plaudit.engine.runners import choose
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import Misconfigured
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.testing.models import tiny_family, tiny_model
from plaudit.types import Sampling
from transformers import AutoModelForCausalLM

MODEL = ModelSettings(adapter_layers=2)
KEYS = [ReleaseKey("toy/default", number, str(number)) for number in range(4)]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
QUICK = {
    "llama": {},
    "llama yarn": {"rope_parameters": YARN},
    "llama biased": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
}
BY_MODULES = {
    "qwen3": {"head_dim": 16},
    "phi3": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    made = tmp_path_factory.mktemp("families")
    return lambda name: tiny_family(made / name.replace(" ", "-"), name.split()[0], **{**QUICK, **BY_MODULES}[name])


in_bfloat16 = pytest.mark.skipif(not packed.multiplies_bfloat16(), reason="this processor does not multiply bfloat16")


@pytest.fixture
def without_packing(monkeypatch):
    monkeypatch.setattr(packed, "usable", lambda: False)


def _adapters(base, folder):
    """Three saved adapters that change the model clearly."""
    found = []
    for seed in range(1, 4):
        adapters.inject(base, "made", layers=2, rank=8, alpha=16, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapters.parameters(base, "made"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        adapters.save(base, "made", folder / str(seed))
        adapters.remove(base, "made")
        found.append(folder / str(seed))
    return found


def _engine(base, paths, **engine):
    made = TorchEngine(base, EngineSettings(**{"widths": (8,), "max_waiting": 1000, **engine}), MODEL)
    for key, path in zip(KEYS, [None, *paths], strict=False):
        made.stage(key, path)
    return made


def _prompt(seed, length):
    drawn = random.Random(seed)
    return EncodedPrompt(tuple(drawn.randrange(3, 300) for _ in range(length)))


def _job(prompt, key=KEYS[0], temperature=0.0, seed=0, max_tokens=16):
    return Job(prompt=prompt, release=key, sampling=Sampling(temperature=temperature, max_tokens=max_tokens), seed=seed)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 33, 200])
def test_a_packed_product_is_the_plain_one(bias, rows, monkeypatch):
    generator = torch.Generator().manual_seed(rows)
    weight, offset = torch.randn(72, 48, generator=generator), torch.randn(72, generator=generator)
    inputs, other = torch.randn(rows, 48, generator=generator), torch.randn(rows, 72, generator=generator)
    quick = Packed(weight, offset if bias else None)
    monkeypatch.setattr(packed, "usable", lambda: False)
    plain = Packed(weight, offset if bias else None)
    assert torch.allclose(quick(inputs), plain(inputs), atol=1e-4)
    assert torch.allclose(quick.add(inputs, other), plain.add(inputs, other), atol=1e-4)
    assert torch.allclose(plain(inputs), inputs @ weight.T + (offset if bias else 0), atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(128, 48), (64, 400), (72, 48), (128, 50)])
def test_a_steps_product_is_the_packed_one(outputs, inputs, bias):
    """By the kernel, which reads the packed weights where they lie, if there are whole strips of them."""
    generator = torch.Generator().manual_seed(0)
    weight, offset = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    rows = torch.randn(33, inputs, generator=generator)
    whole = Packed(weight, offset if bias else None)
    quick = whole.of_step(kernels.load())
    fits = outputs % 64 == inputs % 16 == 0
    assert fits or quick is whole
    # No layout is promised, and AVX2 is the only kind of processor on which this one was found. If oneDNN uses another
    # elsewhere, oneDNN computes the product.
    if kernels.load() is not None and torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert (quick is not whole) == fits
    assert torch.allclose(quick(rows), whole(rows), atol=1e-4)
    assert torch.allclose(quick(rows[::2]), whole(rows)[::2], atol=1e-4)
    assert stand_alone(quick) or quick is whole
    assert whole.of_step(None) is whole


@pytest.mark.skipif(not packed.usable() or kernels.load() is None, reason="no kernels, or nothing packed")
def test_a_product_that_only_one_of_several_threads_would_compute_is_left_to_onednn(monkeypatch):
    whole = Packed(torch.randn(128, 64, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(packed, "shares", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert whole.of_step(kernels.load()) is whole
    finally:
        torch.set_num_threads(before)


def test_packed_weights_that_lie_otherwise_are_left_to_those_who_packed_them(monkeypatch):
    other = torch.randn(2, 48, 64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(Packed, "_strips", lambda self, strip: other.numpy())
    weight = torch.randn(128, 48, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 1e-5):
        whole = Packed(scale * weight)
        other.mul_(scale)
        assert whole.of_step(kernels.load()) is whole


def test_whether_rows_stand_alone_is_seen_from_their_bits():
    class Leaning(Packed):
        def _product(self, rows):
            return super()._product(rows) + 1e-7 * len(rows)

    assert stand_alone(Packed(torch.ones(8, 8))) or not packed.usable()
    assert not stand_alone(Leaning(torch.ones(8, 9)))


@pytest.mark.skipif(not packed.usable(), reason="this torch has no packed linears")
def test_a_row_that_sums_in_another_order_when_it_is_alone_is_computed_as_two():
    class Alone(Packed):
        def _product(self, rows):
            return super()._product(rows) + 1e-7 * (len(rows) == 1)

    assert stand_alone(Alone(torch.ones(8, 10)))


def test_numbers_far_outside_of_the_spread_are_compared_with_themselves():
    theirs = torch.randn(48, 576, generator=torch.Generator().manual_seed(0))
    # As the first token of SmolLM2-135M, whose packed linears no run served before this was allowed for.
    theirs[0, 507] = 20_000.0
    mine = theirs.clone()
    mine[0, 507] += 0.2
    assert fidelity.apart(mine, theirs) < fidelity.EXACT / 10
    mine[0, 507] += 100.0
    assert fidelity.apart(mine, theirs) > fidelity.EXACT


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("name", [*QUICK, *BY_MODULES])
def test_greedy_tokens_are_those_of_transformers_and_peft(make, name, tmp_path):
    folder = make(name)
    base = Base.load(folder, device="cpu", dtype="float32")
    base.eos_ids = frozenset()
    paths = _adapters(base, tmp_path)
    engine = _engine(base, paths)
    try:
        assert isinstance(engine._runner, Fused if name in QUICK else Modules)
        prompts = [_prompt(seed, length) for seed, length in enumerate((5, 40, 150, 21))]
        jobs = [_job(prompt, key) for prompt in prompts for key in KEYS]
        made = [ticket.result(60) for ticket in engine.submit(jobs)]
        scored = [engine.score(job.prompt, [each.tokens], job.release)[0] for job, each in zip(jobs, made, strict=True)]
    finally:
        engine.close()
    plain = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    wanted = {KEYS[0]: [_generate(plain, prompt) for prompt in prompts]}
    for key, path in zip(KEYS[1:], paths, strict=True):
        wrapped = PeftModel.from_pretrained(plain, str(path)).eval()
        wanted[key] = [_generate(wrapped, prompt) for prompt in prompts]
        plain = wrapped.unload()
    for job, each, other in zip(jobs, made, scored, strict=True):
        assert list(each.tokens) == wanted[job.release][prompts.index(job.prompt)]
        assert each.logprobs_raw == pytest.approx(other, abs=1e-4)


@in_bfloat16
@pytest.mark.parametrize("name", ["llama biased", "qwen3"])
def test_linears_in_bfloat16_are_near_and_the_log_probs_say_so(make, name):
    """Fused and by the model's own modules: nearer to fp32 than an adapter is, and recorded as what they are."""
    prompt, answer = _prompt(3, 40), list(_prompt(4, 12).tokens)
    scores = {}
    for dtype in ("float32", "auto"):
        base = Base.load(make(name), device="cpu", dtype="float32", context_length=256)
        engine = TorchEngine(base, EngineSettings(widths=(4,), dtype=dtype), MODEL)
        engine.stage(KEYS[0], None)
        try:
            scores[engine.base_dtype] = torch.tensor(engine.score(prompt, [answer], KEYS[0])[0])
        finally:
            engine.close()
    apart = (scores["bfloat16"] - scores["float32"]).abs()
    assert float(apart.max()) > 0.0
    assert float(apart.mean()) < 0.05


def test_bfloat16_is_refused_or_passed_over_if_the_processor_does_not_multiply_it(monkeypatch):
    monkeypatch.setattr(packed, "multiplies_bfloat16", lambda: False)
    assert packed.number_format("auto") == torch.float32
    with pytest.raises(Misconfigured, match=r"set engine\.dtype to auto or float32"):
        packed.number_format("bfloat16")


def _generate(model, prompt):
    ids = torch.tensor([prompt.tokens])
    with torch.inference_mode():
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=16,
            min_new_tokens=16,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return found[0, len(prompt.tokens) :].tolist()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    base = Base.load(tiny_model(tmp_path_factory.mktemp("tiny") / "tiny"), device="cpu", dtype="float32")
    return base, _adapters(base, tmp_path_factory.mktemp("adapters"))


def _bits_in_random_company(base, paths, rounds, seed, **engine):
    """Jobs in `rounds` random batchings; each reply is the one that came first for the same job."""
    drawn, first = random.Random(seed), {}
    lengths = [3, 17, 31, 64, 130, 200]
    jobs = [
        _job(_prompt(n, lengths[n % 6]), KEYS[n % 4], temperature=n % 3 / 2, seed=n, max_tokens=1 + drawn.randrange(12))
        for n in range(40)
    ]
    engine = _engine(base, paths, prefill_chunk=64, **engine)
    replies = 0
    try:
        for _ in range(rounds):
            batch = drawn.sample(range(len(jobs)), drawn.randrange(1, 12))
            tickets = []
            while batch:
                some = [batch.pop() for _ in range(min(len(batch), drawn.randrange(1, 5)))]
                tickets += zip(some, engine.submit([jobs[n] for n in some]), strict=True)
            for n, ticket in tickets:
                made = ticket.result(60)
                found = (made.tokens, made.logprobs_raw, made.logprobs_sampled)
                assert first.setdefault(n, found) == found
                replies += 1
    finally:
        engine.close()
    return replies


def test_a_reply_has_the_same_bits_in_any_company(saved):
    assert _bits_in_random_company(*saved, rounds=60, seed=1) > 200


@in_bfloat16
def test_in_bfloat16_it_has_too(saved):
    assert _bits_in_random_company(*saved, rounds=20, seed=4, dtype="bfloat16") > 60


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_kernels_it_has_too_and_says_the_same(saved, monkeypatch, temperature):
    base, _ = saved
    jobs = [_job(_prompt(n, 9 * n + 1), temperature=temperature, seed=n, max_tokens=3 * n + 1) for n in range(8)]

    def replies():
        engine = _engine(base, [])
        try:
            return engine._runner.compiled, [ticket.result(60) for ticket in engine.submit(jobs)]
        finally:
            engine.close()

    compiled, quick = replies()
    monkeypatch.setattr(kernels, "load", lambda: None)
    assert compiled
    without, plain = replies()
    assert not without
    for mine, other in zip(quick, plain, strict=True):
        assert mine.tokens == other.tokens
        for found, wanted in ((mine.logprobs_raw, other.logprobs_raw), (mine.logprobs_sampled, other.logprobs_sampled)):
            assert found == pytest.approx(wanted, abs=1e-4)
    assert _bits_in_random_company(*saved, rounds=10, seed=6) > 30


@pytest.mark.parametrize("name", ["norm", "add_norm", "gate", "turn", "attend"])
def test_a_kernel_that_computes_something_else_does_not_serve(saved, monkeypatch, name):
    base, _ = saved
    good = kernels.load()
    if good is None:
        pytest.skip("kernels are not compiled here")

    def wrong(*given):
        getattr(good, name)(*given)
        into = given[0] if name == "turn" else given[-1]
        into[:, 0] += 0.5

    monkeypatch.setattr(kernels, "load", lambda: SimpleNamespace(**{**vars(good), name: wrong}))
    bank = AdapterBank(base, layers=2, rank=8, slots=1)
    runner = choose(base, bank, 2)
    assert isinstance(runner, Fused)
    assert not runner.compiled


def _raises(*_):
    raise TypeError("No matching definition for argument type(s)")


def test_a_kernel_that_raises_does_not_serve(saved, monkeypatch):
    if (good := kernels.load()) is None:
        pytest.skip("kernels are not compiled here")
    base, _ = saved
    monkeypatch.setattr(kernels, "load", lambda: SimpleNamespace(**{**vars(good), "gate": _raises}))
    runner = choose(base, AdapterBank(base, layers=2, rank=8, slots=1), 2)
    assert isinstance(runner, Fused)
    assert not runner.compiled


def test_a_base_that_the_quick_runner_breaks_on_runs_by_its_own_modules(tmp_path, monkeypatch):
    base = Base.load(tiny_model(tmp_path / "tiny"), device="cpu", dtype="float32")
    monkeypatch.setattr(Fused, "run", _raises)
    assert isinstance(choose(base, AdapterBank(base, layers=2, rank=8, slots=1), 2), Modules)


def test_a_context_that_is_shorter_than_the_probe_is_not_left_by_it(saved, tmp_path):
    base = Base.load(tiny_model(tmp_path / "tiny"), device="cpu", dtype="float32", context_length=20)
    seen = []
    with pytest.MonkeyPatch.context() as watched:
        run = Fused.run
        watched.setattr(Fused, "run", lambda self, ids, at, *more: (seen.append(at), run(self, ids, at, *more))[1])
        runner = choose(base, AdapterBank(base, layers=2, rank=8, slots=1), 2)
    assert isinstance(runner, Fused)
    assert runner.compiled == (kernels.load() is not None)
    assert max(int(at.max()) for at in seen) == 19


def test_adapters_of_the_engines_passes_are_not_in_those_of_another_thread(tmp_path):
    base = Base.load(tiny_model(tmp_path / "tiny"), device="cpu", dtype="float32")
    bank = AdapterBank(base, layers=2, rank=8, slots=1)
    for down, up in bank._weights.values():
        down.fill_(0.1), up.fill_(0.1)
    bank.hook()
    ids = torch.arange(3, 9)[None]
    plain = base.upper(base.trunk(ids, 0), 0)
    mixture = bank.mixture(torch.ones(6, dtype=torch.long), kernels.load())
    used = threading.Thread(target=bank.use, args=(mixture,))
    used.start()
    used.join()
    assert torch.equal(base.upper(base.trunk(ids, 0), 0), plain)
    bank.use(mixture)
    assert not torch.allclose(base.upper(base.trunk(ids, 0), 0), plain, atol=1e-3)
    bank.use(None)


def test_a_row_is_on_the_adapter_that_its_slot_has_when_it_is_filled(saved):
    base, paths = saved
    engine = _engine(base, [], adapter_slots=2)
    prompt, replies = _prompt(5, 20), []
    try:
        for key, path in ((KEYS[1], paths[0]), (KEYS[2], paths[1]), (KEYS[1], paths[0])):
            engine.stage(key, path)
            assert {staged.slot for staged in engine._slots._staged.values() if staged.slot} == {1}
            replies.append(engine.submit([_job(prompt, key)])[0].result(60).logprobs_raw)
            engine.unstage(key)
    finally:
        engine.close()
    assert replies[0] == replies[2] != replies[1]


def test_without_the_packed_operators_it_has_too(saved, without_packing):
    assert _bits_in_random_company(*saved, rounds=20, seed=2) > 60


@pytest.mark.skipif("PLAUDIT_TEST_LONG" not in os.environ, reason="set PLAUDIT_TEST_LONG=1: a minute and more")
def test_ten_thousand_replies_in_random_company(saved):
    assert _bits_in_random_company(*saved, rounds=1700, seed=3) > 10_000


def _gradients(base, mask=None, first=0, layers=2):
    ids = torch.tensor([_prompt(1, 30).tokens, _prompt(2, 30).tokens])
    adapters.inject(base, "trained", layers=layers, rank=4, alpha=8, seed=3)
    generator = torch.Generator().manual_seed(3)
    for parameter in adapters.parameters(base, "trained"):
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)  # with B = 0 A has no gradient
    start = base.num_layers - layers
    with adapters.active(base, "trained"):
        hidden = base.run_layers(base.trunk(ids, start), start, base.num_layers, mask=mask, first=first)
        logits = base.logits(base.norm(hidden))
        logits.square().mean().backward()
    found = [parameter.grad.clone() for parameter in adapters.parameters(base, "trained")]
    adapters.remove(base, "trained")
    assert all(bool(each.any()) for each in found)
    return logits.detach(), found


def _holes(length):
    """A causal mask (2, 1, T, T) in which tokens overlook others, each text its own."""
    seen = torch.rand(2, 1, length, length, generator=torch.Generator().manual_seed(1)) < 0.6
    seen |= torch.eye(length, dtype=torch.bool)
    return torch.zeros(seen.shape).masked_fill_(~(seen & torch.ones(length, length).tril().bool()), float("-inf"))


def test_a_base_is_trained_on_as_before_whatever_serves_it(saved):
    """Packed weights are the engine's own: gradients of an adapter flow through the model's modules, the same ones."""
    base, _ = saved
    _, before = _gradients(base)
    engine = _engine(base, [])
    try:
        engine.submit([_job(_prompt(1, 30))])[0].result(60)
        for mine, wanted in zip(_gradients(base)[1], before, strict=True):
            assert torch.equal(mine, wanted)
    finally:
        engine.close()


@pytest.mark.skipif(not packed.usable(), reason="this torch has no packed linears")
@pytest.mark.parametrize("name", ["llama", "llama biased", "llama yarn", "mistral", "qwen2", "qwen3"])
def test_training_on_packed_weights_has_the_same_logits_and_gradients(make, monkeypatch, name):
    base = Base.load(make(name), context_length=128)
    cases = [{}, {"mask": _holes(30), "layers": 4}, {"first": 9, "layers": 4}, {"mask": _holes(30), "first": 29}]
    plain = [_gradients(base, **case) for case in cases]
    with monkeypatch.context() as broken:
        whole = Packed._product
        broken.setattr(Packed, "_product", lambda self, rows: 1.01 * whole(self, rows))
        assert not frozen.quicken(base)
    base.packs.clear()
    assert torch.equal(_gradients(base)[0], plain[0][0]), "what gives other numbers is taken back"
    assert frozen.quicken(base)
    # What is not of the family is computed by its own layers, whose linears alone are packed.
    ours, linear = vars(base.layer(0)).get("forward"), base.layer(0).get_submodule("mlp.gate_proj").forward
    assert isinstance(ours, LlamaLayer) == (name != "qwen3") != isinstance(linear, frozen.FrozenLinear)
    for case, (logits, gradients) in zip(cases, plain, strict=True):
        mine, found = _gradients(base, **case)
        assert torch.allclose(mine, logits, atol=1e-4)
        for own, wanted in zip(found, gradients, strict=True):
            assert (own - wanted).abs().max() < 2e-5 * wanted.abs().max()


EVER_NEW_SIZES = """
import torch
from plaudit.engine.packed import Packed
torch.set_num_threads(1)
linear, rows = Packed(torch.randn(512, 512)), torch.randn(512, 512)
pages = []
for count in range(1, 512):
    linear(rows[:count])
    if count in (128, 511):
        with open("/proc/self/statm") as statm:
            pages.append(int(statm.read().split()[1]))
print(pages[1] - pages[0])
"""


@pytest.mark.skipif(not packed.usable(), reason="no packed products here")
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc to read a process's memory from")
def test_products_of_ever_new_sizes_do_not_make_a_process_grow():
    """A learner's passes have ever new numbers of rows; torch would keep the work memory of 1,024 sizes."""
    kept = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    plain = {name: value for name, value in os.environ.items() if name not in kept}

    def grown(environment):
        done = subprocess.run(
            [sys.executable, "-c", EVER_NEW_SIZES], env=environment, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    ours, torchs = grown(plain), grown(plain | dict.fromkeys(kept, "1024"))
    assert ours < torchs / 2


def test_weights_are_packed_once_for_what_serves_and_what_learns(make):
    base = Base.load(make("llama"), context_length=128)
    engine = _engine(base, [])
    try:
        frozen.quicken(base)
        serving, learning = engine._runner._layers[1], vars(base.layer(1))["forward"]._weights
        assert serving.weights.qkv.packed is learning.qkv.packed
        assert engine._runner._head is base.model.lm_head.forward._forth
    finally:
        engine.close()


def test_a_layer_whose_linears_are_hooked_is_computed_by_its_own_modules(make):
    base = Base.load(make("llama"), context_length=128)
    frozen.quicken(base)
    before = base.trunk(torch.arange(3, 20)[None], 2)
    base.layer(1).get_submodule("mlp.gate_proj").register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not torch.allclose(base.trunk(torch.arange(3, 20)[None], 2), before, atol=1e-3)


@pytest.mark.parametrize("kind", [Fused, Modules])
def test_a_shared_prefix_is_computed_below_the_adapters_once_for_all(saved, monkeypatch, kind):
    base, paths = saved
    if kind is Modules:
        monkeypatch.setattr(torch_engine, "choose", lambda base, bank, capture, dtype: Modules(base, bank, capture))
    prompt = EncodedPrompt(_prompt(7, 40).tokens, 30)
    found = []
    for keys in ([KEYS[2]], [KEYS[0], KEYS[1], KEYS[2]]):
        engine = _engine(base, paths)
        assert isinstance(engine._runner, kind)
        passes = []
        run = engine._runner.run
        monkeypatch.setattr(
            engine._runner,
            "run",
            lambda *a, run=run, passes=passes, **more: (passes.append((len(a[0]), a[4:] != ())), run(*a, **more))[1],
        )
        try:
            found.append([engine.submit([_job(prompt, key)])[0].result(60) for key in keys][-1])
        finally:
            engine.close()
        assert [trunk for length, trunk in passes if length == 30] == [False, True, True][: len(keys)]
    assert (found[0].tokens, found[0].logprobs_raw) == (found[1].tokens, found[1].logprobs_raw)


def test_a_runner_of_other_numbers_does_not_serve(saved, monkeypatch):
    base, _ = saved
    made = AdapterBank(base, layers=2, rank=8, slots=2)
    assert isinstance(choose(base, made, 2), Fused)
    run = Fused.run

    def other(self, *args):
        trunk, last = run(self, *args)
        return trunk, last * 1.01

    monkeypatch.setattr(Fused, "run", other)
    assert isinstance(choose(base, made, 2), Modules)


def test_trunk_and_last_layer_may_be_captured(saved):
    base, _ = saved
    ids = torch.tensor([_prompt(4, 25).tokens])
    for layer in (0, 1, 2, base.num_layers):
        engine = TorchEngine(base, EngineSettings(widths=(4,)), MODEL, capture_layer=layer)
        engine.stage(KEYS[0], None)
        try:
            job = dataclasses.replace(_job(_prompt(4, 25)), capture=True)
            made = engine.submit([job])[0].result(60)
        finally:
            engine.close()
        fed = torch.cat([ids, torch.tensor([made.tokens[:-1]])], dim=1)
        assert torch.allclose(made.hidden, base.trunk(fed, layer)[0], atol=1e-4)
