"""A plugin author's walk, with a clock: from `plaudit plugins new` to a domain whose answers got better by feedback.

    python -m pytest -q -s tests/walks/plugin_author.py

Commands and lines of code are those of docs/write-a-plugin.md, read from the page; tests/plugins/test_tutorial.py
runs all but the last of them with every `make test`.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parents[1] / "plugins" / "test_tutorial.py"


def edits():
    """The edits of the page's third section, as the tutorial's test makes them."""
    spec = importlib.util.spec_from_file_location("tutorial", TUTORIAL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.add_ratings


@pytest.mark.timeout(7200)
def test_a_plugin_author_goes_from_nothing_to_a_domain_that_learns(walker, page):
    *commands, demo = page("write-a-plugin.md").commands()
    assert demo == "plaudit demo --domain haiku"
    for command in commands:
        if command.startswith("pytest"):
            edits()(walker.folder / "plaudit-haiku")
            walker.clock("plugin.py takes ratings too, by the lines of the page")
        said = walker.run(command).strip().splitlines()
        if command.startswith(("plaudit plugins check", "pytest")):
            assert re.search(r"all \d+ checks passed|\d+ passed", said[-1]), said
            walker.clock(said[-1])

    walker.clock("the demo begins")
    said = walker.run(demo)
    report = json.loads((walker.folder / "demo-report" / "report.json").read_text())
    served = [row for row in report["releases"] if row["version"] and row.get("live_from")]
    assert served, said
    assert served[-1][report["headline"]]["low"] > 0.5
    print((walker.folder / "demo-report" / "report.md").read_text().split("\n\n")[1])
