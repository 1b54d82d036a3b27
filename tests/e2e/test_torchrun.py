"""A whole turn by two processes that torchrun starts: its outcome and its adapter are those of one process.

With a copy of the base each, and with half of it each, while a server samples.
"""

import os
import subprocess
import sys

import pytest
from plaudit.engine.adapter_files import read
from plaudit.engine.base import Base
from plaudit.engine.opening import open_engine
from plaudit.engine.ranks import Here
from plaudit.learner import loop
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import TurnOutcome
from plaudit.release.registry import Registry
from plaudit.settings.text import toml

from tests.integration.vllm_fake import Computing, fake_server

from .conftest import CHANNEL, TABLES

FEW = {"policy": {**TABLES["policy"], "iterations": 2}}


def torchrun(settings, folder):
    table = settings.model_dump(mode="json")
    for section, key in (("serve", "handle_keys"), ("serve", "pseudonym_key"), ("store", "url")):
        table[section].pop(key)
    (folder / "plaudit.toml").write_text(toml(table))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    learn = ["-m", "plaudit", "learn", "--once", "--config", str(folder / "plaudit.toml")]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        # torchrun itself ends the processes that it started, at SIGTERM and not at SIGKILL.
        started = subprocess.Popen([sys.executable, *command, *learn], env=environ, stdout=log, stderr=log)
        try:
            return started.wait(900), (folder / "log").read_text
        finally:
            started.terminate()
            started.wait(60)


def weights(registry, folder):
    (row,) = [each for each in registry.releases(CHANNEL) if each.version == 1]
    return row, read(registry.fetch(CHANNEL, 1, folder) / "policy")[1]


def same(settings, learner, tmp_path):
    """A turn by one process, and one by two on the same data: both come to one outcome and one adapter."""
    result = look(learner, CHANNEL, Watch(), force=True)
    assert result.outcome in (TurnOutcome.PROMOTED, TurnOutcome.REJECTED), result.reason
    row, alone = weights(learner.registry, tmp_path / "alone")
    code, said = torchrun(settings, tmp_path)
    assert code == 0, said()[-3000:]
    with Registry(settings.store_url, settings.registry_root) as registry:
        other, shared = weights(registry, tmp_path / "shared")
        assert registry.manifest(CHANNEL, 1).versions["processes"] == "2"
    assert other.state == row.state
    assert alone.keys() == shared.keys()
    moved = max(float(alone[name].abs().max()) for name in alone if "lora_B" in name)  # it starts at 0
    apart = max(float((alone[name] - shared[name]).abs().max()) for name in alone)
    print(f"adapters of one and of two processes differ by {apart:.1e}, and training moved them by {moved:.1e}")
    assert apart < 0.01 * moved


@pytest.fixture
def server(model):
    with fake_server(fake=Computing(model)) as made:
        yield made


def test_two_halves_of_a_base_and_a_server_that_samples_make_the_release_of_one_process(
    server, settings_of, learner_of, tmp_path, monkeypatch
):
    remote = {"servers": [server.address], "dtype": "float32", "check_base": False}
    changes = {
        "policy": {**FEW["policy"], "prompts": 8},
        "gate": {**TABLES["gate"], "prompts": 8, "samples": 2, "probe_rate": 0.5, "probe_power": 0.5},
        "engine": {"kind": "vllm", "vllm": remote, "context_length": 512},
    }

    def whole(settings, rollouts):
        return Here(Base.of(settings), open_engine(settings.model_copy(update={"engine": rollouts})))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_model", whole)
        learner = learner_of(settings_of(**changes))
    same(settings_of(model={"shard": True}, **changes), learner, tmp_path)


def test_torchrun_takes_evidence_to_the_release_that_one_process_makes(settings_of, learner_of, tmp_path):
    same(settings_of(**FEW), learner_of(settings_of(**FEW)), tmp_path)
