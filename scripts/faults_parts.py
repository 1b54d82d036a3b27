"""The parts of a deployment that `scripts/faults.py` starts, kills and stops: brokers, database, processes, a disk."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

BEGAN = time.monotonic()
# Processes are forked from one that has read the program's files, which on a busy machine takes longer than all else
# of a start. Each is a process of its own all the same, and dies of SIGKILL alone.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["faults_parts", "plaudit.cli", "plaudit.serving.server", "plaudit.engine.torch_engine", "plaudit.evidence.worker",
     "plaudit.learner.loop", "plaudit.eventlog.kafka", "psycopg", "sqlalchemy.dialects.postgresql"]
)  # fmt: skip
DISK_BYTES = 24 * 1024 * 1024
DIED_AT_A_STEP = 137  # plaudit.failpoints.EXIT_CODE
BROKER_AWAY_SECONDS = 3.0


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def say(text: str) -> None:
    """A line with the time since the start."""
    print(f"{time.monotonic() - BEGAN:7.1f}  {text}", flush=True)


class Kafka:
    """Three brokers, by the tool that starts them."""

    def __init__(self, tools: Path, folder: Path) -> None:
        self._tool, self._folder = tools / "kafka" / "kafka", folder
        self._lock = threading.Lock()
        self._returning: threading.Thread | None = None
        self.bootstrap = ""

    def _run(self, *command: str) -> str:
        done = subprocess.run([self._tool, *command], capture_output=True, text=True, check=False, timeout=180)
        if done.returncode:
            raise RuntimeError(f"kafka {' '.join(command)}: {done.stderr}")
        return done.stdout

    def start(self) -> None:
        """Starts whatever is down."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        for left in (2, 1, 0):  # the tool waits for a minute, which is short for a machine that does much else
            try:
                printed = self._run("start", str(self._folder), "--nodes", "3")
                break
            except RuntimeError:
                if not left:
                    raise
        found = dict(line.removeprefix("export ").split("=", 1) for line in printed.splitlines() if "=" in line)
        self.bootstrap = found["PLAUDIT_TEST_KAFKA"].strip("'\"")

    def node(self, command: str, node: int) -> None:
        """kill, pause or resume one broker."""
        self._run(command, str(self._folder), str(node))

    @property
    def is_whole(self) -> bool:
        """Whether no broker is on its way back."""
        return self._returning is None or not self._returning.is_alive()

    def wait_until_whole(self) -> None:
        """Until the broker that was lost, if there is one, is back."""
        if self._returning is not None:
            self._returning.join()

    def lose_one(self, node: int) -> None:
        """Kills a broker, which is started again a little later, while other things happen."""

        def back() -> None:
            time.sleep(BROKER_AWAY_SECONDS)
            self.start()

        self.node("kill", node)
        self._returning = threading.Thread(target=back, daemon=True)
        self._returning.start()

    def stop(self) -> None:
        """Ends all."""
        self.wait_until_whole()
        with contextlib.suppress(RuntimeError):
            self._run("stop", str(self._folder))


class Postgres:
    """A cluster of its own, on a free port of loopback."""

    def __init__(self, folder: Path) -> None:
        programs = [shutil.which("initdb"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
        found = [each for each in programs if each]
        if not found:
            raise SystemExit("faults: no initdb; install PostgreSQL")
        self._programs = Path(found[-1]).resolve().parent
        self._folder = folder
        self.port = free_port()
        self.url = f"postgresql+psycopg://plaudit@127.0.0.1:{self.port}/postgres"
        folder.mkdir()
        if os.getuid() == 0:  # it refuses to run as root
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", "data", "-U", "plaudit", "-A", "trust", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*user, str(self._programs / program), *arguments]
        with (self._folder.parent / "postgres.log").open("ab") as log:
            subprocess.run(command, cwd=self._folder, stdout=log, stderr=log, check=True, timeout=120)

    def start(self) -> None:
        """Starts it; its data are synced to disk as in production."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "start", "-o", options)

    def stop(self) -> None:
        """Ends it as a crash does."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "-D", "data", "-m", "immediate", "stop")


def run_command(arguments: list[str], log: Path, fail_point: str) -> None:
    """What a process of the deployment does: the command `plaudit`, as a shell starts it."""
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ |= {"OMP_NUM_THREADS": "1", "PLAUDIT_FAIL_POINT": fail_point}
    from plaudit.cli import main

    sys.argv = ["plaudit", *arguments]
    main()


@dataclass
class Process:
    """One process of the deployment, through all its starts."""

    name: str
    arguments: list[str]
    folder: Path
    log: Path
    child: BaseProcess | None = None

    def start(self, fail_point: str = "") -> None:
        """Starts it, told to die at a fail point if one is named."""
        self.child = FORKS.Process(
            target=run_command, args=(self.arguments, self.log, fail_point), name=self.name, daemon=True
        )
        self.child.start()

    @property
    def runs(self) -> bool:
        """Whether it is alive."""
        return self.child is not None and self.child.is_alive()

    @property
    def died_at_a_step(self) -> bool:
        """Whether it died at the fail point that it was told."""
        return self.child is not None and self.child.exitcode == DIED_AT_A_STEP

    def signal(self, number: int) -> None:
        """Sends a signal, if it is alive."""
        if self.runs:
            assert self.child is not None, "it runs"
            assert self.child.pid is not None, "it was started"
            os.kill(self.child.pid, number)

    def end(self) -> None:
        """SIGKILL, and waits."""
        if self.child is not None:
            self.child.kill()
            self.child.join()


@dataclass
class SmallDisk:
    """A disk of its own for a folder, that can be filled; needs root, and is absent without (`there` is false)."""

    folder: Path
    there: bool = False

    def mount(self) -> None:
        """Makes it, if this user may."""
        self.folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.there = done.returncode == 0
        if not self.there:
            say(f"NO SMALL DISK: {done.stderr.strip()}; full disks are left out")

    def fill(self) -> None:
        """Takes all that is free."""
        with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    def free(self) -> None:
        """Gives it back."""
        (self.folder / "filler").unlink(missing_ok=True)

    def unmount(self) -> None:
        """Takes it away."""
        if self.there:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)
