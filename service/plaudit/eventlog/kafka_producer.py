"""What writes to Kafka: callers who wait for the brokers share a send, as those of the embedded log share a commit.

Enters: encoded records. Leaves: their partitions and offsets, once all in-sync replicas hold them. The client is
librdkafka: its threads need no interpreter, and a record costs a tenth of what it costs in Python. One send is under
way at a time, from the thread of one of its callers; order per partition follows from it.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from plaudit.errors import LogUnavailable, MessageTooLarge, PlauditError
from plaudit.eventlog.gathering import Batch, Gathering
from plaudit.eventlog.kafka_clients import addresses, no_answer
from plaudit.eventlog.kafka_diagnosis import tls_context
from plaudit.eventlog.protocol import REJECTED_OVERHEAD_BYTES, Topic, record_limit
from plaudit.settings import KafkaSettings

RECONNECT_SECONDS = 1.0
ENDING_SECONDS = 1.0
LOOK_SECONDS = 0.2  # so often a signal's handler may run while the brokers are waited for
BATCH_BYTES = 256 * 1024  # of one partition in one request
BUFFER_KIB = 128 * 1024  # of the client; what does not fit waits
# Kafka's own framing of a record, its key included, on top of the largest value.
MAX_REQUEST_BYTES = record_limit(Topic.REJECTED) + REJECTED_OVERHEAD_BYTES
TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)

_log = structlog.get_logger(__name__)


class _Sending(Batch):
    """Records of one caller; where each one lies now, and why those are refused that are."""

    __slots__ = ("items", "places", "refused", "seconds", "topic")

    def __init__(self, topic: Topic, items: Sequence[tuple[bytes, bytes]], seconds: float) -> None:
        super().__init__()
        self.topic = topic
        self.items = items
        self.seconds = seconds
        self.places: list[tuple[int, int] | None] = [None] * len(items)
        self.refused: dict[int, KafkaError] = {}

    def too_large(self) -> bool:
        """Whether the brokers find a record too large."""
        return any(error.code() in TOO_LARGE for error in self.refused.values())


class SharedProducer:
    """Sends for all threads of a process. Raises Misconfigured or LogUnavailable if it cannot connect.

    While the brokers are away, sends fail at once and one of them a second tries to connect anew: callers have an
    outbox to write to, and should not queue up behind a timeout.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._closed = False
        self._connecting = False
        self._retry_at = 0.0
        self._gathering = Gathering(self._write, KafkaException)
        self._producer: Producer | None = self._connect()

    def send(self, topic: Topic, items: Sequence[tuple[str, bytes]], seconds: float) -> list[tuple[int, int]]:
        """Partitions and offsets; raises LogUnavailable if the brokers have not acknowledged so long after the send.

        If it raises, any of the records may be in the log. Raises MessageTooLarge if no retry can help.
        """
        self._be_usable(topic, seconds)
        batch = _Sending(topic, [(key.encode(), value) for key, value in items], seconds)
        if not self._gathering.through(batch):
            raise self._is_closed(topic)
        if isinstance(batch.error, PlauditError):
            raise batch.error
        if batch.error is not None:
            raise self._unacknowledged(batch, batch.error) from batch.error
        return [place for place in batch.places if place is not None]

    def close(self) -> None:
        """Waits for what is under way, at most the timeout, and disconnects."""
        with self._lock:
            self._closed = True
        if not self._gathering.close(self._settings.timeout_seconds):
            _log.warning("event_log_closed_with_records_under_way", bootstrap=self._settings.bootstrap)
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            _end(producer)

    def _write(self, group: Sequence[_Sending]) -> None:
        """One send for a group; each batch gets its own error."""
        with self._lock:
            producer = self._producer
        if producer is None:
            for batch in group:
                batch.error = self._away(batch.topic)
            return
        deadline = time.monotonic() + min(batch.seconds for batch in group)
        try:
            records = [(batch, index) for batch in group for index in range(len(batch.items))]
            self._deliver(producer, records, deadline)
            # The brokers refuse a request as a whole: whatever shared it with a record that is too large, or is too
            # large only together, is sent again by itself.
            again = [(batch, index) for batch in group if batch.too_large() for index in sorted(batch.refused)]
            for batch, index in again if len(records) > 1 else ():
                del batch.refused[index]
                self._deliver(producer, [(batch, index)], deadline)
        except BaseException:
            self._drop(producer)
            raise
        lost = False
        for batch in group:
            if None not in batch.places:
                continue
            if batch.too_large():
                batch.error = self._refused(batch.topic)
            else:
                batch.error = self._unacknowledged(batch, next(iter(batch.refused.values()), None))
                lost = True
        if lost:
            # What is still in the client is in the outbox by then, or refused: it must not go out later.
            self._drop(producer)

    def _deliver(self, producer: Producer, records: Iterable[tuple[_Sending, int]], deadline: float) -> None:
        """Sends records, each a batch and an index, and waits until all have a place or a refusal, or the deadline."""
        left = 0

        def delivered(batch: _Sending, index: int, error: KafkaError | None, message: Any) -> None:
            nonlocal left
            left -= 1
            if error is None:
                batch.places[index] = (message.partition(), message.offset())
            else:
                batch.refused[index] = error

        for batch, index in records:
            name = self._settings.topic_prefix + batch.topic
            key, value = batch.items[index]
            try:
                _produce(producer, name, key, value, functools.partial(delivered, batch, index), deadline)
            except KafkaException as error:  # the client itself finds some too large: the others go on
                if error.args[0].code() not in TOO_LARGE:
                    raise
                batch.refused[index] = error.args[0]
            else:
                left += 1
        while left and (remaining := deadline - time.monotonic()) > 0:
            producer.poll(min(remaining, LOOK_SECONDS))

    def _be_usable(self, topic: Topic, seconds: float) -> None:
        """Connects anew if the last producer failed, within so many seconds. Raises Misconfigured or LogUnavailable."""
        with self._lock:
            if self._closed:
                raise self._is_closed(topic)
            if self._producer is not None:
                return
            if self._connecting or time.monotonic() < self._retry_at:
                raise self._away(topic)
            self._connecting = True
        producer = None
        try:
            producer = self._connect(seconds)
            if producer is None:
                raise self._away(topic)
        finally:
            with self._lock:
                self._connecting = False
                self._retry_at = time.monotonic() + RECONNECT_SECONDS
                if not self._closed:
                    self._producer, producer = producer, None
            if producer is not None:
                _end(producer)

    def _connect(self, seconds: float = math.inf) -> Producer | None:
        """A client that a broker has answered. Who has less time than the timeout gets None instead of the reason."""
        producer, timeout = Producer(_options(self._settings)), self._settings.timeout_seconds
        try:
            producer.list_topics(self._settings.topic_prefix + Topic.FEEDBACK, timeout=min(seconds, timeout))
        except KafkaException as error:
            _end(producer)
            if seconds < timeout:
                return None
            raise no_answer(self._settings, error) from error
        return producer

    def _drop(self, failed: Producer) -> None:
        """Parts with a producer that failed, and with all that it still holds."""
        with self._lock:
            if self._producer is failed:
                self._producer = None
        _end(failed)

    def _is_closed(self, topic: Topic) -> LogUnavailable:
        return LogUnavailable(f"the event log at {self._settings.bootstrap} is closed", topic=topic)

    def _away(self, topic: Topic) -> LogUnavailable:
        return LogUnavailable(
            f"the brokers at {self._settings.bootstrap} are away; check them, then send it again", topic=topic
        )

    def _unacknowledged(self, batch: _Sending, why: object) -> LogUnavailable:
        return LogUnavailable(
            f"{self._settings.topic_prefix}{batch.topic} at {self._settings.bootstrap} did not acknowledge within "
            f"{batch.seconds:g} s ({why or 'no answer'}); check the brokers, then send it again",
            topic=batch.topic,
        )

    def _refused(self, topic: Topic) -> MessageTooLarge:
        return MessageTooLarge(
            f"the broker refused a record for {self._settings.topic_prefix}{topic} as too large; raise the topic's "
            f"max.message.bytes to {record_limit(topic) + REJECTED_OVERHEAD_BYTES}",
            limit=record_limit(topic),
        )


def _produce(producer: Producer, topic: str, key: bytes, value: bytes, delivered: Any, deadline: float) -> None:
    """Hands a record to the client; waits for room, until the deadline."""
    while True:
        try:
            producer.produce(topic, key=key, value=value, on_delivery=delivered)
        except BufferError as error:
            if time.monotonic() >= deadline:
                raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from error
            producer.poll(LOOK_SECONDS)
        else:
            return


def _end(producer: Producer) -> None:
    """Lets go of all records, whose callers are told; the client's threads end with its last reference."""
    producer.purge()
    producer.flush(ENDING_SECONDS)


def _options(settings: KafkaSettings) -> dict[str, Any]:
    """Options of librdkafka. Raises Misconfigured for a bootstrap that is no address and for files that are no use."""
    milliseconds = int(settings.timeout_seconds * 1000)
    options: dict[str, Any] = {
        "bootstrap.servers": ",".join(addresses(settings)),
        "client.id": "plaudit",
        "acks": "all",
        "enable.idempotence": True,
        # Keys go to the partitions to which Kafka's own clients, and kafka-python, send them.
        "partitioner": "murmur2_random",
        "message.timeout.ms": milliseconds,
        "request.timeout.ms": max(milliseconds // 2, 1),
        "message.max.bytes": MAX_REQUEST_BYTES,
        "batch.size": BATCH_BYTES,
        "queue.buffering.max.kbytes": BUFFER_KIB,
        "linger.ms": 0,  # who shares a send is here already
        # One request under way to each broker: what a send hands over meanwhile goes in the next one.
        "max.in.flight": 1,
        "allow.auto.create.topics": False,
        "reconnect.backoff.max.ms": 1000,  # after an outage nobody should wait longer
        "security.protocol": settings.security,
        "log_level": 0,  # it would write to the standard error; what fails is said by whoever calls
    }
    if settings.security in ("ssl", "sasl_ssl"):
        tls_context(settings)
        files = {
            "ssl.ca.location": settings.ca_file,
            "ssl.certificate.location": settings.client_cert_file,
            "ssl.key.location": settings.client_key_file,
            "ssl.key.password": settings.client_key_password.get_secret_value(),
        }
        options |= {name: value for name, value in files.items() if value}
    if settings.security.startswith("sasl"):
        options |= {
            "sasl.mechanism": settings.mechanism,
            "sasl.username": settings.username,
            "sasl.password": settings.password.get_secret_value(),
        }
    return options
