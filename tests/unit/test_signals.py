"""A signal ends a process whatever its main thread was doing when it came."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
@pytest.mark.apart
def test_a_signal_ends_the_wait(when):
    program = START + when + "assert stop.wait()\nprint('ended')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=500)
    assert done.stdout == "ended\n", done.stderr


def test_a_wait_without_a_signal_ends_at_its_time():
    program = START + "began = time.monotonic()\nassert not stop.wait(0.6)\nassert 0.6 <= time.monotonic() - began < 60"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=500)


STARTING = """
import sys, time
from plaudit.signals import end_on_signals

end_on_signals()
try:
    print("starts", flush=True)
    time.sleep(600)
finally:
    print("cleans up", flush=True)
    sys.stdin.readline()
    print("is clean", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.apart
def test_a_signal_during_the_start_ends_it_and_a_second_one_does_not_cut_off_the_clean_up(number):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STARTING], **pipes) as running:
        assert running.stdout.readline() == "starts\n"
        running.send_signal(number)
        assert running.stdout.readline() == "cleans up\n"
        running.send_signal(signal.SIGTERM)
        running.send_signal(signal.SIGINT)
        running.stdin.write("both signals are sent\n")
        running.stdin.flush()
        assert running.stdout.read() == "is clean\n"
        assert running.wait(300) == 128 + number


PARENT = """
import sys, time
from pathlib import Path
from plaudit.demo.processes import Processes
from plaudit.signals import end_on_signals

end_on_signals()
with Processes(Path(sys.argv[1]), threads=1) as processes:
    child = processes.start("join", ["join", "--data-dir", sys.argv[1] + "/data"])
    print(child.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.apart
def test_a_demo_that_is_ended_ends_its_children(tmp_path):
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as running:
        child = int(running.stdout.readline())
        running.send_signal(signal.SIGTERM)
        running.wait(300)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="which signals a process catches is read from /proc")
@pytest.mark.apart
def test_every_command_catches_signals_before_it_loads_anything(tmp_path):
    """PID 1 of a container has no default reaction: a signal that nothing catches is lost."""
    code = "import time; from plaudit import cli; cli.app = lambda: time.sleep(600); cli.main()"
    with subprocess.Popen([sys.executable, "-c", code]) as running:
        status = Path(f"/proc/{running.pid}/status")
        caught = 0
        for _ in range(3000):
            caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)
            if caught >> (signal.SIGTERM - 1) & 1:
                break
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(300) == 128 + signal.SIGTERM
        assert caught >> (signal.SIGTERM - 1) & 1


KEEPERS = {
    "up": "from plaudit.up import Child\n"
    "child = Child('serve', (sys.executable, '-c', sys.argv[1]))\n"
    "child.start(lambda line: print(line, flush=True))\n",
    "demo": "from pathlib import Path\n"
    "from plaudit.demo import processes\n"
    "kept = processes.Processes(Path(sys.argv[2]), threads=1)\n"
    "child = kept.start('serve', [], program=(sys.executable, '-c', sys.argv[1]))\n",
}
KEPT = """
import os, sys, time
from plaudit.signals import end_on_signals, end_with_parent

end_on_signals()
end_with_parent()
assert "PLAUDIT_ENDS_WITH_STDIN" not in os.environ
open(sys.argv[1], "w").close()
try:
    time.sleep(600)  # longer than the test waits for its end
finally:
    print("a line to a log that nobody reads any more", flush=True)
    os.remove(sys.argv[1])
"""


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.apart
def test_children_end_with_their_parent_even_if_it_is_killed(keeper, tmp_path):
    runs = tmp_path / "runs"
    child = KEPT.replace("sys.argv[1]", repr(str(runs)))
    program = f"import sys, time\n{KEEPERS[keeper]}time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, child, str(tmp_path)]) as parent:
        try:
            _until(runs.exists)
        finally:
            parent.kill()
    _until(lambda: not runs.exists())


def _until(condition):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
