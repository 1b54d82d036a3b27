"""`plaudit plugins new` writes what keeps the contract, and `plaudit plugins check` says what does not."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from plaudit.errors import Misconfigured
from plaudit.scaffold import write_plugin
from plaudit.testing import checking
from plaudit.testing.conformance import checks
from plaudit.types import Action

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    name
    for file in ROOT.glob("plugins/*/pyproject.toml")
    for name in tomllib.loads(file.read_text())["project"]["entry-points"]["plaudit.domains"]
)


def run(*command, cwd=None):
    """The command `plaudit` in a process of its own: what is imported from a folder stays there."""
    program = [sys.executable, "-m", "plaudit", *command]
    return subprocess.run(program, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("action", list(Action))
def test_a_new_plugin_keeps_the_contract_before_it_is_installed_and_its_own_tests_pass(tmp_path, action):
    made = run("plugins", "new", "wine-list", "--action", action.value, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "plaudit-wine-list"
    assert "plaudit plugins check --path plaudit-wine-list" in made.stdout
    checked = run("plugins", "check", "--path", str(folder), "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rows = json.loads(checked.stdout)["wine-list"]
    assert [row["check"] for row in rows if not row["passed"]] == []
    assert len(rows) == len(checks()) + 1
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "-k", "not installed_entry_point"]
    done = subprocess.run(tests, cwd=folder, env=path_with(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["a", "wine-list", "code-review-2"])
@pytest.mark.parametrize("action", list(Action))
def test_new_code_is_typed_and_tidy(tmp_path, name, action):
    folder = write_plugin(name, action, tmp_path / "plugin")
    ruff = [sys.executable, "-m", "ruff", "format", "--check", "--config", str(ROOT / "pyproject.toml"), str(folder)]
    done = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for file in folder.rglob("*"):
        assert "$" not in file.name
        assert not file.is_file() or "$" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("name", ["choice", "people", "true", "domain-plugin", "a-", "x--y"])
def test_a_name_that_is_a_word_of_the_code_makes_a_plugin_too(tmp_path, name, action):
    folder = write_plugin(name, action, tmp_path / "plugin")
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import tomllib, importlib, pathlib\n"
    code += f"facts = tomllib.loads(pathlib.Path({str(folder / 'pyproject.toml')!r}).read_text())\n"
    code += f"module, kind = facts['project']['entry-points']['plaudit.domains'][{name!r}].split(':')\n"
    code += "tests = importlib.import_module('tests.test_' + module.removesuffix('.plugin'))\n"
    code += f"assert getattr(importlib.import_module(module), kind)().declaration.name == {name!r}\n"
    code += "kit = getattr(tests, 'Test' + kind)()\n"
    code += "kit.test_every_declared_kind_gives_evidence(); kit.test_undeclared_kinds_are_refused()\n"
    code += "tests.test_the_taste_tells_a_plain_answer_from_a_pompous_one()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def path_with(folder):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


@pytest.mark.parametrize("name", ["Haiku", "hai ku", "", "9lives", "x" * 64, "../x", "hai_ku"])
def test_a_name_that_no_domain_can_have_is_refused(tmp_path, name):
    with pytest.raises(Misconfigured, match="cannot name a domain"):
        write_plugin(name, Action.COMPLETION, tmp_path / "plugin")
    assert not (tmp_path / "plugin").exists()


def test_what_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Misconfigured, match="is there already"):
        write_plugin("haiku", Action.COMPLETION, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_check_says_what_was_found_and_what_to_do(tmp_path):
    folder = write_plugin("haiku", Action.COMPLETION, tmp_path / "plugin")
    plugin = folder / "plaudit_haiku" / "plugin.py"
    plugin.write_text(plugin.read_text().replace("positive=act.up", "positive=None"))
    done = run("plugins", "check", "--path", str(folder))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = lines.index("FAILED  every declared kind gives evidence")
    assert lines[at + 1] == "        found: to_evidence returned a Binary that is neither good nor bad"
    assert lines[at + 2].startswith("        to do: turn each declared kind into Pair,")
    assert lines[-1] == f"haiku: 1 of {len(checks()) + 1} checks failed"


def test_checks_that_need_a_broken_member_wait_for_its_own(tmp_path):
    folder = write_plugin("haiku", Action.COMPLETION, tmp_path / "plugin")
    plugin = folder / "plaudit_haiku" / "plugin.py"
    plugin.write_text(plugin.read_text().replace("return Outcome(displayed=shown)", "return None"))
    done = run("plugins", "check", "--path", str(folder))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAILED")] == ["FAILED  parse is total"]
    at = lines.index("waits   reward is bounded")
    assert lines[at + 1] == "        found: not checked, since parse returned a NoneType, not an Outcome"
    assert lines[-1] == f"haiku: 1 of {len(checks()) + 1} checks failed, and 10 wait for them"


def test_a_plugin_that_cannot_be_imported_is_a_row_and_no_traceback(tmp_path):
    folder = write_plugin("haiku", Action.COMPLETION, tmp_path / "plugin")
    (folder / "plaudit_haiku" / "plugin.py").write_text("import nothing_of_this_name\n")
    done = run("plugins", "check", "--path", str(folder))
    assert done.returncode == 1
    assert "FAILED  the entry point loads" in done.stdout
    assert "No module named 'nothing_of_this_name'" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ("import sys\nsys.exit(0)\n", "SystemExit, which ends a process"),
        ("raise RuntimeError('no disk')\n", "RuntimeError: no disk"),
        ("class Haiku:\n    pass\n", "declares the name ''"),
    ],
)
def test_a_plugin_that_ends_the_process_while_it_is_imported_fails_its_check(tmp_path, broken, found):
    folder = write_plugin("haiku", Action.COMPLETION, tmp_path / "plugin")
    (folder / "plaudit_haiku" / "plugin.py").write_text(broken)
    done = run("plugins", "check", "--path", str(folder))
    assert done.returncode == 1
    assert "FAILED  the entry point loads" in done.stdout
    assert found in " ".join(done.stdout.split())
    assert done.stderr == ""


# In a process of its own: a check that hangs is left behind in its thread, with what it had replaced for its length.
CHECKED = """
import json, os, pathlib, sys
from plaudit.testing import checking
checking.CHECK_SECONDS = 3.0
rows = checking.check_folder(pathlib.Path(sys.argv[1]))["slow-one"]
print(json.dumps({row.check: [row.passed, row.found] for row in rows}), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("member", ["render", "declaration"])
def test_a_plugin_that_always_hangs_is_a_table_and_not_a_wait_for_ever(tmp_path, member):
    folder = write_plugin("slow-one", Action.COMPLETION, tmp_path / "plugin")
    plugin = folder / "plaudit_slow_one" / "plugin.py"
    before = {"render": "        if request.options or", "declaration": "        return Declaration("}[member]
    sleeps = "        import time\n        time.sleep(600)\n"
    plugin.write_text(plugin.read_text().replace(before, sleeps + before))
    quick = "from plaudit import plugins\nplugins.LOAD_SECONDS = checking.CHECK_SECONDS = 0.1"
    checked = CHECKED.replace("checking.CHECK_SECONDS = 3.0", quick)
    ran = subprocess.run([sys.executable, "-c", checked, str(folder)], capture_output=True, text=True, timeout=500)
    rows = json.loads(ran.stdout.splitlines()[-1])
    assert rows["render is pure"] == [False, "has not ended within 0 s"]


def test_a_check_that_hangs_fails_and_the_others_still_run(tmp_path):
    folder = write_plugin("slow-one", Action.COMPLETION, tmp_path / "plugin")
    plugin = folder / "plaudit_slow_one" / "plugin.py"
    plugin.write_text(
        plugin.read_text().replace(
            "    def gates(self)",
            "    def slices(self, interaction):\n        while True:\n"
            "            import time\n            time.sleep(1)\n\n    def gates(self)",
        )
    )
    ran = subprocess.run([sys.executable, "-c", CHECKED, str(folder)], capture_output=True, text=True, timeout=500)
    rows = json.loads(ran.stdout.splitlines()[-1])
    assert rows["slices are names"] == [False, "has not ended within 3 s"]
    assert rows["reward is bounded"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody",), "no domain 'nobody' is installed"),
        (("--path", "no-such-folder"), "no-such-folder has no pyproject.toml"),
        ((), "name an installed domain, or give --path"),
        (("echo", "--path", "."), "name an installed domain, or give --path"),
    ],
)
def test_wrong_use_is_explained(arguments, words):
    done = run("plugins", "check", *arguments)
    assert done.returncode in (1, 2)
    assert words in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("domain", SHIPPED)
def test_shipped_domains_pass(domain):
    assert [row for row in checking.check_installed(domain) if not row.passed] == []


def test_every_check_says_what_to_do():
    assert all(remedy.strip() for remedy in checks().values())
