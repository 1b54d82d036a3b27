"""A person is found under the key that named them: with another one commands and servers refuse, and find nobody."""

import json

import pytest
import structlog
from plaudit.cli import app
from plaudit.errors import Misconfigured
from plaudit.release.registry import Registry
from plaudit.serving.handle import pseudonym
from plaudit.serving.keys import agreed_pseudonym_key, own_key
from plaudit.settings import load_settings
from plaudit.store.database import Database
from typer.testing import CliRunner


@pytest.fixture
def make(tmp_path, store_url):
    """Settings of a machine with a data directory of its own, over one store."""

    def made(machine, *more):
        own = [f"data_dir={tmp_path / machine}", f"store.url={store_url}", f"store.registry={tmp_path / 'registry'}"]
        return load_settings(overrides=[*own, *more], environ={})

    return made


@pytest.fixture
def database(store_url):
    opened = Database(store_url)
    yield opened
    opened.close()


def test_the_first_key_is_the_deployments_and_another_is_refused(make, database):
    key = agreed_pseudonym_key(make("one"), database)
    assert agreed_pseudonym_key(make("one"), database) == key
    with pytest.raises(Misconfigured, match=r"pseudonym\.key is not there: the people"):
        agreed_pseudonym_key(make("two"), database)
    assert not (make("two").data_dir / "pseudonym.key").exists(), "a key of its own would find nobody"
    with pytest.raises(Misconfigured, match=r"the key of serve\.pseudonym_key is another"):
        agreed_pseudonym_key(make("two", "serve.pseudonym_key=another-key-of-people"), database)
    own_key(make("two").data_dir / "pseudonym.key")
    with pytest.raises(Misconfigured, match=r"pseudonym\.key is another"):
        agreed_pseudonym_key(make("two"), database)


def run(*words):
    done = CliRunner().invoke(app, [*words])
    structlog.reset_defaults()  # its standard error is closed
    return done.exit_code, done.stdout, done.exception


@pytest.mark.parametrize("words", [("privacy", "erase", "ana"), ("raters", "quarantine", "a/b", "ana", "--person")])
def test_nobody_is_erased_or_quarantined_under_a_key_that_named_nobody(make, database, tmp_path, store_url, words):
    where = ["--set", f"store.url={store_url}", "--set", f"store.registry={tmp_path / 'registry'}"]
    given = [*words, *(["--reason", "r"] if "quarantine" in words else [])]
    code, _, error = run(*given, *where, "--data-dir", str(tmp_path / "elsewhere"))
    assert (code, isinstance(error, Misconfigured)) == (1, True), error
    assert not (tmp_path / "elsewhere" / "pseudonym.key").exists()
    agreed_pseudonym_key(make("serve"), database)
    code, _, error = run(*given, *where, "--data-dir", str(tmp_path / "elsewhere"))
    assert (code, isinstance(error, Misconfigured)) == (1, True), error
    code, out, error = run(*given, *where, "--data-dir", str(tmp_path / "serve"))
    assert code == 0, (out, error)


def test_a_receipt_is_verified_without_making_a_key(make, database, tmp_path, store_url):
    key = agreed_pseudonym_key(make("serve"), database)
    Registry(store_url, str(tmp_path / "registry")).close()
    where = ["--set", f"store.url={store_url}", "--set", f"store.registry={tmp_path / 'registry'}"]
    receipt = tmp_path / "receipt.json"
    assert run("privacy", "erase", "ana", "--out", str(receipt), *where, "--data-dir", str(tmp_path / "serve"))[0] == 0
    assert json.loads(receipt.read_text())["receipt"]["person"] == pseudonym(key, "default", "ana")
    assert run("privacy", "verify", str(receipt), "--data-dir", str(tmp_path / "serve"))[0] == 0
    code, _, error = run("privacy", "verify", str(receipt), "--data-dir", str(tmp_path / "elsewhere"))
    assert (code, "say --public-key" in str(error)) == (1, True)
    assert not (tmp_path / "elsewhere").exists()
    public = json.loads(receipt.read_text())["public_key"]
    assert run("privacy", "verify", str(receipt), "--public-key", public, "--data-dir", str(tmp_path / "x"))[0] == 0


@pytest.mark.parametrize(
    "words", [("privacy", "erase", "ana"), ("privacy", "receipt", "01a22653-4c22-7cb7-a427-0a3630ab427f")]
)
def test_a_mistyped_directory_is_said_and_not_made(tmp_path, words):
    code, _, error = run(*words, "--data-dir", str(tmp_path / "typo"))
    assert (code, isinstance(error, Misconfigured)) == (1, True), error
    assert not (tmp_path / "typo").exists()
