"""The examples run as they stand, against one real server with the tiny model."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plaudit.eventlog import Topic
from plaudit.plugins import load_plugins
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.testing.serving import local_server, serve_settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# (program, example, whether it speaks HTTP, acts of feedback that it gives)
PROGRAMS = [
    (sys.executable, "python_sync.py", False, 3),
    (sys.executable, "python_async.py", False, 1),
    (sys.executable, "openai_client.py", True, 1),
    (sys.executable, "openai_users.py", True, 12),
    ("node", "node.mjs", True, 1),
    ("bash", "curl.sh", True, 1),
]


@pytest.fixture(scope="module")
def served(tiny_base, tmp_path_factory):
    from plaudit.engine.torch_engine import TorchEngine

    folder = tmp_path_factory.mktemp("examples")
    engine = TorchEngine(tiny_base, EngineSettings(widths=(4,)), ModelSettings(adapter_layers=2))
    settings = serve_settings(folder, http_port=0)
    try:
        with local_server(folder, engine, load_plugins(("instruction",)), settings=settings) as server:
            yield server
    finally:
        engine.close()


def test_every_example_is_run_here():
    shown = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert shown == {"README.md", "fastapi_page.py", *(name for _, name, _, _ in PROGRAMS)}
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"[{name}]({name})" in listed for name in shown - {"README.md"})


@pytest.mark.parametrize(("program", "name", "over_http", "acts"), PROGRAMS, ids=[name for _, name, _, _ in PROGRAMS])
def test_an_example_runs_as_it_stands(served, program, name, over_http, acts):
    if shutil.which(program) is None or (name == "curl.sh" and shutil.which("curl") is None):
        pytest.skip(f"NO {program.upper()}: examples/{name} was not run")
    asked, given = len(served.records(Topic.INTERACTIONS)), len(served.records(Topic.FEEDBACK))
    number = ["12"] if name == "openai_users.py" else []
    where = f"http://127.0.0.1:{served.server.http_port}/v1" if over_http else served.target
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    done = subprocess.run(
        [program, EXAMPLES / name, where, *number], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert len(served.records(Topic.INTERACTIONS)) > asked
    assert len(served.records(Topic.FEEDBACK)) == given + acts


def test_the_page_with_thumbs(served, monkeypatch):
    pytest.importorskip("fastapi", reason="NO FASTAPI: examples/fastapi_page.py was not run")
    from starlette.testclient import TestClient

    monkeypatch.setenv("PLAUDIT_TARGET", served.target)
    spec = importlib.util.spec_from_file_location("fastapi_page", EXAMPLES / "fastapi_page.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fastapi_page", module)
    spec.loader.exec_module(module)
    with TestClient(module.app) as browser:
        shown = browser.get("/").text
        reason = sorted(load_plugins(("instruction",))["instruction"].declaration.reasons)[0]
        assert reason in shown
        reply = browser.post("/ask", json={"question": "Name a tree."}).json()
        thumb = {"handle": reply["handle"], "up": False, "reasons": [reason]}
        assert browser.post("/thumbs", json=thumb).status_code == 204
        wrong = browser.post("/thumbs", json={"handle": "none", "up": True})
        assert wrong.status_code == 400
        assert "handle" in wrong.json()["error"]
    act = served.records(Topic.FEEDBACK)[-1]
    assert (act.act.up, act.reasons, dict(act.tags)) == (False, (reason,), {"page": "example"})
    assert act.rater, "the person's cookie became a pseudonym"
