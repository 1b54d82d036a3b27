"""What comes from elsewhere: nothing is unpickled, and no file of a release is parsed before its digest is compared."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from plaudit.engine import adapter_files
from plaudit.errors import BadArtifact
from plaudit.release import artifacts
from plaudit.release.manifest import ADAPTER_WEIGHTS, Adapter, Manifest
from plaudit.release.registry import Registry
from plaudit.types import Channel

ROOT = Path(__file__).resolve().parents[2]
CHANNEL, BASE = Channel("plain", "acme"), "b" * 64


def test_no_code_reads_a_pickle():
    """Own bytes that the conformance kit has just made are the one exception."""
    root = Path(__file__).resolve().parents[2]
    reads = re.compile(r"\b(pickle|dill|joblib|shelve|marshal)\.(load|loads|open)\b|\btorch\.load\(|weights_only=False")
    sources = [path for top in ("service", "plugins", "benchmarks", "scripts") for path in (root / top).rglob("*.py")]
    found = [path.relative_to(root).as_posix() for path in sources if reads.search(path.read_text(encoding="utf-8"))]
    assert found == ["service/plaudit/testing/conformance.py"]


def test_the_image_begins_from_a_base_that_its_digest_names():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (base,) = (line.partition("=")[2] for line in lines if line.startswith("ARG PYTHON_IMAGE"))
    assert re.fullmatch(r"python:[\w.-]+@sha256:[0-9a-f]{64}", base)
    assert {line.split()[1] for line in lines if line.startswith("FROM ")} == {"${PYTHON_IMAGE}"}


@pytest.fixture
def registered(tmp_path):
    """A registry with one release, and the folder of its files."""
    trained = tmp_path / "trained"
    (trained / "policy").mkdir(parents=True)
    (trained / ADAPTER_WEIGHTS).write_bytes(b"weights")
    (trained / "policy" / "adapter_config.json").write_text("{}")
    adapter = Adapter(digest=hashlib.sha256(b"weights").hexdigest(), rank=8, alpha=16, layers=10)
    with Registry(f"sqlite:///{tmp_path / 'store.sqlite'}", str(tmp_path / "registry")) as registry:
        registry.ensure_channel(CHANNEL, BASE)
        draft = Manifest(channel=CHANNEL, base_digest=BASE, adapter=adapter, temperature=0.7, parent=0)
        row = registry.register(draft, trained)
        (weights,) = (tmp_path / "registry").rglob("adapter_model.safetensors")
        yield registry, row.version, weights.parent.parent


@pytest.mark.parametrize("name", [ADAPTER_WEIGHTS, "policy/adapter_config.json"])
def test_a_file_that_was_changed_is_refused_by_its_digest_and_never_reaches_a_parser(
    registered, tmp_path, monkeypatch, name
):
    registry, version, folder = registered
    (folder / name).write_bytes(b"\x80\x04anything that a parser might choke on, or obey")
    for module, function in ((adapter_files, "load_file"), (json, "loads")):
        monkeypatch.setattr(module, function, lambda *_, **__: pytest.fail("parsed before its digest was compared"))
    registry_manifest = registry.manifest  # its own digest is compared, and it is read by pydantic
    assert registry_manifest(CHANNEL, version).version == version
    with pytest.raises(BadArtifact, match="SHA-256") as caught:
        registry.fetch(CHANNEL, version, tmp_path / "replica")
    assert caught.value.metadata["digest"] != caught.value.metadata["expected"]
    assert not [path for path in (tmp_path / "replica").rglob("*") if path.is_file()]


def test_a_manifest_that_was_changed_is_refused_by_its_digest_and_never_parsed(registered, monkeypatch):
    registry, version, folder = registered
    (folder / artifacts.MANIFEST_NAME).write_bytes(b"{")
    monkeypatch.setattr(Manifest, "from_json", lambda *_: pytest.fail("parsed before its digest was compared"))
    with pytest.raises(BadArtifact, match="SHA-256"):
        registry.manifest(CHANNEL, version)
