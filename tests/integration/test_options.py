"""Options are scored exactly, with their end of turn, in pieces that fit a budget and stall nobody."""

import math
import random
import threading
import time
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.engine import adapters
from plaudit.engine.bank import AdapterBank
from plaudit.engine.memory import Layout
from plaudit.engine.options import Plan, Tree, Walk
from plaudit.engine.prefixes import Chunk, Prefix, extend
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.runners import choose
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import Cancelled, OptionsTooLong, QueueFull, ReleaseNotServable
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.testing.training import saved_adapter
from plaudit.types import Message, Sampling
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BASE, ONE = ReleaseKey("toy/default", 0, "base"), ReleaseKey("toy/default", 1, "one")
MODEL = ModelSettings(adapter_layers=2)
WORDS = ["yes", "yes please", "yes please do", "no", "no tea today", "tea", "tea cup", "a", "", "yes please"]


@pytest.fixture(scope="module")
def folder(tiny_base, tmp_path_factory):
    return saved_adapter(tiny_base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def engine(tiny_base, folder):
    made = _engine(tiny_base, folder)
    yield made
    made.close()


def _engine(base, folder, **engine):
    wanted = {"widths": (4,), "prefill_chunk": 16, "max_waiting": 8, **engine}
    made = TorchEngine(base, EngineSettings(**wanted), MODEL)
    made.stage(BASE, None)
    made.stage(ONE, folder, temperature=0.7)
    return made


def _prompt(engine, text="what to say of tea"):
    return engine.encode([Message("user", text)])


def _plain(base, prompt, tokens, temperature, name=None):
    """Log-probs of tokens by one pass over the whole sequence."""
    ids = torch.tensor([[*prompt.tokens, *tokens]])
    with adapters.active(base, name), torch.no_grad():
        logits = base.logits(base.upper(base.trunk(ids, 0), 0))[0]
    logprobs = torch.log_softmax(logits / temperature, -1)
    return [logprobs[len(prompt.tokens) - 1 + i, token].item() for i, token in enumerate(tokens)]


def test_options_with_their_end_are_scored_as_by_a_plain_pass(engine, tiny_base, folder):
    prompt = _prompt(engine)
    options = [engine.encode_text(text) for text in WORDS]
    for key, temperature, name in ((BASE, 1.0, None), (ONE, 0.7, "check")):
        found = engine.score_options(prompt, options, key).result(300)
        if name:
            adapters.load(tiny_base, name, folder)
        for option, logprobs in zip(options, found, strict=True):
            wanted = _plain(tiny_base, prompt, [*option, engine.end_of_turn], temperature, name)
            assert logprobs == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        if name:
            adapters.remove(tiny_base, name)
    assert found != engine.score_options(prompt, options, ONE, 1.0).result(300)


def test_an_option_does_not_win_because_it_begins_another(engine):
    won = 0
    for number in range(20):
        prompt = _prompt(engine, f"question {number} of you")
        job = Job(prompt=prompt, release=BASE, sampling=Sampling(temperature=0, max_tokens=2), seed=0)
        (longer,) = (ticket.result(300).tokens for ticket in engine.submit([job]))
        # Cold, because this model ends its turn with nearly the same small probability everywhere.
        begun, whole = engine.score_options(prompt, [longer[:1], longer], BASE, 0.1).result(300)
        # All but the end is what they have in common.
        assert begun[0] == pytest.approx(whole[0], rel=1e-5, abs=1e-5)
        # Different replies exclude each other.
        assert math.exp(math.fsum(begun)) + math.exp(math.fsum(whole)) <= 1.0
        won += math.fsum(begun) >= math.fsum(whole)
    assert 0 < won < 20


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(3, 8), max_size=7), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 40),
)
def test_any_options_in_any_pieces_are_scored_as_alone(tiny_base, continuations, piece, length):
    prompt = [5 + i % 300 for i in range(length)]
    found = _walk(tiny_base, prompt, continuations, piece)
    for tokens, logprobs in zip(continuations, found, strict=True):
        wanted = _plain(tiny_base, EncodedPrompt(tuple(prompt)), tokens, 1.0) if tokens else []
        assert logprobs == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def _walk(base, prompt, continuations, piece, tree=None):
    tree = tree or Tree.of(prompt[-1], continuations)
    runner = choose(base, AdapterBank(base, layers=2, rank=8, slots=2), 2)
    prefix = Prefix()
    with torch.no_grad():
        if prompt[:-1]:
            extend(runner, [Chunk(prefix, prompt[:-1], 0)])
    walk = Walk(tree, Plan(piece, 0), 1.0, [len(each) for each in continuations])
    while not walk.done:
        walk.step(runner, prefix, 0)
    return walk.logprobs


def test_shared_beginnings_are_computed_once():
    tree = Tree.of(9, [[1, 2, 3, 0], [1, 2, 4, 0], [1, 2, 0], [5, 0]])
    assert sorted(tree.tokens) == [1, 2, 3, 4, 5, 9]


class _Peak(TorchDispatchMode):
    """The most bytes of tensors made in the block that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self._seen = 0, 0, {}

    def _freed(self, pointer, size):
        self._seen.pop(pointer, None)
        self.alive -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for storage in self._storages((args, kwargs)):
            # Weights, and what else was there before.
            self._seen.setdefault(storage._cdata, storage)
        out = function(*args, **(kwargs or {}))
        for storage in self._storages(out):
            if storage._cdata not in self._seen:
                self._seen[storage._cdata] = None
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return out

    @staticmethod
    def _storages(values):
        # Packed weights were there before, and their storage is not torch's.
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor) and not leaf.is_mkldnn]
        return [leaf.untyped_storage() for leaf in tensors]


@pytest.mark.parametrize(("budget", "piece"), [(240_000, 1), (400_000, 8), (20_000_000, 128)])
def test_scoring_keeps_within_its_memory(tiny_base, budget, piece):
    drawn = random.Random(3)
    prompt = [5 + i % 300 for i in range(40)]
    options = [[drawn.randrange(3, 300) for _ in range(120)] for _ in range(3)]
    tree = Tree.of(prompt[-1], options)
    plan = Plan.of(tiny_base, tree, len(prompt), Layout.of(tiny_base).token_bytes, most=128, budget=budget)
    assert (plan.piece, plan.needed <= budget) == (piece, True)
    runner, prefix = choose(tiny_base, AdapterBank(tiny_base, layers=2, rank=8, slots=2), 2), Prefix()
    with torch.no_grad():
        extend(runner, [Chunk(prefix, prompt[:-1], 0)])
    walk = Walk(tree, plan, 1.0, [len(each) for each in options])
    with _Peak() as used:
        while not walk.done:
            walk.step(runner, prefix, 0)
    assert used.peak <= plan.needed
    # The figure is no wild guess either; it counts scores that the CPU kernel of attention does not keep.
    assert used.peak >= plan.needed / 8


def test_what_cannot_be_scored_is_refused_with_the_figures(engine, tiny_base, folder):
    prompt = _prompt(engine)
    room = engine.context_length - len(prompt.tokens)
    with pytest.raises(OptionsTooLong, match=str(room + 1)) as refused:
        engine.score_options(prompt, [[7] * room], BASE)
    assert refused.value.metadata == {"tokens": str(room + 1), "limit": str(room)}
    engine.score_options(prompt, [[7] * (room - 1)], BASE).result(300)
    small = _engine(tiny_base, folder, score_tokens=50)
    try:
        with pytest.raises(OptionsTooLong, match="51 tokens together"):
            small.score_options(prompt, [[7] * 30, [8] * 20], BASE)
        small.score_options(prompt, [[7] * 30, [8] * 19], BASE).result(300)
    finally:
        small.close()
    with pytest.raises(ReleaseNotServable):
        engine.score_options(prompt, [[7]], ReleaseKey("toy/default", 9, "x"))
    tree = Tree.of(1, [[7] * 400])
    with pytest.raises(OptionsTooLong, match="score_memory_mb"):
        Plan.of(tiny_base, tree, 10, Layout.of(tiny_base).token_bytes, most=16, budget=100_000)


def _long_options(engine, prompt, count, seed=0):
    drawn = random.Random(seed)
    return [[drawn.randrange(3, 300) for _ in range(300)] for _ in range(count)]


def test_options_wait_in_the_queue_of_completions_and_can_be_given_up(engine):
    prompt = _prompt(engine)
    with engine._lock:  # the engine does nothing meanwhile, however quick it is
        tickets = [engine.score_options(prompt, _long_options(engine, prompt, 8, n), BASE) for n in range(8)]
        with pytest.raises(QueueFull, match="8 requests wait"):
            engine.score_options(prompt, [[7]], BASE)
        with pytest.raises(QueueFull):
            engine.submit([Job(prompt=prompt, release=BASE, sampling=Sampling(), seed=0)])
        with pytest.raises(TimeoutError):
            tickets[-1].result(0.001)
        for ticket in tickets:
            ticket.cancel()
    for ticket in tickets[1:]:
        with pytest.raises(Cancelled):
            ticket.result(300)
    assert len(engine.score_options(prompt, [[7]], BASE).result(300)[0]) == 2
    # A proof of a release is not refused because callers wait.
    assert len(engine.score(prompt, [[7]], BASE)[0]) == 1


def test_decoding_goes_on_between_pieces_and_neither_changes_the_other(engine):
    prompt = _prompt(engine)
    options = _long_options(engine, prompt, 12)
    job = Job(prompt=prompt, release=ONE, sampling=Sampling(max_tokens=40), seed=3)
    alone = engine.submit([job])[0].result(300)
    apart = engine.score_options(prompt, options[:1], BASE).result(300)[0]
    free, waiting = engine._free, []
    engine._free = lambda *row: (waiting.append(len(engine._scores)), free(*row))
    ticket = engine.score_options(prompt, options, BASE)
    (stream,) = engine.submit([job])
    beside = stream.result(300)
    # 12 x 300 tokens are 225 pieces of 16; 40 tokens need 40 steps.
    assert waiting == [1], "the completion had to wait for the options"
    assert beside.logprobs_raw == alone.logprobs_raw
    assert ticket.result(300)[0] == pytest.approx(apart, rel=1e-5, abs=1e-5)


def test_closing_ends_options_that_wait(tiny_base, folder):
    engine = _engine(tiny_base, folder)
    prompt = _prompt(engine)
    piece = engine._score_piece

    def last_piece():  # there is none before the engine is told to end
        ends = time.monotonic() + 300
        while not engine._ended and time.monotonic() < ends:
            time.sleep(0.001)
        piece()

    engine._score_piece = last_piece
    ticket = engine.score_options(prompt, _long_options(engine, prompt, 8), BASE)
    closer = threading.Thread(target=engine.close)
    closer.start()
    closer.join(300)
    with pytest.raises(Exception, match="retry elsewhere"):
        ticket.result(1)
