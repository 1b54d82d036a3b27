"""Callers who share a write: nobody waits for one who was interrupted."""

from __future__ import annotations

import threading

import pytest
from plaudit.eventlog.gathering import Batch, Gathering


def test_a_signal_that_comes_while_the_first_one_gathers_stops_nobody_else():
    written = []
    gathering = Gathering(written.extend, ValueError)
    gathers = gathering._gathered.wait_for

    def interrupted(*given):
        gathering._gathered.wait_for = gathers
        raise KeyboardInterrupt  # as a signal's handler raises it, in the main thread

    gathering._gathered.wait_for = interrupted
    first, second = Batch(), Batch()
    with pytest.raises(KeyboardInterrupt):
        gathering.through(first)
    other = threading.Thread(target=gathering.through, args=(second,), daemon=True)
    other.start()
    other.join(60)
    assert not other.is_alive()
    assert written == [second], "what was interrupted is not written by somebody else afterwards"
    assert gathering.close(60), "and nothing is left to wait for"


def test_a_signal_while_the_first_one_gathers_hands_on_to_who_waits_already():
    written = []
    gathering = Gathering(written.extend, ValueError)
    gathers = gathering._gathered.wait_for
    first, second = Batch(), Batch()
    other = threading.Thread(target=gathering.through, args=(second,), daemon=True)

    def interrupted(*given):
        gathering._gathered.wait_for = gathers
        other.start()
        assert gathers(lambda: len(gathering._waiting) == 2, 60)
        raise KeyboardInterrupt

    gathering._gathered.wait_for = interrupted
    with pytest.raises(KeyboardInterrupt):
        gathering.through(first)
    other.join(60)
    assert not other.is_alive()
    assert (written, second.error) == ([second], None)
    assert gathering.close(60)
