"""What the walks share: a page's own commands and programs, a folder to type them in, and a clock."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# On a busy machine everything takes ten times as long.
PATIENCE_SECONDS = 1800.0


class Clock:
    """Says each step with the minutes and seconds since the walk began."""

    def __init__(self):
        self._began = time.monotonic()

    def __call__(self, what):
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        print(f"{minutes:3d}:{seconds:02d}  {what}", flush=True)


class Page:
    """A page of the documentation: what a reader copies from it."""

    def __init__(self, name):
        self._text = (ROOT / "docs" / name).read_text(encoding="utf-8")

    def blocks(self, kind):
        """The fenced blocks of one kind, in their order."""
        return re.findall(rf"^```{kind}\n(.*?)^```", self._text, re.S | re.M)

    def commands(self):
        """The lines of all shell blocks, in their order."""
        return [line for block in self.blocks("sh") for line in block.splitlines()]


class Walker:
    """Who types commands into an empty folder.

    Their programs are those of an environment that has Plaudit; what they install stays in the folder. Ports are free
    ones instead of the pages' own, so that a walk is not disturbed by what else runs.
    """

    def __init__(self, folder):
        self.folder, self.started = folder, []
        self.ports = {"50051": _free_port(), "8000": _free_port()}
        venv.create(folder / "venv", with_pip=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        plugins = [str(path.parent) for path in sorted((ROOT / "plugins").glob("*/pyproject.toml"))]
        seen = [str(ROOT / "service"), *plugins, sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
        # First on the path: the venv's own setuptools may be too old to build.
        (site / "plaudit.pth").write_text(f"import sys; sys.path[:0] = {seen}\n")
        for name, module in (("plaudit", "plaudit"), ("pytest", "pytest")):
            program = folder / "venv" / "bin" / name
            program.write_text(f'#!/bin/sh\nexec "{folder}/venv/bin/python" -m {module} "$@"\n')
            program.chmod(0o755)
        (folder / "examples").symlink_to(ROOT / "examples")
        offline = {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"}
        ports = {
            "PLAUDIT_SERVE__PORT": str(self.ports["50051"]),
            **{f"PLAUDIT_{name}__METRICS_PORT": "0" for name in ("SERVE", "JOIN", "LEARN")},
        }
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        path = f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.environment = kept | offline | ports | {"PATH": path}
        self.clock = Clock()

    def with_ports(self, text):
        """A command or program of a page with this walk's ports."""
        for shown, free in self.ports.items():
            text = re.sub(rf"\b{shown}\b", str(free), text)
        return text

    def run(self, command, quiet=False):
        """Standard output of a command that ends well."""
        done = subprocess.run(
            self.with_ports(command),
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        if not quiet:
            self.clock(f"$ {command}")
        return done.stdout

    def python(self, *programs):
        """Standard output of programs of a page, one after the other in one interpreter."""
        path = self.folder / "program.py"
        path.write_text(self.with_ports("\n".join(programs)))
        return self.run(f"{sys.executable} {path.name}", quiet=True)

    def start(self, command):
        """A command that goes on, in a second terminal."""
        self.clock(f"$ {command}")
        words = f"exec {self.with_ports(command)}"
        with (self.folder / "terminal.log").open("ab") as log:
            self.started.append(
                subprocess.Popen(words, shell=True, cwd=self.folder, env=self.environment, stderr=log, stdout=log)
            )

    def until(self, what, look):
        """What `look` finds, once it finds something."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = look()
            if found:
                self.clock(what)
                return found
            for process in self.started:
                assert process.poll() is None, self.terminal()
            assert time.monotonic() < end, f"{what}: it did not come\n{self.terminal()}"
            time.sleep(1.0)

    def status(self, channel):
        """What `plaudit status --json` says of a channel; None before its first request."""
        found = json.loads(self.run("plaudit status --config plaudit.toml --json", quiet=True))
        return next((each for each in found["channels"] if each["channel"] == channel), None)

    def terminal(self):
        """The end of what the second terminal shows."""
        return (self.folder / "terminal.log").read_text()[-4000:]

    def ends(self):
        """Ctrl-C in the second terminal."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(120)
        self.clock("the end")


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def page():
    return Page


@pytest.fixture
def walker(tmp_path):
    made = Walker(tmp_path)
    yield made
    made.ends()


@pytest.fixture
def clock():
    return Clock()
