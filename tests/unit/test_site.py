"""The documentation's site: it builds with every link and anchor checked, and its pages know where they are."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.apart
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the dependency group docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    client = (tmp_path / "client" / "index.html").read_text(encoding="utf-8")
    assert "plaudit.client.AsyncPlaudit" in client
    assert "docs/" not in {link.split("/")[0] + "/" for link in links((tmp_path / "index.html").read_text())}


def links(page):
    return [part.split('"')[0] for part in page.split('href="')[1:]]


def test_a_page_from_outside_links_within_the_site_or_keeps_its_words():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
    pytest.importorskip("mkdocs")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    page = (
        "[the client](docs/client.md#reference), [the contract](plugins/README.md), [protos](protos/plaudit/v1), "
        "[web](https://example.org), ![loop](docs/img/loop.svg)\n```\n[code](docs/client.md)\n```"
    )
    assert site.rewritten(page, "README.md", "index.md") == (
        "[the client](client.md#reference), [the contract](contract.md), protos, [web](https://example.org), "
        "![loop](img/loop.svg)\n```\n[code](docs/client.md)\n```"
    )
    assert site.rewritten("[back](../../README.md)", "docs/adr/0001-x.md", "adr/0001-x.md") == "[back](../index.md)"
