"""A signal ends a process whatever its main thread was doing when it came."""

import subprocess
import sys

import pytest

START = """
import signal, threading, time
from plaudit.signals import stop_on_signals

stop = stop_on_signals()
"""
TAKEN_BY_ANOTHER_THREAD = """
def another():
    time.sleep(0.2)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

threading.Thread(target=another).start()
"""
IN_THE_MIDST_OF_WAITING = """
with stop._cond:
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    "when",
    [
        pytest.param(TAKEN_BY_ANOTHER_THREAD, id="taken by another thread"),
        pytest.param(IN_THE_MIDST_OF_WAITING, id="in the midst of waiting"),
    ],
)
def test_a_signal_ends_the_wait(when):
    program = START + when + "assert stop.wait()\nprint('ended')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.stdout == "ended\n", done.stderr


def test_a_wait_without_a_signal_ends_at_its_time():
    program = START + "began = time.monotonic()\nassert not stop.wait(0.6)\nassert 0.6 <= time.monotonic() - began < 5"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
