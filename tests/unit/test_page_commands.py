"""Every command in the pages is one that exists, with options that exist; what is not run says why above it."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from plaudit.cli import app
from plaudit.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "plugins/README.md", "helm/plaudit/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(sh|console|toml)\n(.*?)^```", re.S | re.M)
# Programs whose lines stand for themselves: tests elsewhere run them, or nothing of ours is in them.
OTHERS = {"source", "grpcurl", "docker", "kubectl", "helm", "git", "vllm"}
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def blocks(*kinds):
    for page in PAGES:
        for skipped, kind, body in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
            if kind in kinds and not skipped:
                yield page, body


def commands():
    for page, body in blocks("sh", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.match(r"\w+=", words[0]):
                words = words[1:]
            if words:
                yield page, words


def test_the_pages_have_commands():
    assert len({page for page, _ in commands()}) > 8


@pytest.mark.parametrize(
    ("page", "words"), [pytest.param(*each, id=f"{each[0]}: {' '.join(each[1])[:60]}") for each in commands()]
)
def test_the_command_exists(page, words):
    program, *arguments = words
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
    else:
        assert program in OTHERS, f"{program} is neither tested here nor said to be foreign"


def parse(arguments):
    """Parses a command line of plaudit without running it; raises for what does not exist."""
    command = typer.main.get_command(app)
    while hasattr(command, "resolve_command"):
        context = command.make_context(command.name or "plaudit", list(arguments))
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        _, command, arguments = command.resolve_command(context, rest)
    command.make_context(command.name, list(arguments))


@pytest.mark.parametrize(("page", "body"), list(blocks("toml")))
def test_settings_in_pages_are_settings(page, body, tmp_path):
    path = tmp_path / "plaudit.toml"
    path.write_text(body)
    load_settings(path, environ={})


@pytest.mark.parametrize("line", ["release list instruction/default --confg x", "relaese list", "serve --http http"])
def test_what_does_not_exist_is_noticed(line):
    with pytest.raises(Exception, match=r"confg|relaese|integer"):
        parse(line.split())
