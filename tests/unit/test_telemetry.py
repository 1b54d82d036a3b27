"""What people wrote never reaches a log, whatever raises."""

import io
import subprocess
import sys

import pytest
import structlog
from plaudit.telemetry import configure, places

SECRET = "my diagnosis is X17"


def _raise():
    prompt = SECRET
    try:
        raise KeyError(prompt)
    except KeyError as error:
        raise ValueError(f"cannot read {prompt!r}") from error


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_logged_exception_has_places_and_no_text(monkeypatch, log_format):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure(log_format, process="test")
    try:
        _raise()
    except ValueError:
        structlog.get_logger().exception("it broke")
    written = stderr.getvalue()
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    assert "it broke" in written
    assert "ValueError" in written
    assert "KeyError" in written, "the cause is told as well"
    assert "in _raise" in written
    assert "X17" not in written


def test_places_end_where_a_chain_of_causes_was_cut():
    def cut():
        try:
            raise KeyError(SECRET)
        except KeyError:
            raise ValueError(SECRET) from None

    with pytest.raises(ValueError) as caught:
        cut()
    assert "KeyError" not in places(caught.value)


@pytest.mark.parametrize("thread", ["main", "another"])
def test_a_crash_is_told_without_its_message(thread):
    bang = "int(secret)" if thread == "main" else "threading.Thread(target=int, args=(secret,)).start()"
    code = (
        f"import threading; from plaudit.telemetry import quiet_crashes; quiet_crashes(); secret = {SECRET!r}; {bang}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False)
    assert "ValueError" in done.stderr
    assert "X17" not in done.stderr
