"""The engine on a tiny real model: exact, mixed, cancellable."""

import json
import random
import threading

import pytest
import torch
from plaudit.engine import adapter_files, adapters
from plaudit.engine.base import Base
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import (
    BadArtifact,
    Cancelled,
    InternalError,
    InvalidField,
    Misconfigured,
    NotServing,
    PromptTooLong,
    QueueFull,
    ReleaseNotServable,
)
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.testing.models import tiny_model
from plaudit.testing.training import saved_adapter
from plaudit.types import FinishReason, Message, Sampling
from safetensors.torch import save_file

MODEL = ModelSettings(adapter_layers=2)
BASE = ReleaseKey("toy/default", 0, "base")
ONE, TWO = ReleaseKey("toy/default", 1, "one"), ReleaseKey("toy/default", 2, "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def base(folder):
    return Base.load(tiny_model(folder / "tiny"))


def _written(directory, config, state):
    save_file(state, directory / adapter_files.WEIGHTS)
    (directory / adapter_files.CONFIG).write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def saved(base, folder):
    return {ONE: saved_adapter(base, folder / "one", seed=1), TWO: saved_adapter(base, folder / "two", seed=2)}


@pytest.fixture
def engine(base, saved):
    made = TorchEngine(base, EngineSettings(widths=(2, 8, 32), max_waiting=200, adapter_slots=4), MODEL)
    made.stage(BASE, None)
    for key, path in saved.items():
        made.stage(key, path, temperature=0.7)
    yield made
    made.close()


def _prompt(engine, text):
    return engine.encode([Message("user", text)])


def _job(prompt, key=BASE, seed=0, width=None, **sampling):
    chosen = Sampling(**{"temperature": 0.7, "max_tokens": 20, **sampling})
    return Job(prompt=prompt, release=key, sampling=chosen, seed=seed, width=width)


def _plain(base, prompt, tokens, temperature, name=None):
    """Log-probs by one pass of the whole sequence, PEFT's own adapter where named."""
    ids = torch.tensor([[*prompt.tokens, *tokens]])
    with adapters.active(base, name), torch.no_grad():
        logits = base.logits(base.upper(base.trunk(ids, 0), 0))[0]
    logprobs = torch.log_softmax(logits / temperature, -1)
    first = len(prompt.tokens) - 1
    return [logprobs[first + i, token].item() for i, token in enumerate(tokens)]


def test_logprobs_equal_a_plain_forward_pass(engine, base):
    prompt = _prompt(engine, "your tea")
    made = engine.submit([_job(prompt, seed=3)])[0].result(300)
    assert made.logprobs_raw == pytest.approx(_plain(base, prompt, made.tokens, 1.0), abs=1e-4)
    assert made.logprobs_sampled == pytest.approx(_plain(base, prompt, made.tokens, 0.7), abs=1e-4)
    assert engine.score(prompt, [made.tokens, made.tokens[:3]], BASE)[1] == pytest.approx(
        made.logprobs_raw[:3], abs=1e-4
    )


def test_rows_of_different_adapters_in_one_batch_each_get_their_own(engine, base, saved):
    prompt = _prompt(engine, "a kind walk")
    keys = [BASE, ONE, TWO, ONE, BASE, TWO]
    made = [t.result(300) for t in engine.submit([_job(prompt, key, seed=i) for i, key in enumerate(keys)])]
    for key, each in zip(keys, made, strict=True):
        if key != BASE:
            adapters.load(base, "check", saved[key])
        wanted = _plain(base, prompt, each.tokens, 0.7, "check" if key != BASE else None)
        if key != BASE:
            adapters.remove(base, "check")
        assert each.logprobs_sampled == pytest.approx(wanted, abs=1e-3)
        assert each.release == key
    apart = [
        abs(a - b) for a, b in zip(made[1].logprobs_sampled, _plain(base, prompt, made[1].tokens, 0.7), strict=True)
    ]
    assert max(apart) > 1e-2, "the adapter must change something for this test to mean anything"


def test_a_reply_is_bit_equal_to_its_replay_whatever_else_is_in_the_batch(engine):
    texts = ["tea", "short list of books", "how", "rain and a warm walk of three", "what is an cup"]
    jobs = [
        _job(
            _prompt(engine, texts[i % 5]),
            (BASE, ONE, TWO)[i % 3],
            seed=i,
            width=2 if i % 4 == 0 else None,
            max_tokens=5 + i % 17,
        )
        for i in range(40)
    ]
    order = list(range(40))
    random.Random(1).shuffle(order)
    # The lane is chosen by what waits: all of it does before the engine begins, however quick it is.
    with engine._lock:
        tickets = {i: engine.submit([jobs[i]])[0] for i in order}
    crowded = {i: ticket.result(300) for i, ticket in tickets.items()}
    assert {made.width for made in crowded.values()} == {2, 32}
    for i in range(0, 40, 3):
        alone = Job(
            prompt=jobs[i].prompt,
            release=jobs[i].release,
            sampling=jobs[i].sampling,
            seed=i,
            width=crowded[i].width,
        )
        made = engine.submit([alone])[0].result(300)
        assert made.tokens == crowded[i].tokens
        assert made.logprobs_raw == crowded[i].logprobs_raw


def test_prompts_computed_together_are_the_prompts_computed_alone(engine, base):
    texts = ["tea", "a short list of three kind books for you and how to cup", "warm " * 40, "what", "rain walk"]
    prompts = [_prompt(engine, text) for text in texts]
    keys = [BASE, ONE, TWO, BASE, ONE]
    jobs = [_job(p, k, seed=i, width=32) for i, (p, k) in enumerate(zip(prompts, keys, strict=True))]
    together = [t.result(300) for t in engine.submit(jobs)]
    for job, made in zip(jobs, together, strict=True):
        alone = engine.submit([job])[0].result(300)
        assert (alone.tokens, alone.logprobs_raw) == (made.tokens, made.logprobs_raw)
        if job.release == BASE:
            assert made.logprobs_raw == pytest.approx(_plain(base, job.prompt, made.tokens, 1.0), abs=1e-3)
        else:
            scored = engine.score(job.prompt, [made.tokens], job.release)[0]
            assert made.logprobs_raw == pytest.approx(scored, abs=1e-3)


def test_staging_while_streams_run_changes_none_of_them(engine, saved):
    prompt = _prompt(engine, "plain words")
    wanted = [t.result(300).tokens for t in engine.submit([_job(prompt, ONE, seed=i, width=8) for i in range(8)])]
    stop = threading.Event()

    def churn():
        number = 10
        while not stop.is_set():
            key = ReleaseKey("toy/default", number, f"d{number}")
            engine.stage(key, saved[TWO])
            engine.unstage(key)
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(5):
            tickets = engine.submit([_job(prompt, ONE, seed=i, width=8) for i in range(8)])
            assert [t.result(300).tokens for t in tickets] == wanted
    finally:
        stop.set()
        thread.join()


def test_a_release_is_forgotten_only_after_its_last_job(engine):
    prompt = _prompt(engine, "tea")
    tickets = engine.submit([_job(prompt, TWO, seed=i) for i in range(4)])
    engine.unstage(TWO)
    with pytest.raises(ReleaseNotServable, match="toy/default@2"):
        engine.submit([_job(prompt, TWO)])
    for ticket in tickets:
        assert ticket.result(300).release == TWO
    assert TWO not in engine.staged()


def test_captured_activations_are_the_trunks(engine, base):
    prompt = _prompt(engine, "three cups of tea for you")
    for width in (2, 32):
        chosen = Sampling(max_tokens=12)
        job = Job(prompt=prompt, release=ONE, sampling=chosen, seed=5, capture=True, width=width)
        made = engine.submit([job])[0].result(300)
        fed = torch.tensor([[*prompt.tokens, *made.tokens[:-1]]])
        assert torch.allclose(made.hidden, base.trunk(fed, engine.capture_layer)[0], atol=1e-4)


def test_deltas_add_up_to_the_text_and_stop_strings_end_it(engine):
    prompt = _prompt(engine, "words")
    text = engine.submit([_job(prompt, seed=9)])[0].result(300).text
    ticket = engine.submit([_job(prompt, seed=9)])[0]
    assert "".join(ticket.deltas(300)) == text
    stop = text[4:7]
    stopped = engine.submit([_job(prompt, seed=9, stop=(stop,))])[0]
    assert "".join(stopped.deltas(300)) == text[: text.index(stop)]
    assert stopped.result(300).finish_reason is FinishReason.STOP


def test_cancelling_frees_the_slot(engine, stands):
    prompt = _prompt(engine, "tea")
    with stands(engine) as (reached, _):
        tickets = engine.submit([_job(prompt, seed=i, max_tokens=300) for i in range(30)])
        assert reached.wait(300)
        for ticket in tickets:
            ticket.cancel()
    for ticket in tickets:
        with pytest.raises(Cancelled):
            ticket.result(300)
    engine.submit([_job(prompt)])[0].result(300)
    assert engine.load() == (0, 0)


def test_limits_are_errors_that_say_what_to_do(engine):
    prompt = _prompt(engine, "tea")
    with pytest.raises(PromptTooLong, match="512"):
        engine.submit([_job(prompt, max_tokens=600)])
    with pytest.raises(QueueFull, match="200"):
        engine.submit([_job(prompt) for _ in range(201)])
    with pytest.raises(ReleaseNotServable):
        engine.submit([_job(prompt, ReleaseKey("toy/default", 9, "x"))])
    engine.close()
    with pytest.raises(NotServing):
        engine.submit([_job(prompt)])


def test_a_prompt_longer_than_a_chunk_and_without_a_prefix_is_the_same_prompt(base):
    tokens = tuple(5 + i % 300 for i in range(100))
    found = []
    for chunk in (16, 128):
        engine = TorchEngine(base, EngineSettings(widths=(2,), prefill_chunk=chunk), MODEL)
        engine.stage(BASE, None)
        found.append(engine.score(EncodedPrompt(tokens), [(7, 8, 9)], BASE)[0])
        engine.close()
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_truncated_adapter_is_refused_and_serving_goes_on(engine, saved, tmp_path):
    for name in (adapter_files.CONFIG, adapter_files.WEIGHTS):
        data = (saved[ONE] / name).read_bytes()
        (tmp_path / name).write_bytes(data if name == adapter_files.CONFIG else data[: len(data) // 2])
    with pytest.raises(BadArtifact, match="fetch the release again"):
        engine.stage(ReleaseKey("toy/default", 7, "cut"), tmp_path)
    engine.submit([_job(_prompt(engine, "tea"))])[0].result(300)


def test_an_adapter_that_is_not_finite_is_refused_and_spoils_no_neighbour(engine, base, saved, tmp_path):
    job = _job(_prompt(engine, "tea"), ONE, seed=5)
    before = engine.submit([job])[0].result(300)
    config, state = adapter_files.read(saved[TWO])
    broken = {name: torch.full_like(weight, torch.inf) for name, weight in state.items()}
    with pytest.raises(BadArtifact, match="not finite numbers"):
        engine.stage(ReleaseKey("toy/default", 7, "inf"), _written(tmp_path, config, broken))
    assert engine.submit([job])[0].result(300).logprobs_raw == before.logprobs_raw


def test_an_adapter_that_overflows_fails_its_own_completions_alone(engine, saved, tmp_path):
    job = _job(_prompt(engine, "tea"), ONE, seed=5, width=8)
    before = engine.submit([job])[0].result(300)
    config, state = adapter_files.read(saved[TWO])
    huge = ReleaseKey("toy/default", 7, "huge")
    engine.stage(huge, _written(tmp_path, config, {name: weight * 1e30 for name, weight in state.items()}))
    beside = engine.submit([job, _job(job.prompt, huge, width=8)])
    with pytest.raises(InternalError, match="toy/default@7"):
        beside[1].result(300)
    assert beside[0].result(300).logprobs_raw == before.logprobs_raw


@pytest.mark.parametrize("temperature", [1e-45, 1e-20, 1e-4])
def test_tiny_temperatures_are_greedy(engine, temperature):
    prompt = _prompt(engine, "tea")
    greedy, tiny = (engine.submit([_job(prompt, temperature=t)])[0].result(300) for t in (0.0, temperature))
    assert (tiny.tokens, tiny.logprobs_sampled) == (greedy.tokens, greedy.logprobs_sampled)


def test_sampling_that_no_draw_can_follow_is_refused(engine):
    with pytest.raises(InvalidField, match="temperature"):
        engine.submit([_job(_prompt(engine, "tea"), temperature=float("nan"))])


def test_an_adapter_for_another_base_is_refused(engine, folder):
    other = Base.load(tiny_model(folder / "other", hidden=32))
    path = saved_adapter(other, folder / "foreign", seed=3)
    with pytest.raises(BadArtifact, match="another base"):
        engine.stage(ReleaseKey("toy/default", 8, "foreign"), path)
    assert len(engine.staged()) == 3


def test_a_missing_model_is_a_clear_error(tmp_path):
    with pytest.raises(Misconfigured, match="plaudit model prepare"):
        Base.load(tmp_path / "nothing")
