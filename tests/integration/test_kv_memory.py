"""Memory for keys and values follows the tokens that are there, and never passes its budget."""

import random
import time

import pytest
import torch
from plaudit.engine import admission, lanes
from plaudit.engine.base import Base
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import Cancelled, InternalError, Misconfigured, RequestTooLarge
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.testing.models import tiny_family
from plaudit.testing.training import saved_adapter
from plaudit.testing.waiting import wait_until
from plaudit.types import Sampling

BASE, ONE = ReleaseKey("toy/default", 0, "base"), ReleaseKey("toy/default", 1, "one")
MODEL = ModelSettings(adapter_layers=2)


@pytest.fixture(scope="module")
def folder(tiny_base, tmp_path_factory):
    return saved_adapter(tiny_base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def start(tiny_base, folder):
    """Starts engines whose budget is checked whenever memory is taken; closes them."""
    made = []

    def begin(**engine):
        found = TorchEngine(tiny_base, EngineSettings(**{"widths": (8,), "max_waiting": 200, **engine}), MODEL)
        made.append(found)
        found.stage(BASE, None)
        found.stage(ONE, folder, temperature=0.7)
        return found

    yield begin
    for each in made:
        each.close()


@pytest.fixture
def small_blocks(monkeypatch):
    """The tiny model has a KiB per token: blocks of 4 rows of 128, 2 of 256, 1 of 512."""
    monkeypatch.setattr(lanes, "BLOCK_BYTES", 512 * 1024)


def _prompt(length, seed=0, shared=0):
    drawn = random.Random(seed)
    return EncodedPrompt((5,) * shared + tuple(drawn.randrange(3, 300) for _ in range(length - shared)), shared)


def _job(prompt, key=BASE, seed=0, max_tokens=20, width=8):
    return Job(prompt=prompt, release=key, sampling=Sampling(max_tokens=max_tokens), seed=seed, width=width)


def _idle(engine):
    wait_until(lambda: engine.load() == (0, 0) and not engine._admission.pending)


def _plain(base, prompt, tokens):
    ids = torch.tensor([[*prompt.tokens, *tokens]])
    with torch.no_grad():
        logits = base.logits(base.upper(base.trunk(ids, 0), 0))[0]
    logprobs = torch.log_softmax(logits, -1)
    return [logprobs[len(prompt.tokens) - 1 + i, token].item() for i, token in enumerate(tokens)]


def test_one_long_row_in_a_wide_lane_takes_its_own_tokens_and_no_more(start, small_blocks):
    engine = start(widths=(64,))
    token = engine._layout.token_bytes
    assert token == 1024
    (short,) = engine.submit([_job(_prompt(60, 1), max_tokens=60, width=64)])
    short.result(300)
    (long,) = engine.submit([_job(_prompt(480, 2), max_tokens=30, width=64)])
    next(long.deltas(300))
    # A rectangle of 64 rows would be 32 MiB: this is 4 rows of 128, 1 of 512, and the prompt while it is computed.
    assert engine._budget.held <= (4 * 128 + 512) * token + 480 * engine._layout.prompt_bytes
    long.result(300)
    _idle(engine)
    # The long row's memory went with it.
    assert engine._budget.held == 4 * 128 * token


def test_rows_in_blocks_are_bit_equal_to_their_replay_and_to_a_plain_pass(start, small_blocks, tiny_base):
    engine = start(widths=(8, 16))
    lengths = [7, 60, 100, 130, 200, 300, 20, 90, 400, 11]
    jobs = [
        _job(_prompt(length, n), BASE if n % 3 else ONE, seed=n, max_tokens=10 + n, width=16 if n % 4 else 8)
        for n, length in enumerate(lengths * 3)
    ]
    tickets = [engine.submit([job])[0] for job in jobs]
    crowded = [ticket.result(300) for ticket in tickets]
    for job, made in list(zip(jobs, crowded, strict=True))[::2]:
        alone = engine.submit([job])[0].result(300)
        assert (alone.tokens, alone.logprobs_raw) == (made.tokens, made.logprobs_raw)
        if job.release == BASE:
            assert made.logprobs_raw == pytest.approx(_plain(tiny_base, job.prompt, made.tokens), abs=1e-3)


def test_jobs_that_do_not_fit_now_wait_and_the_budget_holds(start, monkeypatch):
    engine = start(kv_memory_mb=1, widths=(8, 32))
    peaks = []
    take = type(engine._budget).take

    def watched(self, size):
        take(self, size)
        peaks.append(self.held)

    monkeypatch.setattr(type(engine._budget), "take", watched)
    drawn = random.Random(5)
    jobs = [
        _job(_prompt(drawn.randrange(5, 200), n), (BASE, ONE)[n % 2], n, drawn.randrange(1, 60), width=None)
        for n in range(20)
    ]
    # Several of one prompt in a group, too.
    groups = [jobs[:1], *([job, job, job] for job in jobs[1:])]
    made = [[ticket.result(300) for ticket in tickets] for tickets in [engine.submit(group) for group in groups]]
    assert max(peaks) <= engine._budget.limit == 2**20
    assert max(peaks) > engine._budget.limit / 2, "the budget must be short for this test to mean anything"
    _idle(engine)
    for group, results in list(zip(groups, made, strict=True))[::5]:
        again = engine.submit([group[0]])[0].result(300)
        if again.width == results[0].width:
            assert again.tokens == results[0].tokens
    assert engine._admission._cached <= engine._budget.limit // 8


def test_a_job_that_never_fits_is_refused_with_the_figures(start):
    engine = start(kv_memory_mb=1)
    # 480 tokens with trunk activations are 600 KiB, a row of 512 tokens half a MiB.
    with pytest.raises(RequestTooLarge, match=r"take 2 MiB, and engine\.kv_memory_mb allows 1") as refused:
        engine.submit([_job(_prompt(480), max_tokens=30)])
    assert refused.value.metadata == {"needed_mb": "2", "limit_mb": "1"}
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert engine.submit([_job(_prompt(300), max_tokens=200)])[0].result(300).tokens
    assert engine.load() == (0, 0)


def test_a_large_job_is_not_overtaken_for_ever(start):
    engine = start(kv_memory_mb=1, widths=(16,))
    before = [engine.submit([_job(_prompt(60, n), seed=n, max_tokens=60, width=16)])[0] for n in range(6)]
    (large,) = engine.submit([_job(_prompt(300, 9), max_tokens=100, width=16)])
    after = [engine.submit([_job(_prompt(60, n), seed=n, max_tokens=40, width=16)])[0] for n in range(40)]
    while not after[-1].width:
        begun = any(ticket.width for ticket in after)
        assert large.width or not begun, "a job that came later began first"
        time.sleep(0.001)
    for ticket in [*before, large, *after]:
        ticket.result(300)


def test_options_wait_for_memory_and_get_it(start):
    engine = start(kv_memory_mb=1)
    running = [engine.submit([_job(_prompt(250, n), seed=n, max_tokens=150)])[0] for n in range(6)]
    ticket = engine.score_options(_prompt(300, 7), [[7, 8], [9]], BASE)
    assert [len(each) for each in ticket.result(300)] == [3, 2]
    for each in running:
        each.result(300)
    with pytest.raises(RequestTooLarge):
        engine._admission.check_prompt(EncodedPrompt((5,) * 900))


def test_a_computed_prompt_that_waits_for_a_row_makes_room(start):
    engine = start(kv_memory_mb=1)
    # Prompt and row take 1,012 of 1,024 KiB, so the second job waits with its prompt's 500; the options need 600.
    waiting = engine.submit([_job(_prompt(400), seed=n, max_tokens=20) for n in range(3)])
    ticket = engine.score_options(_prompt(480, 7), [[7, 8]], BASE)
    assert [len(each) for each in ticket.result(300)] == [3]
    alone = engine.submit([_job(_prompt(400), seed=2, max_tokens=20)])[0].result(300)
    assert [each.result(300) for each in waiting][2].logprobs_raw == alone.logprobs_raw


def test_memory_comes_back_whatever_ends_a_job(start):
    engine = start(kv_memory_mb=1)
    drawn = random.Random(3)
    for turn in range(20):
        prompt = _prompt(drawn.randrange(5, 250), turn, shared=4)
        tickets = engine.submit([_job(prompt, seed=n, max_tokens=drawn.randrange(1, 80)) for n in range(3)])
        for ticket in tickets[: drawn.randrange(4)]:
            ticket.cancel()
    for ticket in tickets:
        try:
            ticket.result(300)
        except Cancelled:
            continue
    _idle(engine)
    for lane in engine._lanes.values():
        lane.shrink()
    assert engine._budget.held == engine._admission._cached


def test_a_row_that_was_taken_for_a_short_job_is_not_given_to_a_long_one(start, small_blocks, monkeypatch):
    """Jobs of one prompt: the first is cancelled while the prompt is computed, and the next needs a longer row."""
    engine = start(prefill_chunk=16)
    monkeypatch.setattr(engine.base, "eos_ids", frozenset())
    short, long = (_job(_prompt(100, 1), max_tokens=most) for most in (4, 200))
    wanted = engine.submit([long])[0].result(300)
    compute = admission.Admission._compute

    def cancels(self, groups):
        for ticket in groups[0].waiting:
            ticket.cancelled |= ticket.job is short
        return compute(self, groups)

    monkeypatch.setattr(admission.Admission, "_compute", cancels)
    tickets = engine.submit([short, long])
    with pytest.raises(Cancelled):
        tickets[0].result(300)
    found = tickets[1].result(300)
    assert (found.tokens, found.logprobs_raw) == (wanted.tokens, wanted.logprobs_raw)
    _idle(engine)
    assert not any(lane.occupied or lane.free < lane.width for lane in engine._lanes.values())


def test_less_memory_than_the_budget_says_fails_who_needs_it_and_nobody_else(start, small_blocks, monkeypatch):
    engine = start()
    running = engine.submit([_job(_prompt(60, 1), max_tokens=60)])[0]
    next(running.deltas(300))

    def none_left(self, rows, capacity):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as short:
        short.setattr(type(engine._layout), "zeros", none_left)
        with pytest.raises(InternalError, match="RuntimeError"):
            engine.submit([_job(_prompt(300, 2), max_tokens=100)])[0].result(300)
    assert len(running.result(300).tokens) > 1
    assert engine.submit([_job(_prompt(300, 2), max_tokens=100)])[0].result(300).tokens
    _idle(engine)
    assert not any(lane.occupied or lane.free < lane.width for lane in engine._lanes.values())


def test_what_nobody_foresaw_fails_what_is_under_way_and_not_the_engine(start, monkeypatch):
    engine = start()

    def breaks(*_):
        raise ValueError("not a number")

    with monkeypatch.context() as broken:
        broken.setattr(engine, "_tell", breaks)
        tickets = engine.submit([_job(_prompt(20, n), seed=n) for n in range(12)])
        for ticket in tickets:
            with pytest.raises(InternalError, match="ValueError"):
                ticket.result(300)
    assert engine.submit([_job(_prompt(20))])[0].result(300).tokens
    _idle(engine)
    assert engine._slots.of(BASE).jobs == 0


def test_prefixes_that_callers_invent_are_forgotten(start):
    engine = start()
    for number in range(40):
        prompt = EncodedPrompt((*(3 + (number * 7 + i) % 300 for i in range(50)), 9, 10), 50)
        engine.submit([_job(prompt, max_tokens=1)])[0].result(300)
    assert len(engine._admission._cache) == 16
    assert engine._admission._cached == 16 * 50 * engine._layout.prompt_bytes


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "phi3", "olmo2", "granite"]
)
def test_every_family_that_is_served_decodes_from_blocks(tmp_path, small_blocks, name):
    changes = {
        "mistral": {"sliding_window": None},
        "mixtral": {"num_local_experts": 4},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    }
    try:
        base = Base.load(tiny_family(tmp_path / name, name, **changes.get(name, {})), device="cpu", dtype="float32")
    except Misconfigured:
        pytest.skip("this family is refused")
    engine = TorchEngine(base, EngineSettings(widths=(8,)), MODEL)
    try:
        engine.stage(BASE, None)
        jobs = [_job(_prompt(length, length), seed=length, max_tokens=12) for length in (20, 100, 200)]
        for job, ticket in zip(jobs, engine.submit(jobs), strict=True):
            made = ticket.result(300)
            ids = torch.tensor([[*job.prompt.tokens, *made.tokens]])
            with torch.no_grad():
                logprobs = torch.log_softmax(base.model(input_ids=ids, use_cache=False).logits[0].float(), -1)
            first = len(job.prompt.tokens) - 1
            wanted = [logprobs[first + i, token].item() for i, token in enumerate(made.tokens)]
            assert made.logprobs_raw == pytest.approx(wanted, abs=1e-3)
    finally:
        engine.close()
