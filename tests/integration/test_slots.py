"""Adapter slots are a cache: staged on demand, the least recently used make room, those in use stay."""

import threading

import pytest
from plaudit.engine import adapter_files
from plaudit.engine.protocol import Job, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import BadArtifact, Cancelled, ReleaseNotServable, SlotsInUse
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.testing.training import saved_adapter
from plaudit.types import Message, Sampling

KEYS = [ReleaseKey(f"toy/{number}", 1, f"digest {number}") for number in range(6)]


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    return {
        key: saved_adapter(tiny_base, tmp_path_factory.mktemp("adapter"), seed=number)
        for number, key in enumerate(KEYS)
    }


@pytest.fixture
def engine(tiny_base):
    made = TorchEngine(tiny_base, EngineSettings(widths=(8,), adapter_slots=2), ModelSettings(adapter_layers=2))
    yield made
    made.close()


def _job(engine, key, max_tokens=8):
    prompt = engine.encode([Message("user", "a warm cup")])
    return Job(prompt=prompt, release=key, sampling=Sampling(max_tokens=max_tokens), seed=7, width=8)


def _ask(engine, key, folder):
    with engine.hold(key, folder) as loaded:
        (ticket,) = engine.submit([_job(engine, key)])
    return loaded, ticket.result(300).tokens


def test_the_least_recently_used_adapter_makes_room_and_comes_back_as_it_was(engine, folders):
    a, b, c = KEYS[:3]
    answers = {key: _ask(engine, key, folders[key]) for key in (a, b, a)}
    assert _ask(engine, a, folders[a]) == (False, answers[a][1])
    assert _ask(engine, c, folders[c])[0]
    assert set(engine.staged()) == {a, c}
    with pytest.raises(ReleaseNotServable, match=str(b)):
        engine.submit([_job(engine, b)])
    assert _ask(engine, b, folders[b]) == (True, answers[b][1])


def test_slots_in_use_stay_and_say_so(engine, folders, stands):
    a, b, c = KEYS[:3]
    engine.stage(a, folders[a])
    with stands(engine, after=3):
        with engine.hold(b, folders[b]):
            (running,) = engine.submit([_job(engine, b, max_tokens=400)])
            with pytest.raises(SlotsInUse, match="2 adapter slots") as refused:
                engine.stage(c, folders[c])
            assert refused.value.retryable
        # The block has ended and the job has not.
        with pytest.raises(SlotsInUse), engine.hold(c, folders[c]):
            pass
        running.cancel()
        with pytest.raises(Cancelled):
            running.result(300)
    assert _ask(engine, c, folders[c])[0]
    assert set(engine.staged()) == {a, c}
    engine.unstage(a)
    assert set(engine.staged()) == {c}


def test_a_damaged_adapter_costs_no_slot(engine, folders, tmp_path):
    for _ in range(3):
        with pytest.raises(BadArtifact):
            engine.stage(KEYS[5], tmp_path)
    for key in KEYS[:2]:
        engine.stage(key, folders[key])
    assert set(engine.staged()) == set(KEYS[:2])


def test_serving_goes_on_while_an_adapter_is_read(engine, folders):
    a, b = KEYS[:2]
    engine.stage(a, folders[a])
    reading, go_on, found = threading.Event(), threading.Event(), []

    def load(slot):
        reading.set()
        assert go_on.wait(300)
        engine._bank.write(slot, *adapter_files.read(folders[b]))

    first = threading.Thread(target=lambda: found.append(engine._slots.hold(b, load, 1.0)))
    first.start()
    assert reading.wait(300)
    second = threading.Thread(target=lambda: found.append(engine._slots.hold(b, load, 1.0)))
    second.start()
    assert len(engine.submit([_job(engine, a)])[0].result(300).tokens) == 8
    assert set(engine.staged()) == {a}
    assert found == []
    go_on.set()
    first.join(300)
    second.join(300)
    # Who came second waited for the first one's weights.
    assert sorted(found) == [False, True]


def test_more_releases_than_slots_all_answer_as_alone(engine, folders):
    alone = {key: _ask(engine, key, folders[key])[1] for key in KEYS}
    assert len(set(alone.values())) == len(KEYS)
    wrong, busy = [], []

    def ask(worker):
        for turn in range(12):
            key = KEYS[(worker * 5 + turn * 7) % len(KEYS)]
            try:
                _, tokens = _ask(engine, key, folders[key])
            except SlotsInUse:
                busy.append(key)
                continue
            if tokens != alone[key]:
                wrong.append(key)

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert wrong == []
    assert len(busy) < 48
    assert len(engine.staged()) <= 2
