"""The pages for plugin authors say what the code says."""

import inspect
import re
from pathlib import Path

import pytest
from plaudit.domain import DomainPlugin
from plaudit.testing.conformance import PluginConformance

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = [name for name, _ in inspect.getmembers(DomainPlugin) if not name.startswith("_")]


@pytest.mark.parametrize("member", MEMBERS)
def test_the_member_has_a_heading_with_its_exact_signature(member):
    page = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    found = inspect.getattr_static(DomainPlugin, member)
    function = found.fget if isinstance(found, property) else found
    signature = str(inspect.signature(function)).replace("'", "")
    assert f"### `{member}{signature}`\n" in page


def test_the_page_lists_every_member_and_no_other():
    page = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### `(\w+)\(", page, re.MULTILINE)) == sorted(MEMBERS)


def test_the_page_lists_every_check_of_the_kit():
    page = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
    checks = {name for name, _ in inspect.getmembers(PluginConformance, inspect.isfunction) if name.startswith("test_")}
    assert set(re.findall(r"^\| `(test_\w+)`", page, re.MULTILINE)) == checks


@pytest.mark.parametrize("domain", ["ethics", "instruction", "moderation", "recommendation"])
def test_a_domain_has_a_page_with_its_figures_and_limits(domain):
    page = (ROOT / "plugins" / domain / "README.md").read_text(encoding="utf-8")
    assert f"[`plaudit-{domain}`]({domain}/README.md)" in (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    assert "../../docs/results.md" in page
    assert "## Limits" in page or "must not be used for" in page
