"""Files of releases, written once, on a local disk or any fsspec file system.

Enters: a folder of files and their digests. Leaves: the same files under `<domain>/<tenant>/<version>-<digest12>/`,
and verified copies of them. Each file is written under a temporary name and moved; the manifest is moved last, so
that a folder with a manifest is whole. Never overwrites, and never opens a file that could run code.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from plaudit.errors import BadArtifact, InvalidField
from plaudit.release.manifest import MANIFEST_NAME, Manifest, check_artifact_path
from plaudit.store.files import full_is_unavailable
from plaudit.types import Channel

_CHANNEL_PART = re.compile(r"[a-z0-9_-]{1,64}")
_CHUNK = 1 << 20


def check_channel(channel: Channel) -> None:
    """Raises InvalidField for a channel whose parts could not be folder names."""
    for field, part in (("domain", channel.domain), ("tenant", channel.tenant)):
        if not _CHANNEL_PART.fullmatch(part):
            raise InvalidField(f"{field} {part!r} must be 1 to 64 characters of a-z, 0-9, '_' and '-'", field=field)


def release_folder(channel: Channel, version: int, digest: str) -> str:
    """Where a release lies below the root."""
    check_channel(channel)
    return f"{channel.domain}/{channel.tenant}/{version}-{digest[:12]}"


def file_digest(path: Path) -> str:
    """SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return _digest(file)


def list_artifacts(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path of every file in a local folder; raises BadArtifact for a file of a refused kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise BadArtifact(f"{name} is a link; a release holds its own files: copy what it points to")
        if not path.is_file() or name == MANIFEST_NAME:
            continue
        try:
            check_artifact_path(name)
        except ValueError as error:
            raise BadArtifact(str(error)) from error
        found[name] = file_digest(path)
    return found


class ArtifactStore:
    """Releases' files below one root."""

    def __init__(self, root: str) -> None:
        self._fs, path = fsspec.core.url_to_fs(root)
        self._root = str(path).rstrip("/")

    def write(self, manifest: Manifest, source: Path) -> None:
        """Writes a release's files and, last, its manifest; writing the same release again changes nothing.

        Raises StoreUnavailable if the disk is full.
        """
        folder = self._folder(manifest.channel, _version(manifest), manifest.digest)
        with full_is_unavailable(f"the registry {self._root}"):
            for name, expected in sorted(manifest.artifacts.items()):
                with (source / name).open("rb") as file:
                    self._write_once(f"{folder}/{name}", file, expected)
            text = manifest.to_json().encode()
            self._write_once(f"{folder}/{MANIFEST_NAME}", io.BytesIO(text), manifest.digest)

    def manifest(self, channel: Channel, version: int, digest: str) -> Manifest:
        """A release's manifest, verified against `digest`; raises BadArtifact."""
        path = f"{self._folder(channel, version, digest)}/{MANIFEST_NAME}"
        try:
            text: bytes = self._fs.cat_file(path)
        except FileNotFoundError as error:
            raise _missing(f"{channel}@{version}", MANIFEST_NAME, digest) from error
        _compare(f"{channel}@{version}", MANIFEST_NAME, hashlib.sha256(text).hexdigest(), digest)
        try:
            return Manifest.from_json(text)
        except ValueError as error:
            raise BadArtifact(
                f"{channel}@{version}: {MANIFEST_NAME} has its digest but is not a manifest of this version of "
                f"Plaudit: {error}",
                digest=digest,
                expected=digest,
            ) from error

    def fetch(self, manifest: Manifest, into: Path) -> Path:
        """Copies a release below `into`, verifies every file, and returns its folder; a whole copy is kept."""
        version, digest = _version(manifest), manifest.digest
        target = into / release_folder(manifest.channel, version, digest)
        if _is_whole(target, manifest.artifacts, digest):
            return target
        partial = into / f".fetch-{uuid.uuid4().hex}"
        try:
            with full_is_unavailable(f"the folder {into}"):
                self._copy(manifest, partial)
                _put_in_place(partial, target, manifest.artifacts, digest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    def keep_beside(self, channel: Channel, version: int, digest: str, name: str, text: str) -> None:
        """Writes a text beside a release: no part of it or of its digest, never copied to replicas, erasable."""
        folder = self._folder(channel, version, digest)
        self._fs.makedirs(folder.rpartition("/")[0], exist_ok=True)
        with full_is_unavailable(f"the registry {self._root}"):
            self._fs.pipe_file(f"{folder}.{name}", text.encode())

    def kept_beside(self, channel: Channel, version: int, digest: str, name: str) -> str | None:
        """The text that stands beside a release; None if there is none."""
        try:
            content: bytes = self._fs.cat_file(f"{self._folder(channel, version, digest)}.{name}")
        except FileNotFoundError:
            return None
        return content.decode()

    def remove_beside(self, channel: Channel, version: int, digest: str, name: str) -> bool:
        """Deletes a text that stands beside a release; whether there was one."""
        try:
            self._fs.rm_file(f"{self._folder(channel, version, digest)}.{name}")
        except FileNotFoundError:
            return False
        return True

    def _copy(self, manifest: Manifest, into: Path) -> None:
        name = f"{manifest.channel}@{manifest.version}"
        folder = self._folder(manifest.channel, _version(manifest), manifest.digest)
        into.mkdir(parents=True)
        for path, expected in manifest.artifacts.items():
            check_artifact_path(path)
            copy = into / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._fs.get_file(f"{folder}/{path}", str(copy))
            except FileNotFoundError as error:
                raise _missing(name, path, expected) from error
            _compare(name, path, file_digest(copy), expected)
        (into / MANIFEST_NAME).write_bytes(manifest.to_json().encode())

    def _write_once(self, path: str, source: BinaryIO, expected: str) -> None:
        if self._fs.exists(path):
            with self._fs.open(path, "rb") as present:
                found = _digest(present)
            if found != expected:
                raise BadArtifact(
                    f"{path} exists with SHA-256 {found}, and {expected} was to be written; releases are never "
                    "overwritten: remove the damaged file",
                    digest=found,
                    expected=expected,
                )
            return
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        partial = f"{path.rpartition('/')[0]}/.{uuid.uuid4().hex}.partial"
        try:
            with self._fs.open(partial, "wb") as file:
                found = _digest(source, copy_to=file)
                _make_durable(self._fs, file)
            _compare("the release to be registered", path.rpartition("/")[2], found, expected)
            self._fs.mv(partial, path)
        finally:
            if self._fs.exists(partial):
                self._fs.rm_file(partial)

    def _folder(self, channel: Channel, version: int, digest: str) -> str:
        return f"{self._root}/{release_folder(channel, version, digest)}"


def _version(manifest: Manifest) -> int:
    if manifest.version is None:
        raise ValueError(f"the manifest of {manifest.channel} has no version; register it first")
    return manifest.version


def _digest(file: BinaryIO, copy_to: Any = None) -> str:
    """SHA-256 of what is left of `file`, which is copied along if asked."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    return digest.hexdigest()


def _make_durable(fs: Any, file: Any) -> None:
    if isinstance(fs, LocalFileSystem):
        file.flush()
        os.fsync(file.fileno())


def _compare(release: str, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise BadArtifact(
            f"{release}: {name} has SHA-256 {found}, its record says {expected}; restore it from a backup or roll "
            "back and train again",
            digest=found,
            expected=expected,
        )


def _missing(release: str, name: str, expected: str) -> BadArtifact:
    return BadArtifact(
        f"{release}: {name} is missing (SHA-256 {expected}); restore it from a backup or roll back and train again",
        digest="",
        expected=expected,
    )


def _is_whole(folder: Path, artifacts: Mapping[str, str], digest: str) -> bool:
    expected = {**artifacts, MANIFEST_NAME: digest}
    return all((folder / name).is_file() and file_digest(folder / name) == wanted for name, wanted in expected.items())


def _put_in_place(partial: Path, target: Path, artifacts: Mapping[str, str], digest: str) -> None:
    """Moves a verified copy to its place; a whole copy that a rival put there stays, a damaged one goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not _is_whole(target, artifacts, digest):
        aside = target.with_name(f".damaged-{uuid.uuid4().hex}")
        target.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        partial.rename(target)
    except OSError:
        if not _is_whole(target, artifacts, digest):
            raise
