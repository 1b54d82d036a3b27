"""The secret keys of serving: those that sign handles and the one that makes pseudonyms.

What enters: settings, else files in the data directory, which are made once with mode 0600. What leaves: bytes.
Never logs a key. Handle keys rotate by settings; the pseudonym key never does, or every rater would become another.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from plaudit.errors import Misconfigured
from plaudit.serving.handle import HandleSigner
from plaudit.settings import Settings
from plaudit.store.database import Database
from plaudit.store.files import private_folder
from plaudit.store.key_marks import first_mark, mark_of

_KEY_BYTES = 32
_LEAST_BYTES = 16
_PSEUDONYM, _PSEUDONYM_FILE = "pseudonym", "pseudonym.key"


def handle_signer(settings: Settings) -> HandleSigner:
    """The signer of the settings' keys, or of the data directory's own key if the settings give none."""
    keys = {name: value.get_secret_value().encode() for name, value in settings.serve.handle_keys.items()}
    for name, key in keys.items():
        _check(f"serve.handle_keys.{name}", key)
    current = settings.serve.handle_key_id or next(reversed(keys), "")
    if not keys:
        current = settings.serve.handle_key_id or "local"
        keys = {current: own_key(settings.data_dir / "handle.key")}
    if current not in keys:
        raise Misconfigured(
            f"serve.handle_key_id is {current!r}, which is not among serve.handle_keys ({', '.join(keys)})",
            setting="serve.handle_key_id",
        )
    return HandleSigner(keys, current, settings.serve.handle_ttl_seconds)


def pseudonym_key(settings: Settings) -> bytes:
    """The key of the pseudonyms: the settings' or the data directory's own."""
    given = settings.serve.pseudonym_key.get_secret_value().encode()
    if given:
        _check("serve.pseudonym_key", given)
        return given
    return own_key(settings.data_dir / _PSEUDONYM_FILE)


def agreed_pseudonym_key(settings: Settings, database: Database, *, names: bool = True) -> bytes:
    """The key of the pseudonyms, if it is the one that this store's people were named by; raises Misconfigured.

    Whoever names people makes it, if there is none yet, and it is the store's from then on. Who looks for one of them
    (`names` is False) makes none: under a key of its own it would find nobody, and say that nobody was there.
    """
    given, file = settings.serve.pseudonym_key.get_secret_value(), settings.data_dir / _PSEUDONYM_FILE
    known = mark_of(database, _PSEUDONYM)
    if not (given or file.exists()) and (known or not names):
        raise _another(f"serve.pseudonym_key is unset and {file} is not there")
    key = pseudonym_key(settings)
    mark = key_mark(key)
    if not known:
        known = first_mark(database, _PSEUDONYM, mark) if names else mark
    if known != mark:
        raise _another(f"the key of {'serve.pseudonym_key' if given else file} is another")
    return key


def _another(what: str) -> Misconfigured:
    return Misconfigured(
        f"{what}: the people in this store are found under the pseudonym key alone that named them. Give every process "
        "the same serve.pseudonym_key, or the data directory that has the key. If it is lost for good, delete the row "
        "of the store's table key_mark: then every rater counts as another person from now on",
        setting="serve.pseudonym_key",
    )


def key_mark(key: bytes) -> str:
    """Equal keys give equal marks, and no mark gives its key away."""
    return hmac.new(key, b"plaudit backup", hashlib.sha256).hexdigest()[:16]


def _check(setting: str, key: bytes) -> None:
    if len(key) < _LEAST_BYTES:
        raise Misconfigured(f"{setting} has {len(key)} bytes; give at least {_LEAST_BYTES}", setting=setting)


def own_key(path: Path) -> bytes:
    """The key in `path`, made if there is none. Processes that start together agree: the first link wins."""
    if not path.exists():
        private_folder(path.parent)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mode 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(name)
    key = path.read_bytes()
    _check(str(path), key)
    return key
