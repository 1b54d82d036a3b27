"""The engine over vLLM servers when they fail: what a real server cannot be made to show (test_vllm.py has one)."""

import threading

import pytest
from plaudit.demo import vllm
from plaudit.engine.observing import observe
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.vllm import fleet as fleet_module
from plaudit.engine.vllm.engine import VllmEngine
from plaudit.errors import Cancelled, EngineUnavailable, InternalError, Misconfigured, ProofFailed
from plaudit.metrics import Metrics
from plaudit.settings import EngineSettings, load_settings
from plaudit.testing.models import tiny_model
from plaudit.testing.waiting import wait_until
from plaudit.types import FinishReason, Sampling
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from .vllm_fake import VOCABULARY, fake_server

BASE = ReleaseKey("toy/default", 0, "base")
ONE, TWO = ReleaseKey("toy/default", 1, "one"), ReleaseKey("toy/default", 2, "two")
PROMPT = EncodedPrompt((3, 5, 7))
PROBE = [(1, 2, 3, 4)]
SECONDS = 300  # ends what hangs, and nothing else


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("vllm") / "tiny")


@pytest.fixture
def adapter(tmp_path):
    import torch
    from plaudit.engine import adapter_files

    def make(seed):
        generator = torch.Generator().manual_seed(seed)
        state = {"x.lora_A.weight": torch.randn(8, 4, generator=generator)}
        adapter_files.write(tmp_path / f"adapter-{seed}", {"r": 8, "lora_alpha": 16}, state)
        return tmp_path / f"adapter-{seed}"

    return make


@pytest.fixture
def fake():
    with fake_server() as server:
        yield server


@pytest.fixture
def other():
    with fake_server() as server:
        yield server


@pytest.fixture
def engine_of(tmp_path, model, monkeypatch):
    monkeypatch.setattr(fleet_module, "WATCH_SECONDS", 0.05)
    made = []

    def make(*fakes, patience=SECONDS, **more):
        addresses = str([each.address for each in fakes]).replace("'", '"')
        settings = load_settings(
            overrides=[
                f"data_dir={tmp_path / 'data'}",
                f"model.path={model}",
                "engine.kind=vllm",
                f"engine.vllm.servers={addresses}",
                "engine.vllm.dtype=float32",
                "engine.vllm.check_base=false",
                f"engine.vllm.patience_seconds={patience}",
                *(f"{name}={value}" for name, value in more.items()),
            ],
            environ={},
        )
        made.append(VllmEngine.of(settings))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def job(release, tokens=6, **more):
    return Job(prompt=PROMPT, release=release, sampling=Sampling(**{"max_tokens": tokens, **more}), seed=7)


def own(fake, engine, release, result, temperature=1.0):
    """Whether the log-probs of a completion are those of the release that it names."""
    name = engine._name(release) or "base-model"
    last, right = PROMPT.tokens[-1], True
    for token, raw, sampled in zip(result.tokens, result.logprobs_raw, result.logprobs_sampled, strict=True):
        right = right and abs(fake.logprobs(name, last)[token] - raw) < 1e-6
        right = right and abs(fake.logprobs(name, last, temperature)[token] - sampled) < 1e-6
        last = token
    return right


def test_a_completion_has_both_log_probs_and_only_new_servers_need_proofs(fake, engine_of, adapter):
    engine = engine_of(fake)
    engine.stage(ONE, adapter(1), temperature=0.7)
    engine.stage(BASE, None)
    for release in (ONE, BASE):
        result = engine.submit([job(release, temperature=0.7)])[0].result(SECONDS)
        assert result.finish_reason is FinishReason.LENGTH
        assert own(fake, engine, release, result, 0.7)
    again = engine.submit([job(ONE, temperature=0.7)])[0].result(SECONDS)
    assert again.tokens == engine.submit([job(ONE, temperature=0.7)])[0].result(SECONDS).tokens


def test_a_server_that_breaks_a_stream_off_is_gone_on_with_elsewhere(fake, other, engine_of, adapter):
    engine = engine_of(fake, other)
    engine.stage(ONE, adapter(1))
    whole = engine.submit([job(ONE, temperature=0.0)])[0].result(SECONDS)
    fake.break_after = other.break_after = 3
    ticket = engine.submit([job(ONE, temperature=0.0)])[0]
    assert "".join(ticket.deltas(SECONDS)) == whole.text
    assert ticket.result(SECONDS).tokens == whole.tokens
    assert [len(each["prompt"]) for each in fake.requests + other.requests if each.get("stream")].count(3 + 3) == 1


def test_a_request_that_ends_every_server_is_given_up_after_three(fake, other, engine_of):
    engine = engine_of(fake, other)
    engine.stage(BASE, None)
    fake.always_breaks = other.always_breaks = True
    with pytest.raises(EngineUnavailable):
        engine.submit([job(BASE)])[0].result(SECONDS)
    assert sum(bool(each.get("stream")) for each in fake.requests + other.requests) == 3


def test_a_restarted_server_loads_and_proves_again_before_it_answers(fake, engine_of, adapter):
    engine = engine_of(fake)
    engine.stage(ONE, adapter(1))
    engine.score(PROMPT, PROBE, ONE)
    fake.restart()
    result = engine.submit([job(ONE)])[0].result(SECONDS)
    assert own(fake, engine, ONE, result)
    assert len(fake.loads) == 2
    asked = [each for each in fake.requests if "logprob_token_ids" in each and each["model"] == fake.loads[0]]
    assert len(asked) == 2


@pytest.mark.parametrize("says_asked_name", [False, True])
def test_a_name_that_the_base_answers_is_never_served(fake, engine_of, adapter, says_asked_name):
    engine = engine_of(fake, patience=0.3)
    engine.stage(ONE, adapter(1))
    engine.score(PROMPT, PROBE, ONE)
    # A restarted server behind something that answers unknown names with the base, and takes every load.
    fake.unknown_is_base, fake.says_asked_name = True, says_asked_name
    fake.adapters = type("Forgetful", (dict,), {"__setitem__": lambda *_: None})()
    wait_until(lambda: not engine._fleet._places[0].here - {""})
    with pytest.raises((ProofFailed, EngineUnavailable)):
        engine.submit([job(ONE)])[0].result(SECONDS)


def test_servers_must_agree_about_a_release(fake, other, engine_of, adapter):
    engine = engine_of(fake, other)
    engine.stage(ONE, adapter(1))
    assert len(fake.loads) == len(other.loads) == 1
    other.adapters[other.loads[0]] = str(adapter(2))
    with pytest.raises(ProofFailed, match=other.address):
        engine.score(PROMPT, PROBE, ONE)


def test_a_server_that_comes_back_gets_what_it_missed(fake, other, engine_of, adapter):
    other.status = 503
    engine = engine_of(fake, other)
    assert engine.servers() == (1, 2)
    engine.stage(ONE, adapter(1))
    engine.score(PROMPT, PROBE, ONE)
    assert (len(fake.loads), other.loads) == (1, [])
    other.status = 200
    wait_until(lambda: engine.servers() == (2, 2))
    assert other.loads == fake.loads
    fake.status = 503
    assert own(other, engine, ONE, engine.submit([job(ONE)])[0].result(SECONDS))


def test_metrics_tell_of_each_server_whether_it_is_up_and_what_it_was_proved_with(fake, other, engine_of, adapter):
    other.status = 503
    engine, metrics = engine_of(fake, other), Metrics(CollectorRegistry())
    seen = observe(engine, metrics)

    def told(name, server):
        return metrics.registry.get_sample_value(f"plaudit_engine_server_{name}", {"server": server.address})

    assert [told("up", each) for each in (fake, other)] == [1, 0]
    places = {"max_loras": 16}
    assert seen.servers() == {fake.address: {"up": True, **places}, other.address: {"up": False, "max_loras": None}}
    engine.stage(ONE, adapter(1))
    # Loaded is not proved.
    assert told("adapters", fake) == 0
    engine.score(PROMPT, PROBE, ONE)
    other.status = 200
    wait_until(lambda: [told("adapters", each) for each in (fake, other)] == [1, 1])
    fake.status = 503
    wait_until(lambda: (told("up", fake), told("adapters", fake)) == (0, 0))
    assert told("up", other) == 1
    assert seen.servers() == {fake.address: {"up": False, **places}, other.address: {"up": True, **places}}


def test_without_any_server_requests_are_refused_with_the_addresses_and_come_back_with_it(fake, engine_of):
    engine = engine_of(fake, patience=0.3)
    engine.stage(BASE, None)
    fake.status = 503
    with pytest.raises(EngineUnavailable, match=fake.address):
        engine.submit([job(BASE)])[0].result(SECONDS)
    fake.status = 200
    wait_until(lambda: engine.servers() == (1, 1))
    engine.submit([job(BASE)])[0].result(SECONDS)


def test_an_adapter_stays_while_a_request_that_named_it_is_open(fake, engine_of, adapter):
    engine = engine_of(fake, **{"engine.adapter_slots": 2})
    fake.hold.clear()
    with engine.hold(ONE, adapter(1)):
        ticket = engine.submit([job(ONE)])[0]
    engine.unstage(ONE)
    with engine.hold(TWO, adapter(2)), engine.hold(ReleaseKey("toy/default", 3, "x"), None):
        pass
    assert fake.unloads == []
    fake.hold.set()
    ticket.result(SECONDS)
    wait_until(lambda: engine.load() == (0, 0))
    engine.unstage(TWO)
    wait_until(lambda: sorted(fake.unloads) == sorted(fake.loads))


def test_an_adapter_that_is_let_go_while_a_server_loads_it_again_does_not_stay_there(fake, engine_of, adapter):
    engine = engine_of(fake)
    engine.stage(ONE, adapter(1))
    engine.score(PROMPT, PROBE, ONE)
    fake.load.clear()
    fake.restart()
    wait_until(lambda: len(fake.loads) == 2)
    ending = threading.Thread(target=engine.unstage, args=(ONE,))
    ending.start()
    wait_until(lambda: not engine._fleet._held)
    fake.load.set()
    ending.join(SECONDS)
    assert (fake.unloads, fake.adapters) == (fake.loads[:1], {})
    assert engine.servers() == (1, 1)


def test_a_cancelled_request_ends_at_the_server_and_keeps_what_was_read(fake, engine_of, adapter):
    engine = engine_of(fake)
    engine.stage(ONE, adapter(1))
    fake.hold.clear()
    ticket = engine.submit([job(ONE, tokens=30, temperature=0.7)])[0]
    wait_until(lambda: len(ticket.tokens) == 2)
    ticket.cancel()
    with pytest.raises(Cancelled):
        ticket.result(SECONDS)
    fake.hold.set()
    wait_until(lambda: fake.open == 0)
    assert own(fake, engine, ONE, ticket.so_far(), 0.7)


def test_options_have_the_log_probs_of_their_tokens_and_their_end(fake, engine_of, model):
    engine = engine_of(fake)
    engine.stage(BASE, None, temperature=0.5)
    engine.end_of_turn = 9
    options = [(1, 2), (1, 3, 4), (5,)]
    found = engine.score_options(PROMPT, options, BASE).result(SECONDS)
    for option, logprobs in zip(options, found, strict=True):
        tokens = (*option, 9)
        lasts = (PROMPT.tokens[-1], *tokens)
        wanted = [fake.logprobs("base-model", last, 0.5)[t] for last, t in zip(lasts, tokens, strict=False)]
        assert logprobs == pytest.approx(wanted)
    # 1 + 2 + 2 + 1 beginnings, the empty one and (1,) shared.
    assert sum(len(each["prompt"]) for each in fake.requests if each.get("logprob_token_ids") != [0, 1]) == 6


def test_more_tokens_than_a_server_takes_at_once_are_asked_for_in_pieces():
    from plaudit.engine.vllm import wire

    wanted = {(): set(range(300)), (1,): {5}}
    asked = list(wire.batches(wanted))
    assert all(len(ids) <= wire.MOST_IDS and len(prefixes) <= wire.MOST_PROMPTS for prefixes, ids in asked)
    assert {(prefix, token) for prefixes, ids in asked for prefix in prefixes for token in ids} >= {
        (prefix, token) for prefix, ids in wanted.items() for token in ids
    }


def test_a_server_whose_log_probs_ignore_the_temperature_is_refused(fake, engine_of):
    fake.raw = True
    with pytest.raises(Misconfigured, match="processed_logprobs"):
        engine_of(fake)


def test_a_server_whose_last_place_adapters_would_fill_is_refused(fake, engine_of):
    fake.max_loras = EngineSettings().adapter_slots
    with pytest.raises(Misconfigured, match=r"has 6 places for adapters and engine\.adapter_slots is 6.*--max-loras 7"):
        engine_of(fake)
    engine_of(fake, **{"engine.adapter_slots": 5})


def test_a_server_that_was_started_again_with_fewer_places_takes_no_requests(fake, other, engine_of, adapter):
    engine = engine_of(fake, other)
    engine.stage(ONE, adapter(1))
    fake.restart(max_loras=4)
    wait_until(lambda: engine.servers() == (1, 2))
    assert fake.adapters == {}
    assert own(other, engine, ONE, engine.submit([job(ONE)])[0].result(SECONDS))
    fake.restart()
    wait_until(lambda: engine.servers() == (2, 2))


def test_a_server_that_does_not_say_its_places_serves_and_that_is_said_once(fake, engine_of, adapter):
    fake.max_loras = None
    with capture_logs() as logs:
        engine = engine_of(fake)
        seen = observe(engine, Metrics(CollectorRegistry()))
        engine.stage(ONE, adapter(1))
        engine.stage(TWO, adapter(2))
    assert sum("how many places" in each["event"] for each in logs) == 1
    assert seen.servers() == {fake.address: {"up": True, "max_loras": None}}


def test_a_server_with_another_base_is_refused(fake, engine_of):
    assert VOCABULARY < 64
    with pytest.raises(Misconfigured, match="another base"):
        engine_of(fake, **{"engine.vllm.check_base": "true"})


def test_what_is_no_answer_of_vllm_is_our_error(fake, engine_of):
    engine = engine_of(fake)
    engine.stage(BASE, None)
    fake.garbage = True
    with pytest.raises(InternalError):
        engine.submit([job(BASE)])[0].result(SECONDS)


def test_a_server_that_we_start_keeps_its_last_place_empty():
    """On processors vLLM 0.32 takes what lies there for the base, beside adapters (docs/vllm.md)."""
    flags = vllm.command("vllm", "model", 8000, context_length=512)
    assert int(flags[flags.index("--max-loras") + 1]) > EngineSettings().adapter_slots
