"""The producer for Kafka, over a client that does as the test says: what of a failure reaches whom."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException
from plaudit.errors import LogUnavailable, MessageTooLarge
from plaudit.eventlog import Topic, kafka_producer
from plaudit.eventlog.kafka_producer import SharedProducer, _Sending
from plaudit.settings import KafkaSettings

LATER = object()


class Client:
    """Stands for librdkafka's producer; `answers` gives what becomes of a value: None, an error, or no answer yet."""

    made: list[Client]
    answers: dict[bytes, object]
    refuses: dict[bytes, KafkaError]
    away: bool

    def __init__(self, options):
        self.held, self.sent, self.asked = [], [], []
        self.ended = False
        type(self).made.append(self)

    def list_topics(self, topic, timeout):
        self.asked.append(timeout)
        if self.away:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def produce(self, topic, key, value, on_delivery):
        if value in self.refuses:
            raise KafkaException(self.refuses[value])
        self.held.append((value, on_delivery))

    def poll(self, timeout):
        found, self.held = self.held, []
        for value, delivered in found:
            answer = self.answers.get(value)
            if answer is LATER:
                self.held.append((value, delivered))
            else:
                self.sent.append(value)
                delivered(answer, SimpleNamespace(partition=lambda: 0, offset=lambda: 7))
        if self.held:
            time.sleep(min(timeout, 0.01))

    def purge(self):
        self.ended = True

    def flush(self, timeout):
        for _, delivered in self.held:
            delivered(KafkaError(KafkaError._PURGE_QUEUE), None)
        self.held = []


@pytest.fixture
def client(monkeypatch):
    made = type("Made", (Client,), {"made": [], "answers": {}, "refuses": {}, "away": False})
    monkeypatch.setattr(kafka_producer, "Producer", made)
    monkeypatch.setattr(kafka_producer, "RECONNECT_SECONDS", 0.0)
    return made


@pytest.fixture
def producer(client):
    producer = SharedProducer(KafkaSettings(bootstrap="127.0.0.1:9", timeout_seconds=30))
    yield producer
    producer.close()


def sends(producer, *values, seconds=60.0):
    return producer.send(Topic.FEEDBACK, [("k", value) for value in values], seconds)


def test_a_record_that_the_client_itself_finds_too_large_is_its_callers_trouble_alone(client, producer):
    client.refuses[b"large"] = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
    group = [_Sending(Topic.FEEDBACK, [(b"k", value)], 60.0) for value in (b"1", b"large", b"2")]
    producer._write(group)
    assert [type(batch.error) for batch in group] == [type(None), MessageTooLarge, type(None)]
    assert (len(client.made), client.made[0].sent) == (1, [b"1", b"2"])


@pytest.mark.parametrize("code", [KafkaError.UNKNOWN, KafkaError.INVALID_RECORD, KafkaError.POLICY_VIOLATION])
def test_an_error_that_nobody_knows_is_its_callers_who_has_an_outbox(client, producer, code):
    client.answers[b"bad"] = KafkaError(code)
    group = [_Sending(Topic.FEEDBACK, [(b"k", value)], 60.0) for value in (b"1", b"bad", b"2")]
    producer._write(group)
    assert [type(batch.error) for batch in group] == [type(None), LogUnavailable, type(None)]
    assert client.made[0].ended, "and what it may still hold goes nowhere"
    assert sends(producer, b"3") == [(0, 7)], "by a new client"


def test_a_client_that_is_fatally_broken_is_replaced(client, producer):
    client.refuses[b"1"] = KafkaError(KafkaError._FATAL)
    with pytest.raises(LogUnavailable):
        sends(producer, b"1")
    client.refuses.clear()
    assert sends(producer, b"1") == [(0, 7)]
    assert [each.ended for each in client.made] == [True, False]


def test_who_has_an_outbox_does_not_wait_longer_for_a_new_connection_than_for_a_record(client, producer):
    client.answers[b"1"] = KafkaError(KafkaError._MSG_TIMED_OUT)
    with pytest.raises(LogUnavailable):
        sends(producer, b"1")
    client.away = True
    with pytest.raises(LogUnavailable, match="away"):
        sends(producer, b"2", seconds=0.5)
    assert client.made[-1].asked == [0.5]


def test_a_close_ends_the_send_under_way_and_nobody_hangs(client):
    producer = SharedProducer(KafkaSettings(bootstrap="127.0.0.1:9", timeout_seconds=0.3))
    client.answers[b"1"] = LATER
    said = []

    def send():
        with pytest.raises(LogUnavailable) as refused:
            sends(producer, b"1")
        said.append(refused.value)

    callers = [threading.Thread(target=send, daemon=True) for _ in range(3)]
    for caller in callers:
        caller.start()
    deadline = time.monotonic() + 60
    while not client.made[0].held and time.monotonic() < deadline:
        time.sleep(0.01)
    closers = [threading.Thread(target=producer.close, daemon=True) for _ in range(2)]
    for each in closers:
        each.start()
    for each in (*closers, *callers):
        each.join(30)  # the callers would have waited for a minute
        assert not each.is_alive()
    assert len(said) == 3
    assert client.made[0].sent == []


@pytest.mark.parametrize("raised", [SystemExit(143), RuntimeError("a callback broke")])
def test_what_breaks_the_call_of_whoever_sends_for_others_looks_like_success_to_nobody(client, producer, raised):
    def poll(self, timeout):
        raise raised

    client.poll = poll
    group = [_Sending(Topic.FEEDBACK, [(b"k", value)], 60.0) for value in (b"1", b"2")]
    gathering = producer._gathering
    gathering._wanted, gathering._gather_seconds = 2, 300.0  # the first waits for the second
    said = []

    def send(batch):
        try:
            said.append(gathering.through(batch))
        except BaseException as error:
            said.append(error)

    callers = [threading.Thread(target=send, args=(batch,), daemon=True) for batch in group]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert [batch.error for batch in group] == [raised, raised]
    assert sorted(map(str, said)) == sorted(["True", str(raised)]), "who led has it itself, the other its error"
    assert client.made[0].ended, "nothing of it goes out later"
    client.poll = Client.poll
    assert sends(producer, b"3") == [(0, 7)]


def test_a_comma_too_many_among_the_brokers_is_no_other_error_than_that_they_are_away(client):
    client.away = True
    with pytest.raises(LogUnavailable, match="can be reached"):
        SharedProducer(KafkaSettings(bootstrap="127.0.0.1:9, ,", timeout_seconds=0.3))
