"""What a bulk stream reads ahead of its appends is bounded, whatever its messages hold."""

import itertools
import threading
import time
from types import SimpleNamespace

import pytest
from plaudit.serving.feedback import _ReadAhead
from plaudit.v1 import feedback_pb2

SHORT = feedback_pb2.Feedback(handle="h")
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
