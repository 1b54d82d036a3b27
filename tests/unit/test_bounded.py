"""Calls of foreign code end in time: late ones are left behind, their number is bounded, and innocent ones go on."""

import sys
import threading
import time

import pytest
from plaudit.plugins.bounded import MOST_THREADS, BoundedCalls, Exits, Overdue, Overrun


@pytest.fixture
def gate():
    """Calls of `gate.wait` hang until the test ends."""
    gate = threading.Event()
    yield gate
    gate.set()


def threads(name):
    return sum(thread.name == name for thread in threading.enumerate())


def test_a_call_gives_what_the_function_returns_or_raises():
    calls = BoundedCalls("t", 10.0)
    assert calls(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        calls(lambda: 1 / 0)
    assert calls(lambda: "still here") == "still here"


def test_one_thread_serves_calls_that_come_one_by_one():
    calls = BoundedCalls("one-by-one", 10.0)
    names = {calls(lambda: threading.get_ident()) for _ in range(50)}
    assert len(names) == 1
    assert threading.get_ident() not in names


def test_a_call_that_hangs_is_left_and_others_go_on(gate):
    calls = BoundedCalls("hangs", 0.05)
    with pytest.raises(Overdue) as late:
        calls(gate.wait)
    assert late.value.args == (0.05,)
    assert calls.left == 1
    calls._seconds = 600.0  # the next one is in time on any machine
    assert calls(lambda: 3) == 3


def test_late_calls_in_a_row_get_less_time_and_one_in_time_gives_it_back(gate):
    calls = BoundedCalls("halves", 0.16)
    allowed = []
    for _ in range(7):
        with pytest.raises(Overdue) as late:
            calls(gate.wait)
        allowed.append(late.value.args[0])
    assert allowed == [0.16, 0.08, 0.04, 0.02, 0.01, 0.005, 0.005]
    calls._seconds = 600.0  # the next one is in time on any machine
    assert calls(lambda: 3) == 3
    calls._seconds = 0.16
    with pytest.raises(Overdue) as late:
        calls(gate.wait)
    assert late.value.args == (0.16,)


def test_many_that_hang_are_refused_without_waiting_and_threads_stay_few(gate):
    calls = BoundedCalls("many", 0.01, most_left=3, retry=1000.0)
    for _ in range(3):
        with pytest.raises(Overdue):
            calls(gate.wait)
    began = time.perf_counter()
    for _ in range(1000):
        with pytest.raises(Overrun) as many:
            calls(gate.wait)
    assert time.perf_counter() - began < 5
    assert many.value.args == (3,)
    assert threads("many") == 3


def test_now_and_then_one_more_is_tried_up_to_a_limit(gate):
    calls = BoundedCalls("retries", 0.001, most_left=1, retry=0.0)
    for _ in range(MOST_THREADS):
        with pytest.raises(Overdue):
            calls(gate.wait)
    with pytest.raises(Overrun):
        calls(gate.wait)
    assert threads("retries") == MOST_THREADS


def test_what_comes_back_makes_its_place_free():
    calls, gate = BoundedCalls("back", 0.01, most_left=1, retry=1000.0), threading.Event()
    with pytest.raises(Overdue):
        calls(gate.wait)
    with pytest.raises(Overrun):
        calls(lambda: 3)
    gate.set()
    ends = time.monotonic() + 300
    while calls.left:
        assert time.monotonic() < ends, "it does not come back"
        time.sleep(0.01)
    calls._seconds = 600.0  # the next one is in time on any machine
    assert calls(lambda: 3) == 3


def test_a_function_that_exits_ends_nothing():
    calls = BoundedCalls("exits", 10.0)
    with pytest.raises(Exits, match="SystemExit"):
        calls(lambda: sys.exit(3))
    assert calls(lambda: 3) == 3


def test_many_callers_at_once_get_their_own_results():
    calls, found = BoundedCalls("crowd", 30.0), []

    def ask(number):
        found.extend(calls(lambda: number) == number for _ in range(200))

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 1600
    assert calls.left == 0


def test_of_many_items_each_meets_its_own_fate_and_one_thread_serves_those_in_time(gate):
    calls, asked, threads_of = BoundedCalls("each", 2.0), [], set()

    def fate(item):
        asked.append(item)
        threads_of.add(threading.get_ident())
        if item == "hangs":
            gate.wait()
        if item == "exits":
            sys.exit(3)
        return 1 / item

    found = calls.each(fate, [1, 0, 2, "hangs", 4, "exits", 5])
    assert [type(each.error) for each in found] == [
        type(None), ZeroDivisionError, type(None), Overdue, type(None), Exits, type(None),
    ]  # fmt: skip
    assert [found[place].get() for place in (0, 2, 4, 6)] == [1.0, 0.5, 0.25, 0.2]
    assert found[3].error.args == (2.0,), "those before it were in time"
    assert asked == [1, 0, 2, "hangs", 4, "exits", 5], "nothing is asked twice"
    assert (len(threads_of), calls.left) == (2, 1)
    assert calls.each(fate, []) == []


def test_a_batch_may_take_longer_than_the_limit_of_one_item():
    for _ in range(3):  # one item may be late here on a machine that is busy enough
        found = BoundedCalls("long", 1.5).each(time.sleep, [0.4] * 4)
        if [each.error for each in found] == [None] * 4:
            return
    pytest.fail(f"every batch had a late item: {found}")
