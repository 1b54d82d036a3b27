"""`plaudit up`: three real processes of one command, one of which is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from plaudit.client import Plaudit
from plaudit.serving.server import read_address
from plaudit.testing.models import tiny_model
from plaudit.testing.waiting import wait_until

CODE = "import sys; from plaudit.cli import main; sys.argv = ['plaudit', *sys.argv[1:]]; main()"


def children(pid):
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if len(words) > 3:  # a process that has just ended has none
            found[words[3].decode()] = int(child)
    return found


def all_three(pid, but=None):
    found = children(pid)
    return found if len(found) == 3 and but not in found.values() else None


@pytest.fixture
def running(tmp_path):
    flags = {
        "model.path": tiny_model(tmp_path / "model"),
        "serve.port": 0,
        "serve.metrics_port": 0,
        "model.adapter_layers": 2,
        "plugins.allow": '["echo"]',
    }
    assigned = [part for key, value in flags.items() for part in ("--set", f"{key}={value}")]
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, "up", "--http", "0", "--data-dir", str(tmp_path / "data"), *assigned],
            stderr=output,
        )
    try:
        yield process, log, tmp_path / "data"
    finally:
        process.terminate()
        process.wait(300)


def test_one_command_runs_all_keeps_them_up_and_ends_them(running):
    process, log, data = running
    target = wait_until(lambda: read_address(data) if data.exists() else None)
    with Plaudit(target) as client:
        client.generate("echo", "Say hello.", max_tokens=2)
    before = wait_until(lambda: all_three(process.pid))
    assert set(before) == {"serve", "join", "learn"}

    def speak():
        return {line.partition(" |")[0].strip() for line in log.read_text().splitlines() if " |" in line}

    wait_until(lambda: speak() >= {"serve", "join"})
    os.kill(before["join"], signal.SIGKILL)
    after = wait_until(lambda: all_three(process.pid, but=before["join"]))
    assert after["serve"] == before["serve"]
    assert "join ended with code -9" in log.read_text()
    assert "up" in speak()

    process.terminate()
    assert process.wait(300) == 0
    for pid in after.values():
        assert not Path(f"/proc/{pid}").exists()


def test_what_is_wrong_with_the_settings_is_said_once(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", CODE, "up", "--data-dir", str(tmp_path), "--set", "serve.port=99999"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 1
    assert ran.stderr.count("99999") == 1
    assert "serve |" not in ran.stderr


def test_a_child_that_cannot_start_ends_the_command(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", CODE, "up", "--data-dir", str(tmp_path), "--set", 'plugins.allow=["nobody"]'],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 1
    assert "ended 3 times" in ran.stderr
    assert "'nobody', which is not installed" in ran.stderr
