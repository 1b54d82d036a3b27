"""The protos, what is generated from them, and what the code says about them."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from plaudit import errors
from plaudit.v1 import errors_pb2

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
GENERATED = ROOT / "service" / "plaudit" / "v1"
PREFIX = "ERROR_REASON_"
# Bases of the tree: they are raised by nobody, and what they say of themselves is a default for what lies below.
BASES = {
    errors.PlauditError,
    errors.RequestRefused,
    errors.Busy,
    errors.CallEnded,
    errors.Broken,
    errors.RecordUnusable,
}


@pytest.fixture(scope="module")
def buf():
    program = shutil.which("buf", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("NO BUF: install the dependency group proto; the protos were not linted")
    return program


@pytest.mark.apart
def test_the_protos_pass_the_linter(buf):
    linted = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.apart
def test_the_protos_are_formatted(buf):
    formatted = subprocess.run([buf, "format", "--diff", "--exit-code"], cwd=ROOT, capture_output=True, text=True)
    assert formatted.returncode == 0, formatted.stdout + formatted.stderr


@pytest.mark.apart
def test_the_generated_code_is_that_of_the_protos(tmp_path):
    pytest.importorskip("grpc_tools", reason="NO GENERATOR: install the dependency group proto")
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", PROTOS, *outputs, *sources], cwd=PROTOS, check=True
    )
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "plaudit" / "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in GENERATED.glob("*_pb2*.py*")}
    assert fresh.keys() == committed.keys()
    assert [name for name in fresh if fresh[name] != committed[name]] == []


@pytest.mark.parametrize(
    ("package", "pattern", "header"),
    [
        ("protobuf", "*_pb2.py", r"# Protobuf Python Version: (\S+)"),
        ("grpcio", "*_pb2_grpc.py", r"GRPC_GENERATED_VERSION = '(\S+)'"),
    ],
)
def test_the_oldest_runtime_allowed_is_the_one_that_the_generated_code_demands(package, pattern, header):
    versions = {version for path in GENERATED.glob(pattern) for version in re.findall(header, path.read_text())}
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (bound,) = (each.removeprefix(f"{package}>=") for each in dependencies if each.startswith(f"{package}>="))
    assert versions == {bound}


def classes(base=errors.PlauditError):
    yield base
    for below in base.__subclasses__():
        yield from classes(below)


def test_every_reason_is_given_by_one_class_and_every_class_has_a_reason():
    documented = {name.removeprefix(PREFIX) for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name} - {
        "UNSPECIFIED"
    }
    raised = [each.reason for each in classes() if each not in BASES and each.__module__ == errors.__name__]
    assert sorted(raised) == sorted(documented)


def test_every_reason_documents_the_status_that_its_class_gives():
    text = (PROTOS / "plaudit" / "v1" / "errors.proto").read_text()
    documented = dict(re.findall(rf"// ([A-Z_]+): [^\n]*\n  {PREFIX}([A-Z_]+) =", text))
    statuses = {reason: status for status, reason in documented.items()}
    given = {each.reason: each.code for each in classes() if each not in BASES and each.__module__ == errors.__name__}
    assert {reason: given[reason] for reason in statuses} == statuses
