"""Pauses between attempts grow to their bound and stay there, however long an outage lasts."""

import subprocess
import sys
import threading
import time

import pytest
from plaudit.errors import LogUnavailable
from plaudit.up import Child, _kept_up
from plaudit.waiting import LONGEST_SECONDS, doubled, pause

MANY = 100_000  # attempts of an outage of weeks


@pytest.mark.parametrize(("times", "seconds"), [(0, 1.0), (1, 2.0), (3, 8.0), (4, 15.0), (MANY, 15.0)])
def test_a_pause_doubles_up_to_its_bound(times, seconds):
    assert doubled(1.0, times, LONGEST_SECONDS) == seconds


def test_an_outage_of_weeks_ends_no_process():
    stop = threading.Event()
    stop.set()
    pause("join", stop, LogUnavailable("the broker is away"), MANY)


def test_a_child_that_dies_for_weeks_is_still_started_again():
    process = subprocess.Popen([sys.executable, "-c", "import os; os._exit(9)"])
    process.wait(300)
    child = Child("join", (), process=process, began=time.monotonic(), deaths=MANY)
    lines = []
    assert _kept_up(child, lines.append)
    assert "started again in 30 s" in lines[0]
