"""Files that a channel's turns leave for the next one, on the learner's disk (docs/adr/0027).

Enter: heads (JSON) and bodies (bytes). Leave: the same, or nothing: a file that is damaged or made by another base or
machine is passed over, and one that was half written has another name. `forget` takes a channel's files away at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import structlog

from plaudit.errors import StoreUnavailable
from plaudit.store.files import private_folder
from plaudit.types import Channel

log = structlog.get_logger(__name__)

FOLDER, STAMP = "kept", "stamp"
_DIGEST_BYTES, _PIECE = 32, 1 << 22

Count = Callable[[str, str, int], None]
"""Is told of what kind ("features", "answers") how many were "kept", "computed", or of a file that it was "damaged"."""


def folder_of(data_dir: Path, channel: Channel) -> Path:
    """Where a channel's files lie."""
    return data_dir / FOLDER / urllib.parse.quote(f"{channel.domain}@{channel.tenant}", safe="@")


def forget(data_dir: Path, channel: Channel) -> None:
    """Remove what turns of a channel left.

    A turn that is under way writes nothing afterwards. The channel's next turn computes everything itself.
    """
    aside = data_dir / f"{FOLDER}.{secrets.token_hex(8)}"
    try:
        folder_of(data_dir, channel).rename(aside)  # at once for whoever reads or writes
    except FileNotFoundError:
        return
    shutil.rmtree(aside)


def forget_if_erased(data_dir: Path, channel: Channel, erasures: int) -> None:
    """Forget the channel if people were erased since its files were begun, when `erasures` were fewer."""
    try:
        stamp = (folder_of(data_dir, channel) / STAMP).read_text()
    except FileNotFoundError:
        return
    if stamp.partition(" ")[0] != str(erasures):
        forget(data_dir, channel)


class Files:
    """A channel's folder, as it was when the turn began: after so many erasures.

    Without room (`most_bytes` 0, a full disk) nothing is read and nothing is written.
    """

    def __init__(self, data_dir: Path, channel: Channel, *, erasures: int, most_bytes: int, count: Count) -> None:
        self._folder, self._count = folder_of(data_dir, channel), count
        self._facts: dict[str, str] = {}
        self.most_bytes = most_bytes
        self._stamp = ""
        try:
            forget_if_erased(data_dir, channel, erasures)
            self._stamp = self._stamped(erasures) if most_bytes else ""
        except (OSError, StoreUnavailable) as error:
            log.warning("nothing is kept for the next turn", why=str(error))

    def _stamped(self, erasures: int) -> str:
        """What marks the folder until it is forgotten."""
        private_folder(self._folder)
        try:
            return (self._folder / STAMP).read_text()
        except FileNotFoundError:
            made = f"{erasures} {secrets.token_hex(16)}"
            self._put(STAMP, lambda file: file.write(made.encode()))
            return made

    def made_by(self, facts: Mapping[str, str]) -> None:
        """What files must have been made by to be used."""
        self._facts = dict(facts)

    def counted(self, kind: str, found: str, number: int) -> None:
        """Count, if there is anything to count."""
        if number:
            self._count(kind, found, number)

    def read(self, name: str) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.uint8]]] | None:
        """Head and body of a file; None if there is none that may be used."""
        path = self._folder / name
        if not self._stamp or not path.exists():
            return None
        try:
            raw = np.memmap(path, np.uint8, "r")
            at = len(raw) - _DIGEST_BYTES
            sha = hashlib.sha256()
            for begin in range(0, at, _PIECE):
                sha.update(raw[begin : min(begin + _PIECE, at)].data)
            if sha.digest() != raw[at:].tobytes():
                raise ValueError("its digest is another")
            size = int.from_bytes(raw[:8].tobytes(), "little")
            head: dict[str, Any] = json.loads(raw[8 : 8 + size].tobytes())
        except (OSError, ValueError, IndexError) as error:
            self.counted(name, "damaged", 1)
            log.warning("what was kept is damaged and passed over", file=name, why=str(error))
            return None
        return (head, raw[8 + size : at]) if head["facts"] == self._facts else None

    def write(self, name: str, head: Mapping[str, Any], body: Callable[[], Iterable[Any]]) -> None:
        """Replace a file at once, unless somebody forgot the channel since the turn began."""

        def written(file: BinaryIO) -> None:
            sha = hashlib.sha256()
            first = json.dumps({"facts": self._facts, **head}).encode()
            for piece in (len(first).to_bytes(8, "little"), first, *body()):
                sha.update(piece)
                file.write(piece)
            file.write(sha.digest())

        try:
            if self._is_known():
                self._put(name, written)
        except FileNotFoundError:
            log.info("what was kept is forgotten", file=name)
        except OSError as error:
            log.warning("nothing is kept for the next turn", file=name, why=str(error))

    def _is_known(self) -> bool:
        """Whether nobody forgot the channel since the turn began. Raises FileNotFoundError if somebody did."""
        return bool(self._stamp) and (self._folder / STAMP).read_text() == self._stamp

    def leave(self, name: str, text: str, pattern: str, newest: int) -> None:
        """Write a text under its own name, and remove all but the `newest` files, by name, that match the pattern.

        Nothing is written if it is larger than `most_bytes`, or if somebody forgot the channel since the turn began.
        """
        content = text.encode()
        if len(content) > self.most_bytes:
            why = f"{len(content)} bytes; learn.kept_mb allows {self.most_bytes}"
            log.warning("a file was not written", file=name, why=why)
            return
        try:
            if self._is_known():
                self._put(name, lambda file: file.write(content))
                self.thin(pattern, newest)
        except FileNotFoundError:
            log.info("what was kept is forgotten", file=name)
        except OSError as error:
            log.warning("a file was not written", file=name, why=str(error))

    def thin(self, pattern: str, newest: int) -> None:
        """Remove all but the `newest` files, by name, that match the pattern. Raises OSError."""
        several = sorted(self._folder.glob(pattern))
        for old in several[: max(0, len(several) - newest)]:
            old.unlink(missing_ok=True)

    def _put(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        path = self._folder / f"{name}.new"
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        path.replace(self._folder / name)
