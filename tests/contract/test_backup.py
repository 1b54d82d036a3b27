"""A backup holds what one deployment keeps, is verified before anything is put back, and overwrites nothing unasked."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from plaudit import backup as module
from plaudit.backup import CONTENTS, backup, differing_keys, restore
from plaudit.errors import BadArtifact, Misconfigured, StoreUnavailable, WrongState
from plaudit.eventlog import open_log
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.release.manifest import Manifest
from plaudit.release.registry import Registry
from plaudit.serving.keys import handle_signer, pseudonym_key
from plaudit.settings import Settings, StoreSettings
from plaudit.store.processes import Beat, processes
from plaudit.testing.evidence import CHANNEL, PlainDomain, append, join_all, make_feedback, make_interaction
from plaudit.types import Thumbs

SALT = bytes(32)
ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / os.environ.get("PLAUDIT_TEST_TOOLS", "../shared/tools")


def filled(settings, acts=20):
    """A deployment with keys, a release and joined feedback."""
    handle_signer(settings)
    pseudonym_key(settings)
    log, store = open_log(settings), EvidenceStore(settings.store_url)
    for number in range(acts):
        made = make_interaction(f"i{number}")
        act = make_feedback(f"f{number}", made.interaction_id, Thumbs("a", True), rater=f"r{number}")
        append(log, made, act)
    join = Join(log, store, {CHANNEL.domain: PlainDomain()}, settings.join)
    join_all(join)
    with Registry(settings.store_url, settings.registry_root) as registry:
        registry.ensure_channel(CHANNEL, "ab" * 32)
        folder = settings.data_dir / "trained"
        (folder / "policy").mkdir(parents=True)
        (folder / "policy" / "adapter_model.safetensors").write_bytes(b"weights")
        registry.register(Manifest(channel=CHANNEL, base_digest="ab" * 32), folder, beside={"note.json": "[]"})
    for each in (join, store, log):
        each.close()


def state(settings):
    """What matters of a deployment: evidence, places, releases with their files, keys."""
    store = EvidenceStore(settings.store_url)
    found = [store.freeze(CHANNEL, SALT).digest, dict(store.positions()), store.counts(CHANNEL)]
    store.close()
    with Registry(settings.store_url, settings.registry_root) as registry:
        found += [registry.releases(CHANNEL), registry.state(CHANNEL), registry.salt(CHANNEL)]
        found += [registry.kept_beside(CHANNEL, 1, "note.json"), registry.manifest(CHANNEL, 1)]
        registry.fetch(CHANNEL, 1, settings.data_dir / "fetched")
    return [*found, pseudonym_key(settings)]


def elsewhere(folder, url=""):
    return Settings(data_dir=folder, store=StoreSettings(url=url))


@pytest.mark.parametrize("name", ["kept", "kept.tar"])
def test_what_was_backed_up_comes_back_elsewhere(tmp_path, name):
    here, there = elsewhere(tmp_path / "here"), elsewhere(tmp_path / "there")
    filled(here)
    store = EvidenceStore(here.store_url)
    beat = Beat(store.database, "join")
    beat.beat({}, now=True)
    backup(here, tmp_path / name)
    beat.end()
    store.close()
    assert (tmp_path / name).stat().st_mode & 0o077 == 0
    contents = restore(there, tmp_path / name)
    assert state(there) == state(here)
    assert differing_keys(there, contents) == []
    store = EvidenceStore(there.store_url)
    assert not processes(store.database), "what ran there runs nowhere here"
    store.close()
    other = there.model_copy(update={"serve": there.serve.model_copy(update={"handle_keys": {}})})
    (other.data_dir / "pseudonym.key").write_bytes(b"x" * 32)
    assert differing_keys(other, contents) == ["pseudonym"]
    # The join goes on where it stood, on the log that came with it.
    log, store = open_log(there), EvidenceStore(there.store_url)
    join = Join(log, store, {CHANNEL.domain: PlainDomain()}, there.join)
    assert join.run_once(0) == 0
    for each in (join, store, log):
        each.close()
    with pytest.raises(WrongState, match="is there already"):
        backup(here, tmp_path / name)


def test_postgresql_and_a_registry_that_is_no_folder_come_back(tmp_path, postgres_url, monkeypatch):
    files = fsspec.filesystem("memory")
    here = Settings(data_dir=tmp_path / "here", store=StoreSettings(url=postgres_url, registry="memory://here"))
    filled(here)
    before = state(here)
    backup(here, tmp_path / "kept")
    with pytest.raises(WrongState, match=r"a database with \d+ tables.*--replace"):
        restore(here, tmp_path / "kept")
    store = EvidenceStore(here.store_url)
    with store.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM evidence")
    store.close()
    files.rm("/here", recursive=True)
    restore(here, tmp_path / "kept", replace=True)
    assert state(here) == before
    with pytest.raises(Misconfigured, match="an empty database of the same kind"):
        restore(elsewhere(tmp_path / "there"), tmp_path / "kept")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match="install PostgreSQL's client programs"):
        backup(here, tmp_path / "more")
    files.rm("/here", recursive=True)


@pytest.fixture
def bucket(tmp_path, monkeypatch, free_port):
    """A bucket of a real S3 server, by its URL."""
    program = TOOLS / "bin" / "versitygw"
    if not program.exists():
        pytest.skip(f"NO S3: no {program} (PLAUDIT_TEST_TOOLS); no registry on S3 was backed up or restored")
    s3fs = pytest.importorskip("s3fs", reason="NO S3 CLIENT: pip install 'plaudit[s3]'; no registry on S3 was tested")
    where = f"127.0.0.1:{free_port()}"
    keys = {"ROOT_ACCESS_KEY": "plaudit", "ROOT_SECRET_KEY": "plaudit-secret"}
    (tmp_path / "s3" / "models").mkdir(parents=True)
    command = [program, "--port", where, "posix", tmp_path / "s3"]
    server = subprocess.Popen(command, env=keys, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{where}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["ROOT_ACCESS_KEY"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["ROOT_SECRET_KEY"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    deadline = time.monotonic() + 300
    while True:
        with contextlib.suppress(OSError), socket.create_connection(where.split(":"), timeout=60):
            break
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.05)
    yield "s3://models"
    server.kill()
    server.wait()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.apart
def test_a_registry_in_s3_is_backed_up_and_comes_back(tmp_path, bucket):
    here = Settings(data_dir=tmp_path / "here", store=StoreSettings(registry=f"{bucket}/here"))
    filled(here)
    before = state(here)
    contents = backup(here, tmp_path / "kept.tar")
    assert contents.count("registry") >= 4  # two manifests, a file of weights, and what is kept beside
    there = Settings(data_dir=tmp_path / "there", store=StoreSettings(registry=f"{bucket}/there"))
    restore(there, tmp_path / "kept.tar")
    assert state(there) == before
    other = Settings(data_dir=tmp_path / "other", store=StoreSettings(registry=f"{bucket}/here"))
    with pytest.raises(WrongState, match=f"there is already {bucket}/here"):
        restore(other, tmp_path / "kept.tar")
    restore(other, tmp_path / "kept.tar", replace=True)
    assert state(other) == before


def test_a_store_that_does_not_answer_is_said(tmp_path):
    with pytest.raises(StoreUnavailable):
        backup(elsewhere(tmp_path, "postgresql+psycopg://nobody@127.0.0.1:1/none"), tmp_path / "kept")


def test_a_damaged_backup_restores_nothing(tmp_path):
    here = elsewhere(tmp_path / "here")
    filled(here, acts=1)
    backup(here, tmp_path / "kept")
    (victim,) = (tmp_path / "kept" / "registry").rglob("adapter_model.safetensors")
    whole = victim.read_bytes()

    def refused(why):
        with pytest.raises(BadArtifact, match=why):
            restore(elsewhere(tmp_path / "there"), tmp_path / "kept")
        assert not (tmp_path / "there").exists()

    victim.write_bytes(b"other")
    refused("adapter_model.safetensors has SHA-256")
    victim.unlink()
    refused("no file")
    victim.write_bytes(whole)
    contents = tmp_path / "kept" / CONTENTS
    said = json.loads(contents.read_text())
    outside = tmp_path / "outside"
    outside.write_bytes(whole)
    contents.write_text(json.dumps({**said, "files": {**said["files"], "../outside": [module._digest(outside), 7]}}))
    refused("outside")
    contents.write_text(json.dumps({**said, "format": 99}))
    refused("format 99")
    contents.unlink()
    refused("not a backup, or not a complete one")
    (tmp_path / "kept.tar").write_bytes(b"no tar")
    with pytest.raises(BadArtifact, match="cannot be unpacked"):
        restore(elsewhere(tmp_path / "there"), tmp_path / "kept.tar")


def test_nothing_is_replaced_unasked_or_under_a_process_that_runs(tmp_path):
    here, there = elsewhere(tmp_path / "here"), elsewhere(tmp_path / "there")
    filled(here)
    filled(there, acts=3)
    backup(here, tmp_path / "kept")
    before = state(there)
    with pytest.raises(WrongState, match=r"there is already .*evidence\.sqlite, .*log\.sqlite"):
        restore(there, tmp_path / "kept")
    assert state(there) == before
    store = EvidenceStore(there.store_url)
    beat = Beat(store.database, "join")
    beat.beat({}, now=True)
    with pytest.raises(WrongState, match=r"join .* stop them first"):
        restore(there, tmp_path / "kept", replace=True)
    beat.end()
    store.close()
    restore(there, tmp_path / "kept", replace=True)
    assert state(there) == state(here)
    assert [path.name for path in there.data_dir.glob("evidence.sqlite.replaced-*")], "what was there was put aside"


WRITE = """
import sys, time, uuid
from plaudit.eventlog import open_log
from plaudit.settings import Settings
from plaudit.testing.evidence import append, make_interaction
log = open_log(Settings(data_dir=sys.argv[1]))
print("ready", flush=True)
while True:
    append(log, make_interaction(uuid.uuid4().hex))
    time.sleep(0.002)  # what is joined below stays little
"""


@pytest.mark.apart
def test_a_backup_under_writes_has_a_log_that_holds_all_that_its_store_has_read(tmp_path, monkeypatch):
    here = elsewhere(tmp_path / "here")
    filled(here, acts=1)
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(here.data_dir)], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"ready\n"
    log, store = open_log(here), EvidenceStore(here.store_url)
    join, stop = Join(log, store, {CHANNEL.domain: PlainDomain()}, here.join), threading.Event()
    joining = threading.Thread(target=join.run, args=(stop,))
    copy, copied = module._copy_sqlite, []

    def copy_once_the_join_has_read_more(source, target):
        """However quick a backup is, the log and the store move on before and between its copies."""
        read, deadline = store.counts(CHANNEL).interactions, time.monotonic() + 300
        while store.counts(CHANNEL).interactions <= read:
            assert joining.is_alive(), "the join has ended"
            assert time.monotonic() < deadline, f"the join stays at {read} interactions"
            time.sleep(0.001)
        copied.append(source.name)
        copy(source, target)

    monkeypatch.setattr(module, "_copy_sqlite", copy_once_the_join_has_read_more)
    joining.start()
    try:
        for number in range(3):
            backup(here, tmp_path / f"kept{number}")
    finally:
        stop.set()
        joining.join()
        writer.kill()
        writer.wait()
        writer.stdout.close()
        store.close()
        log.close()
    assert len(copied) == 6, "a store and a log for each backup"
    for number in range(3):
        there = elsewhere(tmp_path / f"there{number}")
        restore(there, tmp_path / f"kept{number}")
        log, store = open_log(there), EvidenceStore(there.store_url)
        join = Join(log, store, {CHANNEL.domain: PlainDomain()}, there.join)
        before = store.counts(CHANNEL).interactions
        join_all(join)  # refuses a store ahead of its log
        assert store.counts(CHANNEL).interactions > before > 1, "what was not read yet is in the log"
        for each in (join, store, log):
            each.close()
