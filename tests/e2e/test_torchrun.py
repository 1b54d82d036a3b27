"""A whole turn by two processes that torchrun starts: its outcome and its adapter are those of one process."""

import os
import subprocess
import sys

from plaudit.engine.adapter_files import read
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import TurnOutcome
from plaudit.release.registry import Registry
from plaudit.settings.text import toml

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


def test_torchrun_takes_evidence_to_the_release_that_one_process_makes(settings_of, learner_of, tmp_path):
    learner = learner_of(settings_of(**FEW))
    result = look(learner, CHANNEL, Watch(), force=True)
    assert result.outcome in (TurnOutcome.PROMOTED, TurnOutcome.REJECTED), result.reason
    row, alone = weights(learner.registry, tmp_path / "alone")
    settings = settings_of(**FEW)
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
