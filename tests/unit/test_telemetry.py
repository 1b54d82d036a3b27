"""What people wrote never reaches a log, whatever raises."""

import io
import json
import os
import subprocess
import sys
import time
import uuid

import pytest
import structlog
from plaudit.ids import hex_digits, new_id
from plaudit.telemetry import RequestIds, child_traceparent, configure, places, request_ids, traceparent

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
@pytest.mark.apart
def test_a_crash_is_told_without_its_message(thread):
    bang = "int(secret)" if thread == "main" else "threading.Thread(target=int, args=(secret,)).start()"
    code = (
        f"import threading; from plaudit.telemetry import quiet_crashes; quiet_crashes(); secret = {SECRET!r}; {bang}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False)
    assert "ValueError" in done.stderr
    assert "X17" not in done.stderr


def test_names_are_uuids_of_version_7_in_order_of_time_and_never_twice_after_a_fork():
    names = [new_id() for _ in range(1000)]
    assert len(set(names)) == 1000
    assert all(uuid.UUID(name).version == 7 and str(uuid.UUID(name)) == name for name in names)
    assert all(uuid.UUID(name).variant == uuid.RFC_4122 for name in names)
    assert abs((uuid.UUID(names[0]).int >> 80) / 1000 - time.time()) < 600
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, hex_digits(32).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100).decode() != hex_digits(32)
    os.close(reading), os.close(writing)


def test_a_line_of_the_log_names_the_request_in_hand(capsys):
    configure("json")
    try:
        with request_ids(RequestIds("r-1", child_traceparent(""))):
            structlog.get_logger().info("within")
            trace = traceparent()[3:35]
        structlog.get_logger().info("after")
    finally:
        structlog.reset_defaults()
    within, after = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (within["request_id"], within["trace_id"]) == ("r-1", trace)
    assert not {"request_id", "trace_id"} & set(after)
