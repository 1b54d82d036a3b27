"""A bulk stream reads and decides ahead of its appends, so far and no further."""

import itertools
import threading
import time
from types import SimpleNamespace

import pytest
from plaudit.access.limits import Limits
from plaudit.errors import LogUnavailable
from plaudit.metrics import Metrics
from plaudit.serving.feedback import FeedbackServicer, _ReadAhead
from plaudit.settings import LimitSettings
from plaudit.testing.evidence import make_feedback
from plaudit.testing.waiting import wait_until
from plaudit.types import Thumbs
from plaudit.v1 import feedback_pb2
from prometheus_client import CollectorRegistry

SHORT = feedback_pb2.Feedback(handle="h")
CONTEXT = SimpleNamespace(is_active=lambda: True, time_remaining=lambda: 300.0)
LONG = feedback_pb2.Feedback(handle="h" * (1 << 20))


@pytest.mark.parametrize(
    ("message", "most"),
    [
        (feedback_pb2.StreamFeedbackRequest(feedback=SHORT), 514),
        (feedback_pb2.StreamFeedbackRequest(acts=[SHORT] * 100), 8),
        (feedback_pb2.StreamFeedbackRequest(feedback=LONG), 10),
    ],
    ids=["acts", "many acts", "long acts"],
)
def test_a_stream_is_read_no_further_than_its_bound(message, most):
    taken, over = itertools.count(1), threading.Event()
    read = [0]

    def requests():
        while not over.is_set():
            read[0] = next(taken)
            yield message

    ahead = _ReadAhead(requests(), SimpleNamespace(is_active=lambda: True))
    ends = time.monotonic() + 300
    while not (ahead._items.full() and read[0] > ahead._items.unfinished_tasks):  # until it waits with one in hand
        assert read[0] <= most
        assert time.monotonic() < ends, "it does not wait"
        time.sleep(0.005)
    time.sleep(0.2)
    over.set()
    ahead._left.set()
    assert read[0] <= most


class _SlowLog:
    """Takes a batch once it is let; notes what it was given, and how many it was taking at once."""

    def __init__(self):
        self.given, self.let = [], threading.Semaphore(0)
        self._taking = threading.Lock()

    def append_many(self, topic, items):
        assert self._taking.acquire(blocking=False), "two appends of one stream at once"
        self.given.append([key for key, _ in items])
        assert self.let.acquire(timeout=300)
        self._taking.release()

    def append(self, topic, key, value):
        self.append_many(topic, [(key, value)])


class _Decided:
    """Decides nothing; notes what it was asked about."""

    def __init__(self):
        self.asked, self.may = [], threading.Event()

    def accept(self, message, now):
        assert self.may.wait(300)
        self.asked.append(message.feedback_id)
        return make_feedback(message.feedback_id, message.feedback_id, Thumbs("a", True))


@pytest.fixture
def stream():
    """A servicer's stream over a slow log: acts, log, and the function that answers messages."""
    acts, log = _Decided(), _SlowLog()
    servicer = _servicer(acts, log)
    return acts, log, lambda requests: servicer.StreamFeedback(requests, CONTEXT)


def _servicer(acts, log, metrics=None):
    limits = Limits(LimitSettings())
    return FeedbackServicer(acts, log, metrics or Metrics(CollectorRegistry()), limits, stream_seconds=300.0)


def _message(name):
    return feedback_pb2.StreamFeedbackRequest(
        acts=[feedback_pb2.Feedback(feedback_id=f"{name}{n}") for n in range(200)]
    )


def test_the_next_acts_are_decided_while_the_log_takes_the_last_ones(stream):
    acts, log, answers_to = stream
    found = []

    def requests():
        for name in "abcd":
            if name == "d":
                acts.may.set()  # the first three are read
            yield _message(name)

    thread = threading.Thread(target=lambda: found.extend(answers_to(requests())))
    thread.start()
    # The first batch has 400 acts, the second one its own; the append may begin later than the decisions.
    wait_until(lambda: len(acts.asked) >= 600 and log.given, 300.0)
    assert len(log.given) == 1
    for _ in "abcd":
        log.let.release()
    thread.join(300)
    assert [name for batch in log.given for name in batch] == acts.asked
    assert [answer.index for answer in found] == [0, 200, 400, 600]
    assert all(answer.accepted for answer in found)


def test_whoever_waits_for_an_answer_before_it_sends_more_gets_it(stream):
    acts, log, answers_to = stream
    acts.may.set()
    answered = threading.Semaphore(1)

    def one_by_one():
        for name in "abc":
            assert answered.acquire(timeout=300)
            log.let.release()
            yield _message(name)

    found = []
    for answer in answers_to(one_by_one()):
        found.append(answer.index)
        answered.release()
    assert found == [0, 200, 400]


class _Away:
    """A log that takes nothing."""

    def append(self, topic, key, value):
        raise LogUnavailable("away")

    def append_many(self, topic, items):
        raise LogUnavailable("away")


def test_every_piece_of_feedback_that_is_refused_is_counted_whatever_refused_it():
    registry, acts = CollectorRegistry(), _Decided()
    acts.may.set()
    servicer = _servicer(acts, _Away(), Metrics(registry))
    too_many = feedback_pb2.StreamFeedbackRequest(acts=[SHORT] * 257)
    assert [answer.accepted for answer in servicer.StreamFeedback(iter([too_many]), CONTEXT)] == [False]
    assert [answer.accepted for answer in servicer.StreamFeedback(iter([_message("a")]), CONTEXT)] == [False]
    with pytest.raises(LogUnavailable):
        servicer.SubmitFeedback(feedback_pb2.SubmitFeedbackRequest(feedback=SHORT), CONTEXT)
    of = registry.get_sample_value
    assert of("plaudit_feedback_refused_total", {"reason": "INVALID_FIELD"}) == 1
    assert of("plaudit_feedback_refused_total", {"reason": "LOG_UNAVAILABLE"}) == 201
