"""docs/write-a-plugin.md as a new user goes through it: its commands as they stand, in a fresh folder and venv."""

import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.S | re.M) for line in block.splitlines()]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
DEMO = "plaudit demo --domain haiku"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a venv that sees Plaudit and what it needs, and whose installs stay in it."""
    folder = tmp_path_factory.mktemp("tutorial")
    venv.create(folder / "venv", with_pip=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    seen = [str(ROOT / "service"), sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    # First on the path: the venv's own setuptools may be too old to build.
    (site / "plaudit.pth").write_text(f"import sys; sys.path[:0] = {seen}\n")
    for name, module in (("plaudit", "plaudit"), ("pytest", "pytest")):
        program = folder / "venv" / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{folder}/venv/bin/python" -m {module} "$@"\n')
        program.chmod(0o755)
    return folder


def run(place, command, **variables):
    bin_first = f"{place / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # What pip would fetch is there already.
    offline = {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PATH": bin_first, **offline, **variables}
    return subprocess.run(command, shell=True, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_the_page_has_the_commands_that_are_run_here():
    assert COMMANDS == [
        "plaudit plugins new haiku --action completion",
        "plaudit plugins check --path plaudit-haiku",
        "pip install -e plaudit-haiku",
        "plaudit plugins list",
        "plaudit plugins check haiku",
        "pytest -q plaudit-haiku/tests",
        DEMO,
    ]
    assert len(SNIPPETS) == 2


def test_the_commands_of_the_page_run_as_they_stand(place):
    said = {}
    for command in COMMANDS:
        if command == DEMO:
            continue
        if command.startswith("pytest"):
            add_ratings(place / "plaudit-haiku")
        done = run(place, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[command] = done.stdout
    assert "haiku  plaudit-haiku  0.1.0  plaudit_haiku.plugin:Haiku" in said["plaudit plugins list"].splitlines()
    assert re.search(r"^haiku: all \d+ checks passed$", said["plaudit plugins check haiku"], re.M)
    assert re.search(r"^\d+ passed", said["pytest -q plaudit-haiku/tests"], re.M)


def add_ratings(folder):
    """Section 3: the edits that the page describes, with its own lines."""
    plugin = folder / "plaudit_haiku" / "plugin.py"
    text = plugin.read_text(encoding="utf-8")
    facts, (_, *case) = SNIPPETS[0].splitlines(), SNIPPETS[1].splitlines()
    old_facts = text[text.index("        return Declaration(") : text.index("    def render(")]
    for old, new in (
        (old_facts, _indented(facts, 8) + "\n"),
        ("            case Thumbs():\n", f"{_indented(case, 8)}            case Thumbs():\n"),
        ("    Prompt,\n    Request,\n", "    Prompt,\n    Rating,\n    Request,\n    Scalar,\n    Scale,\n"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    plugin.write_text(text, encoding="utf-8")
    test = folder / "tests" / "test_plaudit_haiku.py"
    text = test.read_text(encoding="utf-8")
    text = text.replace('Choice("c1", "c0")]', 'Choice("c1", "c0"), Rating("c0", 4)]')
    test.write_text(text.replace("Message, Request", "Message, Rating, Request"), encoding="utf-8")


def _indented(lines, by):
    return "".join(f"{' ' * by}{line}\n" for line in lines)
