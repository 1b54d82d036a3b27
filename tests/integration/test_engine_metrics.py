"""What the engine did can be read off the metrics."""

from plaudit.engine.observing import observe
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.metrics import Metrics
from plaudit.types import Sampling
from prometheus_client import CollectorRegistry

BASE = ReleaseKey("toy/default", 0, "base")
SYSTEM = tuple(range(20, 40))


def test_rows_waits_prefixes_and_memory_are_counted(tiny_engine):
    registry = CollectorRegistry()
    observe(tiny_engine, Metrics(registry))
    tiny_engine.stage(BASE, None)

    def value(name, **labels):
        return registry.get_sample_value(f"plaudit_engine_{name}", labels)

    def answer(count):
        jobs = [
            Job(
                prompt=EncodedPrompt((*SYSTEM, 50 + n), len(SYSTEM)),
                release=BASE,
                sampling=Sampling(temperature=0.0, max_tokens=6),
                seed=0,
                width=4,
            )
            for n in range(count)
        ]
        return [ticket.result(300).tokens for ticket in tiny_engine.submit(jobs)]

    tokens = sum(len(each) for each in answer(3))
    assert value("first_token_seconds_count") == value("queue_seconds_count") == 3
    assert value("first_token_seconds_sum") >= value("queue_seconds_sum") > 0
    assert value("rows_total", state="used") == tokens
    steps, computed = tiny_engine.steps, tokens + value("rows_total", state="idle")
    assert computed <= 4 * steps
    assert computed == 4 * steps or tiny_engine._runner.takes_rows
    # The first step of a batch that was empty comes after no other.
    assert value("token_seconds_count") == steps - 1
    assert (value("prefixes_total", found="computed"), value("prefixes_total", found="cached")) == (1, 2)
    assert 0 < value("kv_bytes") <= value("kv_limit_bytes")
    assert (value("slots"), value("slots_used")) == (6, 0)
    before, idle = (value("token_seconds_count"), tiny_engine.steps), value("rows_total", state="idle")
    answer(1)
    assert (value("rows_total", state="idle") == idle) == tiny_engine._runner.takes_rows, "it is computed alone"
    assert value("token_seconds_count") - before[0] == tiny_engine.steps - before[1] - 1, "idle time is no delay"
