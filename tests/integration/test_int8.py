"""engine.dtype = "int8": numbers of a base of rounded weights, bits of a row its own, releases proved, memory freed."""

from types import SimpleNamespace

import pytest
import torch
from plaudit.engine import adapters, kernels, narrow
from plaudit.engine.base import Base
from plaudit.engine.narrow import LEVELS, Narrow, rounded
from plaudit.engine.opening import open_engine
from plaudit.engine.packed import number_format
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import Misconfigured, ProofFailed
from plaudit.learner.loop import _own_format
from plaudit.serving.proof import NARROW, Tolerance, prove
from plaudit.settings import EngineSettings, ModelSettings, Settings
from plaudit.testing.models import tiny_family, tiny_model
from plaudit.types import Sampling

MODEL = ModelSettings(adapter_layers=2)
KEYS = [ReleaseKey("toy/default", number, str(number)) for number in range(3)]
PROMPT = EncodedPrompt(tuple(range(5, 45)))
INT8 = EngineSettings(widths=(8,), dtype="int8")
compiled = pytest.mark.skipif(not narrow.usable(), reason="the kernel of narrow weights is not compiled here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def paths(folder, tmp_path_factory):
    """Two saved adapters that change the model clearly."""
    base, found = _base(folder), []
    for seed in (1, 2):
        adapters.inject(base, "made", layers=2, rank=8, alpha=16, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapters.parameters(base, "made"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        found.append(tmp_path_factory.mktemp("adapters") / str(seed))
        adapters.save(base, "made", found[-1])
        adapters.remove(base, "made")
    return found


@pytest.fixture(scope="module")
def engine(folder, paths):
    made = _staged(TorchEngine(_base(folder), INT8, MODEL), paths)
    yield made
    made.close()


def _base(folder):
    return Base.load(folder, device="cpu", dtype="float32")


def _staged(engine, paths):
    for key, path in zip(KEYS, [None, *paths], strict=False):
        engine.stage(key, path)
    return engine


def _job(key, seed, max_tokens=12):
    how = Sampling(temperature=1.0, max_tokens=max_tokens)
    return Job(prompt=EncodedPrompt(PROMPT.tokens[seed:]), release=key, sampling=how, seed=seed)


@compiled
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (200, 100), (576, 1536)])
def test_a_product_is_that_of_the_widened_weights_and_a_row_s_bits_are_its_own(dtype, outputs, inputs):
    generator = torch.Generator().manual_seed(outputs)
    weight, bias, rows = (torch.randn(*s, generator=generator) for s in ((outputs, inputs), (outputs,), (45, inputs)))
    product = Narrow(weight, bias, dtype)
    widened = product.lines(torch.arange(outputs))
    wanted = rows.double() @ widened.double().T + bias
    found = product(rows)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    for first, count in ((0, 1), (7, 2), (3, 3), (11, 4), (20, 8), (9, 13), (1, 31)):
        assert torch.equal(product(rows[first : first + count]), found[first : first + count])
    torch.testing.assert_close(product.add(rows, found), 2 * found)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(product(rows), found)
    finally:
        torch.set_num_threads(before)
    if dtype == torch.bfloat16:
        assert torch.equal(widened, weight.bfloat16().float())


def test_a_rounded_weight_is_off_by_at_most_half_a_step_of_its_group_and_nothing_is_lost_to_zeros():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weight[3, 32:64] = 0.0
    weight[5, 64:96] = 1e-42
    numbers, scales = rounded(weight)
    widened = (numbers.float().view(64, 3, 32) * scales.float()[..., None]).view_as(weight)
    groups = weight.view(64, 3, 32).abs().amax(-1).repeat_interleave(32, 1)
    # Half a step, and for the largest what rounding its scale to bfloat16 takes off.
    assert ((widened - weight).abs() <= groups * (0.5 / LEVELS + 2**-8) + 1e-38).all()
    assert widened[3, 32:64].abs().max() == 0.0
    assert scales.float().isfinite().all()


@compiled
def test_the_engine_computes_the_base_whose_weights_are_rounded_and_says_so(folder, engine):
    base = _base(folder)
    answer = list(range(60, 80))
    exact = torch.tensor(_plain_score(base, answer))
    for name, weight in base.model.named_parameters():
        if name.endswith("_proj.weight"):
            weight.data = Narrow(weight).lines(torch.arange(len(weight)))
    base.model.lm_head.weight.data = base.model.lm_head.weight.bfloat16().float()
    base.embedding.weight.data = base.embedding.weight.bfloat16().float()
    found = torch.tensor(engine.score(PROMPT, [answer], KEYS[0])[0])
    assert engine.base_dtype == "int8"
    assert (found - torch.tensor(_plain_score(base, answer))).abs().max() < 1e-4
    assert 1e-4 < (found - exact).abs().mean() < 0.1


def _plain_score(base, answer):
    tokens = torch.tensor([[*PROMPT.tokens, *answer]])
    with torch.no_grad():
        hidden = base.upper(base.trunk(tokens, 0), 0)[0, len(PROMPT.tokens) - 1 : -1]
        return base.logits(hidden).log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()


@compiled
def test_replies_have_the_same_bits_in_any_company_and_while_releases_change(engine, paths):
    jobs = [_job(KEYS[seed % 3], seed) for seed in range(12)]
    alone = [engine.submit([job])[0].result(60) for job in jobs]
    tickets = engine.submit(jobs)
    for number in range(3, 9):
        key = ReleaseKey("toy/default", number, str(number))
        engine.stage(key, paths[number % 2])
        engine.unstage(key)
    for ticket, wanted in zip(tickets, alone, strict=True):
        found = ticket.result(60)
        assert (found.tokens, found.logprobs_raw) == (wanted.tokens, wanted.logprobs_raw)


@compiled
def test_a_release_is_proved_at_the_tolerance_of_int8_and_another_adapter_is_not(folder, paths, engine):
    exact = _staged(TorchEngine(_base(folder), EngineSettings(widths=(8,)), MODEL), paths)
    try:
        probes = []
        for seed in range(6):
            prompt, made = EncodedPrompt(PROMPT.tokens[seed:]), exact.submit([_job(KEYS[1], seed)])[0].result(60)
            scores = exact.score(prompt, [made.tokens], KEYS[1])[0]
            probe = {"prompt_tokens": prompt.tokens, "completion_tokens": made.tokens, "logprobs": scores}
            probes.append(SimpleNamespace(**probe))
    finally:
        exact.close()
    manifest = SimpleNamespace(probes=probes, temperature=1.0, base_dtype="float32")
    tolerance = Tolerance.of("torch", engine.base_dtype)
    assert tolerance == NARROW
    proof = prove(engine, KEYS[1], KEYS[0], manifest, tolerance=tolerance)
    assert 0.0 < proof.mean < 0.2 * proof.from_base
    with pytest.raises(ProofFailed, match="the mean difference"):
        prove(engine, KEYS[2], KEYS[0], manifest, tolerance=tolerance)


@compiled
def test_a_process_that_serves_lets_the_wide_weights_go_and_says_the_same(folder, engine):
    settings = Settings(model=ModelSettings(path=str(folder), device="cpu", adapter_layers=2), engine=INT8)
    opened = open_engine(settings)
    try:
        left = sum(p.numel() for p in opened.base.model.parameters())
        assert left <= sum(p.numel() for p in engine.base.model.parameters()) / 50
        opened.stage(KEYS[0], None)
        wanted = engine.submit([_job(KEYS[0], 1)])[0].result(60)
        assert opened.submit([_job(KEYS[0], 1)])[0].result(60).logprobs_raw == wanted.logprobs_raw
        options = [[3, 4, 5], [6, 7]]
        found, others = (each.score_options(PROMPT, options, KEYS[0]).result(60) for each in (opened, engine))
        assert found == others
    finally:
        opened.close()


@compiled
def test_a_base_whose_width_is_no_multiple_of_a_group_is_served(tmp_path):
    folder, found = tiny_model(tmp_path / "tiny", hidden=48), []
    for how in (INT8, EngineSettings(widths=(8,))):
        engine = _staged(TorchEngine(_base(folder), how, MODEL), [])
        try:
            found.append(engine.submit([_job(KEYS[0], 1)])[0].result(60).logprobs_raw[0])
        finally:
            engine.close()
    assert found[0] == pytest.approx(found[1], abs=0.3)


@compiled
def test_a_base_that_is_not_computed_so_is_refused_with_what_to_do(tmp_path):
    base = Base.load(tiny_family(tmp_path / "qwen3", "qwen3", head_dim=16), device="cpu", dtype="float32")
    with pytest.raises(Misconfigured, match=r"Llama family.*Qwen3.*set engine\.dtype to auto or float32"):
        TorchEngine(base, INT8, MODEL)


def test_without_its_kernel_it_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "load_narrow", lambda: None)
    narrow.usable.cache_clear()
    try:
        with pytest.raises(Misconfigured, match=r"needs numba.*set engine\.dtype to auto or float32"):
            number_format("int8")
    finally:
        narrow.usable.cache_clear()


def test_the_learner_s_own_passes_are_in_float32_beside_it():
    assert _own_format("engine", INT8) == torch.float32
