"""Standard error after broken and refused calls: enough to find the fault, and nothing of what people wrote."""

import io
import json
import sys

import pytest
import structlog
from plaudit.client import Plaudit
from plaudit.errors import InternalError, InvalidField, PluginFailed
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.plugins import guard, load_plugins
from plaudit.telemetry import configure
from plaudit.testing.serving import local_server
from plaudit.types import Channel, Message

SECRET, NAME = "my diagnosis is X17", "ada@example.org"


@pytest.fixture(params=["text", "json"])
def stderr(request, monkeypatch):
    """What this process writes to its log in either format."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure(request.param, process="test")
    yield written
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Loud:
    """The echo plugin, one member of which raises with what it was given in the message."""

    def __init__(self, member):
        self.inner = next(iter(load_plugins(("echo",)).values())).inner
        self.member = member

    def plugin(self):
        inner = self.inner

        def loud(self, *arguments):
            raise RuntimeError(f"no idea what to do with {arguments}")

        kind = type("LoudEcho", (type(inner),), {self.member: loud})
        return guard([kind()])


def _ask(client):
    messages = [Message("system", "be kind"), Message("user", SECRET)]
    return client.generate("echo", messages, end_user=NAME, rater=NAME, max_tokens=2)


def _quiet(stderr, *more):
    written = stderr.getvalue()
    for text in (SECRET, "X17", NAME, *more):
        assert text not in written


@pytest.mark.parametrize("member", ["render", "parse"])
def test_a_plugin_that_raises_with_a_prompt_in_its_message(tmp_path, tiny_engine, stderr, member):
    with (
        local_server(tmp_path / "data", tiny_engine, Loud(member).plugin()) as server,
        Plaudit(server.target, patience=0.0, timeout=60.0) as client,
        pytest.raises(PluginFailed) as caught,
    ):
        _ask(client)
    assert f"{member} raised RuntimeError at test_logs.py" in caught.value.message
    assert "call failed" in stderr.getvalue()
    _quiet(stderr)


def test_an_engine_that_raises_with_a_prompt_in_its_message(local, stderr, monkeypatch):
    def loud(messages):
        raise RuntimeError(f"no idea what to do with {messages}")

    monkeypatch.setattr(local.engine, "encode", loud)
    with Plaudit(local.target, patience=0.0, timeout=60.0) as client, pytest.raises(InternalError) as caught:
        _ask(client)
    assert "call broke" in stderr.getvalue()
    assert "test_logs.py" in stderr.getvalue(), "the place is told"
    assert caught.value.metadata["request_id"] in stderr.getvalue()
    _quiet(stderr)


def test_a_refused_call_is_one_line_with_its_request_id(local, stderr):
    with Plaudit(local.target, patience=0.0, timeout=60.0) as client:
        handle = _ask(client).handle
        before = len(stderr.getvalue().splitlines())
        with pytest.raises(InvalidField):
            client.generate("echo", SECRET, rater=NAME, n=99)
    lines = stderr.getvalue().splitlines()[before:]
    assert len(lines) == 1
    assert "INVALID_FIELD" in lines[0]
    assert "request_id" in lines[0]
    _quiet(stderr, handle)


def test_a_join_whose_plugin_raises_with_feedback_in_its_message(local, stderr):
    with Plaudit(local.target, patience=0.0, timeout=60.0) as client:
        reply = _ask(client)
        reply.thumbs_up(rater=NAME)
    store = EvidenceStore(local.settings.store_url)
    join = Join(local.log, store, Loud("to_evidence").plugin(), local.settings.join)
    while join.run_once(0.1):
        pass
    store_counts = store.counts(Channel("echo", "default"))
    join.close()
    store.close()
    assert store_counts.rejected == 1, "the record is kept with its reason, and the join goes on"
    _quiet(stderr, reply.handle)


def test_json_lines_are_json(local, stderr):
    with Plaudit(local.target, patience=0.0, timeout=60.0) as client, pytest.raises(InvalidField):
        client.generate("echo", SECRET, n=99)
    line = stderr.getvalue().splitlines()[-1]
    if line.startswith("{"):
        assert json.loads(line)["reason"] == "INVALID_FIELD"
