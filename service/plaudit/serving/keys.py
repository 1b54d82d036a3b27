"""The secret keys of serving: those that sign handles and the one that makes pseudonyms.

What enters: settings, else files in the data directory, which are made once with mode 0600. What leaves: bytes.
Never logs a key. Handle keys rotate by settings; the pseudonym key never does, or every rater would become another.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from plaudit.errors import Misconfigured
from plaudit.serving.handle import HandleSigner
from plaudit.settings import Settings
from plaudit.store.files import private_folder

_KEY_BYTES = 32
_LEAST_BYTES = 16


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
    return own_key(settings.data_dir / "pseudonym.key")


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
