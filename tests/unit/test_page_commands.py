"""Every command in the pages is one that exists, with options that exist, and is run by a test that a table names."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
from plaudit.cli import app
from plaudit.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(sh|console|toml)\n(.*?)^```", re.S | re.M)
HERE_DOCUMENT = re.compile(r"<<'(\w+)'\n.*?^\1$", re.S | re.M)
ASSIGNMENT = re.compile(r"\w+=")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
HERE, ARGUMENTS, NOTHING = "here", "arguments", "nothing"


def pages():
    """Every page that people read, as a path below the top: not the history, and no package's own."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [page for page in listed.split() if page != "CHANGELOG.md"]


def blocks(*kinds):
    for page in pages():
        for kind, body in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
            if kind in kinds:
                yield page, body


def words_of(command):
    """The words of a command without what is assigned before it and said behind it."""
    words = shlex.split(command, comments=True)
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    return words


def commands():
    """(page, command) in their order; a here-document is left out of its command."""
    for page, body in blocks("sh", "console"):
        for line in HERE_DOCUMENT.sub("", body).replace("\\\n", " ").splitlines():
            if words_of(line):
                yield page, line.removeprefix("$ ")


def _table():
    for row in tomllib.loads((ROOT / "tests" / "page_commands.toml").read_text(encoding="utf-8"))["runner"]:
        assert bool(row.get("why")) == (row["runs"] == NOTHING), row
        for like in row["commands"]:
            yield like, re.compile(re.escape(like).replace(r"\*", ".*")), row["runs"]


TABLE = list(_table())


def runner_of(command):
    """What runs a command, by the table: HERE, ARGUMENTS, NOTHING or a file, as explained there."""
    said = " ".join(words_of(command))
    found = [(len(like), runs) for like, pattern, runs in TABLE if pattern.fullmatch(said)]
    assert found, f"`{said}`: tests/page_commands.toml must name what runs it"
    return max(found)[1]


COMMANDS = list(commands())
each_command = pytest.mark.parametrize(
    ("page", "command"), [pytest.param(*each, id=f"{each[0]}: {' '.join(words_of(each[1]))[:60]}") for each in COMMANDS]
)


def test_the_pages_have_commands():
    assert len({page for page, _ in COMMANDS}) > 12


def test_no_page_hides_commands_in_a_block_without_a_kind():
    for page in pages():
        kinds = re.findall(r"^```(\w*)$", (ROOT / page).read_text(encoding="utf-8"), re.M)
        assert all(kinds[::2]), f"{page}: name the kind of each block"


@each_command
def test_the_command_exists(page, command):
    program, *arguments = words_of(command)
    if program == "kubectl" and "--" in arguments:
        program, *arguments = arguments[arguments.index("--") + 1 :]
    if program == "plaudit":
        parse(arguments)
    elif program == "make":
        assert {word for word in arguments if "=" not in word} <= TARGETS
    elif program in ("python", "pytest"):
        for word in arguments:
            if word.endswith(".py") or word.startswith("tests/"):
                assert (ROOT / word).exists(), word
    elif program == "pip":
        for word in arguments[1:]:
            extra = re.search(r"\[([\w,]+)\]", word)
            assert not extra or set(extra[1].split(",")) <= EXTRAS, word
            assert not word.startswith("./") or (ROOT / word / "pyproject.toml").exists(), word


@each_command
def test_something_runs_the_command(page, command):
    runs = runner_of(command)
    if runs in (HERE, ARGUMENTS, NOTHING):
        assert runs == NOTHING or ("python" if runs == ARGUMENTS else "plaudit") in words_of(command)
        return
    path, _, test = runs.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not test or f"def {test}(" in text
    # It reads the page, or names each word of the command that chooses what is done.
    program, *arguments = words_of(command)
    verbs = parse(arguments) if program == "plaudit" else arguments[:1] if program == "make" else [program]
    assert Path(page).name in text or all(verb in text for verb in verbs), f"{path} does not run {verbs}"


def test_the_table_has_no_command_that_no_page_has():
    said = [" ".join(words_of(command)) for _, command in COMMANDS]
    assert not [like for like, pattern, _ in TABLE if not any(map(pattern.fullmatch, said))]


def parse(arguments):
    """The commands that a command line of plaudit names, without running it; raises for what does not exist."""
    command, path = typer.main.get_command(app), []
    while hasattr(command, "resolve_command"):
        context = command.make_context(command.name or "plaudit", list(arguments))
        rest = [*context._protected_args, *context.args]
        if not rest:
            return path
        name, command, arguments = command.resolve_command(context, rest)
        path.append(name)
    command.make_context(command.name, list(arguments))
    return path


@pytest.mark.parametrize(("page", "body"), list(blocks("toml")))
def test_settings_in_pages_are_settings(page, body, tmp_path):
    path = tmp_path / "plaudit.toml"
    path.write_text(body)
    load_settings(path, environ={})


@pytest.mark.parametrize("line", ["release list instruction/default --confg x", "relaese list", "serve --http http"])
def test_what_does_not_exist_is_noticed(line):
    with pytest.raises(Exception, match=r"confg|relaese|integer"):
        parse(line.split())
