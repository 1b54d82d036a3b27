"""The Python of the pages runs as it stands, against a real server: only the addresses are replaced."""

import re
from pathlib import Path

import pytest
from plaudit.eventlog import Topic
from plaudit.plugins import load_plugins
from plaudit.testing.serving import local_server, serve_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("http", "first-assistant", "thumbs", "client", "kubernetes")),
    "plugins/instruction/README.md",
]
IMPORTS = "import httpx\nimport openai\nfrom plaudit.client import Plaudit\n"


@pytest.fixture
def door(tmp_path, tiny_engine):
    settings = serve_settings(tmp_path, http_port=0)
    with local_server(tmp_path, tiny_engine, load_plugins(("instruction",)), settings=settings) as server:
        yield server


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_page_run_in_their_order(page, door):
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)
    assert snippets
    # A page's later snippets use what its first ones import and make.
    names: dict[str, object] = {}
    exec(IMPORTS, names)
    for snippet in snippets:
        program = snippet.replace("127.0.0.1:50051", door.target)
        program = program.replace("127.0.0.1:8000", f"127.0.0.1:{door.server.http_port}")
        exec(compile(program, page, "exec"), names)
    assert len(door.records(Topic.INTERACTIONS)) >= 1
    rated = len(door.records(Topic.FEEDBACK))
    assert rated >= sum(any(word in snippet for word in (".thumbs_", ".choose(", "/feedback")) for snippet in snippets)
