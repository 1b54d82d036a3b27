"""The container image: built, started as its own user, asked for an answer over gRPC, and stopped.

Runs where PLAUDIT_TEST_IMAGE_TOOL names a program that builds and runs images: docker, podman, or one whose
`run IMAGE -- PROGRAM ...` ignores the entry point. `make image-check` sets it.
"""

import os
import re
import shlex
import socket
import subprocess
import time
from pathlib import Path

import pytest
from plaudit.client import Plaudit
from plaudit.testing.models import tiny_model

ROOT = Path(__file__).resolve().parents[2]
TOOL = os.environ.get("PLAUDIT_TEST_IMAGE_TOOL", "")
IMAGE = os.environ.get("PLAUDIT_TEST_IMAGE", "plaudit:check")
BUILD_ARGS = shlex.split(os.environ.get("PLAUDIT_TEST_IMAGE_ARGS", ""))
ENGINE = Path(TOOL).name in ("docker", "podman")
START_SECONDS = 180

pytestmark = [
    pytest.mark.skipif(not TOOL, reason="needs PLAUDIT_TEST_IMAGE_TOOL, such as docker; `make image-check` sets it"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    options = []
    if not ENGINE:
        # Such a tool puts another image in the place of the base, and no digest names that.
        file = tmp_path_factory.mktemp("image") / "Dockerfile"
        file.write_text(re.sub(r"@sha256:[0-9a-f]{64}", "", (ROOT / "Dockerfile").read_text()))
        options = ["--file", file]
    subprocess.run([TOOL, "build", ROOT, "--tag", IMAGE, *options, *BUILD_ARGS], check=True)
    return IMAGE


def command(*program, options=()):
    """A command line that runs `program` in the image, under a read-only root where an engine can."""
    if ENGINE:
        hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        return [
            TOOL,
            "run",
            "--rm",
            "--network",
            "host",
            *hardened,
            *options,
            "--entrypoint",
            program[0],
            IMAGE,
            *program[1:],
        ]
    return [TOOL, "run", *options, IMAGE, "--", *program]


def output(*program):
    return subprocess.run(command(*program), check=True, capture_output=True, text=True).stdout


def readable(folder):
    """Temporary folders are their owner's alone; the image's user is somebody else."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_image_runs_as_its_own_user_without_a_compiler_and_knows_its_plugins(image):
    assert output("id", "-u").strip() == "10001"
    assert output("sh", "-c", "command -v gcc cc || echo none").strip() == "none"
    assert "instruction" in output("plaudit", "plugins", "list")


def test_image_serves_a_model_and_ends_in_order(image, tmp_path):
    model, port = readable(tiny_model(tmp_path / "model")), free_port()
    options = ["--volume", f"{model}:/models:ro"]
    for variable in (f"SERVE__PORT={port}", "SERVE__METRICS_PORT=0", "MODEL__PATH=/models", "MODEL__THREADS=1"):
        options += ["--env", f"PLAUDIT_{variable}"]
    log = tmp_path / "serve.log"
    # A signal to the tool need not reach the program inside: the shell there sends SIGTERM at the end of its input.
    until_input_ends = "plaudit serve & read -r _; kill -TERM $!; wait $!"
    run = command("sh", "-c", until_input_ends, options=[*options, *(["-i"] if ENGINE else [])])
    with log.open("wb") as sink, subprocess.Popen(run, stdin=subprocess.PIPE, stdout=sink, stderr=sink) as process:
        try:
            reply = first_answer(process, port, log)
        finally:
            process.stdin.close()
            process.wait(60)
    assert len(reply.completions) == 2
    assert process.returncode == 0, log.read_text()[-4000:]
    assert "ended" in log.read_text(), "the server did not end in order on SIGTERM"


def first_answer(process, port, log):
    """The first reply, once the server answers; an early end of the server is a failure with its log."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()[-4000:]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert time.monotonic() < deadline, f"no answer in {START_SECONDS} s:\n{log.read_text()[-4000:]}"
        time.sleep(0.2)
    with Plaudit(f"127.0.0.1:{port}", timeout=60) as client:
        reply = client.generate("instruction", "How do I descale a kettle?", n=2, max_tokens=8)
        # Feedback needs the log and the keys in the data directory, which the image's user must be able to write.
        reply.choose(0, 1, rater="ana")
        return reply
