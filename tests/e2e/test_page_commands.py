"""The pages' own commands, as they stand, on a deployment that has learnt: what a reader replaces is replaced here.

Which commands these are says tests/page_commands.toml (`runs = "here"`); tests/unit/test_page_commands.py sees that
each command of the pages has an entry there, and that what it names is there.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import structlog
from plaudit.cli import app
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.look import Watch, look
from plaudit.learner.loop import open_learner
from plaudit.learner.outcome import TurnOutcome
from plaudit.release.registry import Promote, Registry
from plaudit.settings.text import toml
from plaudit.types import Channel
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
CHANNEL = Channel("instruction", "default")


def _pages():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "tests" / "unit" / "test_page_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = _pages()
HERE = [(page, line) for page, line in PAGES.COMMANDS if PAGES.runner_of(line) == PAGES.HERE]
PARSED = [(page, line) for page, line in PAGES.COMMANDS if PAGES.runner_of(line) == PAGES.ARGUMENTS]
# Where an operator promotes; elsewhere the release is live when the page begins.
BY_HAND = ("docs/preferences.md", "docs/thumbs.md")
# What one command prints, a reader gives to the next: ids of a key, of a person, of an erasure.
PRINTED = {
    "3f9a0c61d2be": ("", r"\b[0-9a-f]{12}\b"),
    "6f0c...": ("", r"\b[0-9a-f]{32}\b"),
    "receipt ID": ("receipt ", r"\b[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}\b"),
}


class Reader:
    """Who types a page's commands into a folder, with what is their own in place of the page's examples."""

    def __init__(self, folder, settings, target):
        self.folder = folder
        store = EvidenceStore(settings.store_url)
        with Registry(settings.store_url, settings.registry_root) as registry:
            act = store.freeze(CHANNEL, registry.salt(CHANNEL)).rows[0]
            adapter = registry.fetch(CHANNEL, 1, folder / "fetched") / "policy"
        store.close()
        shutil.copytree(adapter, folder / "my-adapter")
        digest = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
        # Longer ones first, so that no part of one is replaced.
        self._own = {
            **dict.fromkeys(("moderation/acme", "support/shop", "CHANNEL"), str(CHANNEL)),
            f"{CHANNEL} 3": f"{CHANNEL} 1",
            "plaudit.example:50051": target,
            "plaudit simulate": f"plaudit simulate --target {target}",
            "--events 1500": "--events 8",
            "/backups": str(folder / "backups"),
            "/tmp/rehearsal": str(folder / "rehearsal"),
            "FEEDBACK_ID": act.feedback_id,
            "--interaction ID": f"--interaction {act.interaction_id}",
            "INTERACTION": act.interaction_id,
            "HEX": digest,
        }
        (folder / "backups").mkdir()
        own = settings.model_dump(mode="json", exclude_defaults=True, exclude={"serve"})
        own |= {"serve": {"port": 0, "pseudonym_key": settings.serve.pseudonym_key.get_secret_value()}}
        for name, more in (("plaudit", {}), ("other", {"data_dir": str(folder / "other")})):
            (folder / f"{name}.toml").write_text(toml(own | more))

    def types(self, command):
        """What the command prints; it must end well."""
        for shown, own in self._own.items():
            command = command.replace(shown, own)
        words = PAGES.words_of(command)
        done = CliRunner().invoke(app, words[words.index("plaudit") + 1 :])
        structlog.reset_defaults()
        # A doctor finds a join that does not run, and says so by its exit code too.
        assert done.exit_code == ("BAD" in done.stdout), f"{command}\n{done.output}\n{done.exception!r}"
        for shown, (before, form) in PRINTED.items():
            if found := re.search(form, done.output):
                self._own[shown] = before + found[0]
        return done.stdout


@pytest.fixture(scope="module")
def learnt(module_settings):
    """Settings of a deployment whose people taught a first release, which waits for an operator."""
    settings = module_settings(learn={"promote": False})
    learner = open_learner(settings)
    try:
        assert look(learner, CHANNEL, Watch()).outcome is TurnOutcome.GATED
    finally:
        learner.close()
    return settings


@pytest.fixture
def reader_of(learnt, served, tmp_path, monkeypatch):
    """A reader of a page in a folder of their own, beside a copy of the deployment that answers if the page asks."""
    with contextlib.ExitStack() as stack:

        def of(page):
            shutil.copytree(learnt.data_dir, tmp_path / "data")
            settings = learnt.model_copy(update={"data_dir": tmp_path / "data"})
            if page not in BY_HAND:
                with Registry(settings.store_url, settings.registry_root) as registry:
                    registry.change(CHANNEL, Promote(1), expected_generation=None, actor="test", reason="")
            asks = any(each == page and ("--target" in line or "simulate" in line) for each, line in HERE)
            target = stack.enter_context(served(settings)).target if asks else ""
            (tmp_path / "typed").mkdir()
            monkeypatch.chdir(tmp_path / "typed")
            return Reader(tmp_path / "typed", settings, target)

        # Commands that end on a signal leave their handlers in the process that they think is theirs.
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        yield of
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("page", sorted({page for page, _ in HERE}))
def test_the_commands_of_a_page_run_in_their_order(reader_of, page):
    reader = reader_of(page)
    for command in [command for where, command in HERE if where == page]:
        print(reader.types(command))


@pytest.mark.parametrize(("page", "command"), PARSED, ids=[" ".join(PAGES.words_of(line)) for _, line in PARSED])
def test_a_program_of_a_page_takes_its_arguments(page, command, monkeypatch):
    """Those that need data of the reader's own, or hours, as far as their arguments."""

    class Taken(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def stop(self, *rest, **more):
        parse(self, *rest, **more)
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    _, program, *arguments = PAGES.words_of(command)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.syspath_prepend(str((ROOT / program).parent))
    with pytest.raises(Taken):
        runpy.run_path(str(ROOT / program), run_name="__main__")
