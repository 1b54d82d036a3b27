"""`plaudit model prepare` says how far it is, and leaves nothing behind where it is ended."""

import signal
import subprocess
import sys
import time


def test_it_tells_how_far_it_is_and_a_signal_leaves_no_folder_behind(tmp_path):
    out = tmp_path / "models" / "tiny"
    errors = tmp_path / "stderr"
    command = [sys.executable, "-m", "plaudit.cli", "model", "prepare", "tiny", "--out", str(out)]
    with errors.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        end = time.monotonic() + 300
        while "s left" not in errors.read_text() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        assert "tiny: step 25 of 500" in errors.read_text()
        assert [path.name.startswith(".tiny-") for path in out.parent.iterdir()] == [True]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert list(out.parent.iterdir()) == []
