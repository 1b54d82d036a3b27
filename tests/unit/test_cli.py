"""The command line: what it prints, its exit codes, and how little it imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import metadata
from pathlib import Path

import grpc
import pytest
import structlog
from plaudit import __version__, cli
from plaudit.release.manifest import Manifest
from plaudit.release.registry import Registry
from plaudit.settings import load_settings
from plaudit.types import Channel
from plaudit.v1.events_pb2 import Envelope
from typer.main import get_command

CHANNEL = Channel("instruction", "default")


@pytest.fixture
def plaudit(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder; exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plaudit", *arguments])
        capsys.readouterr()  # what fixtures said
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield run
    structlog.reset_defaults()


@pytest.fixture
def registry(tmp_path):
    settings = load_settings(overrides=[f"data_dir={tmp_path / 'data'}"], environ={})
    settings.data_dir.mkdir()
    with Registry(settings.store_url, settings.registry_root) as opened:
        opened.ensure_channel(CHANNEL, "ab" * 32)
        yield opened


@pytest.mark.apart
def test_help_loads_nothing_heavy():
    program = (
        "import sys; sys.argv = ['plaudit', '--help']\n"
        "from plaudit import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'grpc', 'sqlalchemy', 'pydantic', 'matplotlib', 'numpy', 'kafka'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "release" in done.stdout


def test_settings_are_shown_as_toml_and_as_json_with_secrets_masked(plaudit):
    secret = ["--set", "serve.pseudonym_key=open-sesame-open-sesame"]
    code, text, _ = plaudit("settings", "show", *secret, "--set", "serve.port=1234")
    assert (code, "port = 1234" in text, "open-sesame" in text) == (0, True, False)

    code, text, _ = plaudit("settings", "show", "--json", *secret, "--data-dir", "somewhere")
    shown = json.loads(text)
    assert code == 0
    assert shown["settings"]["data_dir"] == "somewhere"
    assert shown["settings"]["serve"]["pseudonym_key"] == "**********"
    assert len(shown["digest"]) == 64


def test_settings_of_one_channel_are_shown(plaudit):
    flag = 'channels."a/*".policy.kl_target=6'
    code, out, _ = plaudit("settings", "show", "--channel", "a/b", "--json", "--set", flag)
    assert code == 0
    shown = json.loads(out)["settings"]
    assert (shown["policy"]["kl_target"], shown["channels"]) == (6.0, {})
    assert plaudit("settings", "show", "--channel", "nonsense")[0] == 2


def test_an_error_that_plaudit_explains_is_a_sentence_and_exit_code_1(plaudit):
    code, out, err = plaudit("settings", "show", "--set", "serve.prot=1")
    assert (code, out) == (1, "")
    assert err.startswith("plaudit: 1 problem with the settings:")
    assert "did you mean 'serve.port'?" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [("settings", "sow"), ("release", "promote", "instruction/default", "x"), ()])
def test_wrong_usage_is_exit_code_2(plaudit, arguments):
    assert plaudit(*arguments)[0] == 2


def test_a_channel_that_is_none_is_wrong_usage(plaudit):
    code, _, err = plaudit("release", "list", "instruction")
    assert code == 2
    assert "domain/tenant" in err


def test_plugins_are_listed_as_json(plaudit):
    code, text, _ = plaudit("plugins", "list", "--json")
    rows = json.loads(text)
    assert code == 0
    assert {"name", "distribution", "version"} <= set(rows[0])
    assert "instruction" in {row["name"] for row in rows}


def test_releases_are_listed_through_the_registry(plaudit, registry, tmp_path):
    code, text, _ = plaudit("release", "list", str(CHANNEL), "--json", "--data-dir", str(tmp_path / "data"))
    listed = json.loads(text)
    assert code == 0
    assert listed["state"] == {
        "channel": "instruction/default",
        "generation": 0,
        "live": 0,
        "canary": None,
        "pinned": False,
    }
    assert [row["version"] for row in listed["releases"]] == [0]

    code, text, _ = plaudit("release", "list", str(CHANNEL), "--data-dir", str(tmp_path / "data"))
    assert text.startswith("instruction/default serves version 0 (generation 0)\n*    0  live")


def test_an_operator_reads_the_answers_that_failed_a_probe(plaudit, registry, tmp_path):
    where = ("--data-dir", str(tmp_path / "data"))
    assert plaudit("release", "probes", str(CHANNEL), "0", *where)[1] == "[]\n"
    manifest = Manifest(channel=CHANNEL, parent=0, base_digest="ab" * 32, temperature=1.0)
    (tmp_path / "empty").mkdir()
    registry.register(manifest, tmp_path / "empty", beside={"probe_answers.json": '[{"harm": "insult"}]'})
    code, text, _ = plaudit("release", "probes", str(CHANNEL), "1", *where)
    assert (code, json.loads(text)) == (0, [{"harm": "insult"}])


def test_pinning_through_the_registry_is_published_on_the_log(plaudit, registry, tmp_path):
    from plaudit.eventlog import Topic, open_log
    from plaudit.eventlog.codec import decode

    where = ("--data-dir", str(tmp_path / "data"))
    code, text, _ = plaudit("release", "pin", str(CHANNEL), "--reason", "an audit", "--json", *where)
    assert (code, json.loads(text)["pinned"], registry.state(CHANNEL).pinned) == (0, True, True)

    log = open_log(load_settings(overrides=[f"data_dir={tmp_path / 'data'}"], environ={}))
    consumer = log.consumer((Topic.RELEASES,), "test", dict)
    (record,) = consumer.poll(5.0, 10)
    consumer.close()
    log.close()
    change = decode(record.value)
    assert Envelope.FromString(record.value).producer == f"plaudit-cli/{__version__}"
    assert (change.pinned, change.generation, change.reason) == (True, 1, "an audit")
    assert change.actor.startswith("operator:")


def test_a_move_is_no_failure_if_the_brokers_or_their_settings_let_no_record_through(plaudit, registry, tmp_path):
    kafka = {"bootstrap": "127.0.0.1:9", "security": "ssl", "ca_file": str(tmp_path / "not there.pem")}
    given = ["log.kind=kafka", *(f"log.kafka.{name}={value}" for name, value in kafka.items())]
    options = [part for each in given for part in ("--set", each)]
    where = ("--data-dir", str(tmp_path / "data"))
    code, text, said = plaudit("release", "pin", str(CHANNEL), "--json", *where, *options)
    assert (code, json.loads(text)["pinned"], registry.state(CHANNEL).pinned) == (0, True, True)
    assert "the change is made" in said
    assert "ca_file" in said


def test_a_move_on_an_old_generation_is_refused(plaudit, registry, tmp_path):
    where = ("--data-dir", str(tmp_path / "data"))
    assert plaudit("release", "pin", str(CHANNEL), *where)[0] == 0
    code, _, err = plaudit("release", "pin", str(CHANNEL), "--off", "--expected-generation", "0", *where)
    assert code == 1
    assert "generation" in err
    assert registry.state(CHANNEL).pinned


def test_a_release_is_shown_with_its_manifest(plaudit, registry, tmp_path):
    code, text, _ = plaudit("release", "show", str(CHANNEL), "0", "--data-dir", str(tmp_path / "data"))
    shown = json.loads(text)
    assert (code, shown["state"], shown["manifest"]["base_digest"]) == (0, "live", "ab" * 32)


def test_an_unknown_channel_and_an_absent_service_are_explained(plaudit, registry, tmp_path):
    code, _, err = plaudit("release", "list", "other/default", "--data-dir", str(tmp_path / "data"))
    assert code == 1
    assert "never served" in err
    code, _, err = plaudit("release", "list", str(CHANNEL), "--target", "127.0.0.1:1")
    assert code == 1
    assert "127.0.0.1:1" in err
    assert "UNAVAILABLE" in err
    code, _, err = plaudit("release", "list", str(CHANNEL), "--data-dir", str(tmp_path / "mistyped"))
    assert code == 1
    assert "nothing has run in this data directory" in err
    assert not (tmp_path / "mistyped").exists(), "a command that reads makes nothing"


@pytest.mark.parametrize(
    "command",
    [
        "raters list",
        "raters quarantine a/b 0123456789abcdef0123456789abcdef --reason x",
        "rejected list",
        "rejected show plaudit.feedback:0:1",
        "evidence rebuild --check",
        "evidence export --channel instruction/default --format dpo --out x",
        "privacy expire --dry-run",
        "keys list",
        "backup x",
        "join reset --from earliest",
        "release estimate recommendation/default",
        "release replay instruction/default 1",
        "replay instruction/default",
    ],
)
def test_a_mistyped_directory_is_said_and_not_made(plaudit, tmp_path, command):
    code, _, err = plaudit(*command.split(), "--data-dir", str(tmp_path / "mistyped"))
    assert code == 1
    assert "nothing has run in this data directory" in err
    assert not (tmp_path / "mistyped").exists()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("join --data-dir x reset --from earliest", "options stand behind the whole command: plaudit join reset"),
        ("learn --set learn.seed=1 plan", "options stand behind the whole command: plaudit learn plan"),
        ("learn --once plan", "options stand behind the whole command: plaudit learn plan"),
        ("release list a/b --target 127.0.0.1:1 --data-dir x", "give one or the other"),
    ],
)
def test_an_option_that_would_not_act_is_wrong_usage(plaudit, command, why):
    code, _, err = plaudit(*command.split())
    assert code == 2
    assert why in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("release", "probes", "nonsense", "1"),
        ("replay", "nonsense"),
        ("best-of", "nonsense", "1", "--answers", "x"),
        ("evaluate", "--releases", "1,x"),
        ("simulate", "--base-share", "7"),
        ("learn", "plan", "--thumbs", "most"),
    ],
)
def test_a_word_in_the_wrong_place_is_wrong_usage_and_no_traceback(plaudit, arguments):
    code, _, err = plaudit(*arguments)
    assert code == 2
    assert "Invalid value" in err


def test_a_file_that_cannot_be_read_or_written_is_named(plaudit, tmp_path):
    for arguments, file in (
        (("judge", "--answers", "none.json", "--picks", "x"), "none.json"),
        (("plugins", "new", "haiku", "--action", "choice", "--folder", "/proc/nowhere/haiku"), "/proc/nowhere"),
    ):
        code, _, err = plaudit(*arguments)
        assert (code, err.count("\n")) == (1, 1), err
        assert f"plaudit: {file}" in err


@pytest.mark.parametrize(
    ("library", "extra", "arguments"),
    [
        ("hypothesis", "testing", ("plugins", "check", "echo")),
        ("typer", "service", ("serve",)),
        ("torch", "service", ("model", "prepare", "smollm2", "--out", "model")),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_the_extra_that_brings_it(tmp_path, library, extra, arguments):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    if set(metadata("plaudit").get_all("Provides-Extra") or ()) != project["optional-dependencies"].keys():
        pytest.skip("THIS ENVIRONMENT IS OLDER THAN pyproject.toml: run make setup; what names extras was not tested")
    program = (
        f"import sys; sys.modules[{library!r}] = None; sys.argv = ['plaudit', *{arguments!r}]\n"
        "from plaudit.__main__ import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},  # no model that a demo made before
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"plaudit: this command needs {library}, which is not installed; run: pip install 'plaudit[{extra}]'"
    )


def test_people_who_would_never_give_their_acts_are_refused(plaudit):
    code, _, err = plaudit("simulate", "--acts-per-interaction", "0", "--population", "echo-choice")
    assert code == 1
    assert "1780 pieces of feedback are never given" in err


def test_people_whom_nobody_answers_say_why(plaudit):
    another = grpc.server(ThreadPoolExecutor(1))  # a program that offers none of our calls
    target = f"127.0.0.1:{another.add_insecure_port('127.0.0.1:0')}"
    another.start()
    try:
        code, out, err = plaudit("simulate", "--target", target, "--events", "1", "--population", "echo-choice")
    finally:
        another.stop(0).wait()
    assert code == 1
    assert "0 replies to 1 requests" in out
    assert "the last request that failed: " in err


def test_a_release_is_asked_of_this_machine_past_every_proxy(plaudit, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    _, _, err = plaudit("release", "list", "a/b", "--target", "127.0.0.1:1")
    assert "127.0.0.1:1: Failed to connect" in err


def test_every_command_says_who_may_run_it():
    page = (Path(__file__).parents[2] / "docs" / "access.md").read_text(encoding="utf-8")
    table = page.partition("### Commands")[2].partition("\n## ")[0]

    def commands(command, path):
        inner = getattr(command, "commands", {})
        if not inner or command.invoke_without_command:
            yield " ".join(path)
        for name, each in inner.items():
            yield from commands(each, (*path, name))

    assert {name for name in commands(get_command(cli.app), ()) if name} == set(re.findall(r"`([a-z][a-z -]*)`", table))
