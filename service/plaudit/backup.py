"""Backups: everything that one deployment keeps, in one folder or tar file with digests, and back from it.

Enters: settings. Leaves: a folder with the database (SQLite by its online backup, PostgreSQL by pg_dump), the embedded
log or the outbox before Kafka, the registry's files, the keys of this data directory, and `backup.json` with the
SHA-256 of each. Processes may go on meanwhile. Topics of Kafka are not in it.

A backup is made in steps, so that no part names what an earlier one lacks: 1 the database; 2 the log, which holds all
that the database has read; 3 the registry, which holds every release that the database names; 4 keys; 5 `backup.json`.
A backup without that file is no backup. Restoring verifies all of it first, and puts the database back last.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import sqlalchemy as sa

from plaudit import __version__
from plaudit.errors import BadArtifact, Misconfigured, StoreUnavailable, WrongState
from plaudit.eventlog import LOG_FILE
from plaudit.eventlog.outbox import OUTBOX_FILE
from plaudit.serving.keys import key_mark
from plaudit.settings import Settings
from plaudit.store.database import SCHEMA, Database
from plaudit.store.files import full_is_unavailable, private_database, private_folder
from plaudit.store.processes import PROCESS, processes

FORMAT = 1
CONTENTS = "backup.json"
_STORES = {"sqlite": "store.sqlite", "postgresql": "store.dump"}
_KEYS, _REGISTRY = "keys", "registry"
_CHUNK = 1 << 20
_SIDE_FILES = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a backup holds: `files` are (SHA-256, bytes) by path. `keys`: marks by which a key can be told, not keys."""

    format: int = FORMAT
    plaudit: str = __version__
    created_at: str = ""
    store: str = ""
    schema: str = SCHEMA
    log: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files.values())

    def count(self, folder: str) -> int:
        """Files in a folder."""
        return sum(path.startswith(f"{folder}/") for path in self.files)


def backup(settings: Settings, target: Path) -> Contents:
    """Makes a backup in a new folder, or a file if the name ends in .tar; raises WrongState if there is one."""
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise WrongState(f"{target} is there already; name a new folder or a new .tar file for each backup")
    if target.suffix != ".tar":
        return _write(settings, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as work:
        contents = _write(settings, Path(work) / "backup")
        partial = Path(work) / "backup.tar"
        with full_is_unavailable(f"the folder {target.parent}"):
            with tarfile.open(partial, "w") as tar:
                for path in (*contents.files, CONTENTS):
                    tar.add(Path(work) / "backup" / path, arcname=path, recursive=False)
            partial.chmod(0o600)
            partial.rename(target)
    return contents


def restore(settings: Settings, source: Path, *, replace: bool = False) -> Contents:
    """Puts a backup where the settings say, after every digest was checked.

    Raises BadArtifact for a backup that is not whole, WrongState if something is there already; with `replace` that is
    put aside under a name of its own (a PostgreSQL database's tables are dropped), unless processes run on it.
    """
    with _unpacked(source) as folder:
        contents = verified(folder)
        _check_target(settings, contents, replace)
        for name in sorted(contents.files):
            if name.startswith(f"{_KEYS}/"):
                _put_file(folder / name, settings.data_dir / name.partition("/")[2], replace)
        for name in (LOG_FILE, OUTBOX_FILE):
            if name in contents.files:
                _put_file(folder / name, settings.data_dir / name, replace)
        _put_registry(settings, folder, contents)
        _put_store(settings, folder, contents, replace)
    return contents


def verified(folder: Path) -> Contents:
    """The contents of a backup, every file of it checked; raises BadArtifact."""
    try:
        said = json.loads((folder / CONTENTS).read_text())
        contents = Contents(**{**said, "files": {name: tuple(each) for name, each in said["files"].items()}})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadArtifact(
            f"{folder} has no readable {CONTENTS} ({type(error).__name__}): it is not a backup, or not a complete one"
        ) from error
    if contents.format != FORMAT:
        raise BadArtifact(f"{folder} is a backup of format {contents.format}; this release reads {FORMAT}")
    for name, (digest, _) in contents.files.items():
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve())
        found = _digest(path) if inside and path.is_file() else "no file"
        if found != digest:
            raise BadArtifact(f"{name} has SHA-256 {found}, {CONTENTS} says {digest}: use another backup", digest=found)
    return contents


def key_marks(settings: Settings) -> dict[str, str]:
    """A mark of each key in force: equal keys give equal marks, and no mark gives its key away."""
    keys = {f"handle:{name}": value.get_secret_value().encode() for name, value in settings.serve.handle_keys.items()}
    keys["pseudonym"] = settings.serve.pseudonym_key.get_secret_value().encode()
    if not settings.serve.handle_keys:
        keys["handle:file"] = _read(settings.data_dir / "handle.key")
    keys["pseudonym"] = keys["pseudonym"] or _read(settings.data_dir / "pseudonym.key")
    return {name: key_mark(key) for name, key in sorted(keys.items()) if key}


def _write(settings: Settings, folder: Path) -> Contents:
    private_folder(folder)
    kind = _kind(settings)
    with full_is_unavailable(f"the folder {folder}"):
        _save_store(settings, folder / _STORES[kind])  # 1
        logs = (LOG_FILE,) if settings.log.kind == "sqlite" else (OUTBOX_FILE,)
        for name in logs:  # 2
            if (settings.data_dir / name).exists():
                _copy_sqlite(settings.data_dir / name, folder / name)
        _save_registry(settings, folder / _REGISTRY)  # 3
        for key in sorted(settings.data_dir.glob("*.key")):  # 4
            (folder / _KEYS).mkdir(mode=0o700, exist_ok=True)
            shutil.copyfile(key, folder / _KEYS / key.name)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        contents = Contents(
            created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            store=kind,
            log=settings.log.kind,
            keys=key_marks(settings),
            files={name: (_digest(folder / name), (folder / name).stat().st_size) for name in names},
        )
        (folder / CONTENTS).write_text(json.dumps(asdict(contents), indent=1, sort_keys=True))  # 5
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return contents


# The database ------------------------------------------------------------------------------------------


def _kind(settings: Settings) -> str:
    kind = sa.make_url(settings.store_url).get_backend_name()
    if kind not in _STORES:
        raise Misconfigured(f"a store on {kind} cannot be backed up here", setting="store.url")
    return kind


def _save_store(settings: Settings, target: Path) -> None:
    Database(settings.store_url).close()  # at this release's schema, or a clear error
    url = sa.make_url(settings.store_url)
    if url.get_backend_name() == "sqlite":
        _copy_sqlite(Path(str(url.database)), target)
    else:
        _postgres("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={target}")


def _put_store(settings: Settings, folder: Path, contents: Contents, replace: bool) -> None:
    url, source = sa.make_url(settings.store_url), folder / _STORES[contents.store]
    if contents.store == "sqlite":
        _put_file(source, Path(str(url.database)), replace)
    else:
        clean = ("--clean", "--if-exists") if replace else ()
        once = ("--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges")
        _postgres("pg_restore", url, *once, *clean, str(source))
    database = Database(settings.store_url)  # opens, and comes to this release's schema
    with closing(database), database.writing() as connection:
        # None of the processes that ran on the other one runs on this.
        connection.execute(sa.delete(PROCESS))


def _copy_sqlite(source: Path, target: Path) -> None:
    """One moment of a SQLite file, while others write to it."""
    private_database(target)
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        # In one go: in write-ahead mode that reads one snapshot and holds up no writer.
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        found = copy.execute("PRAGMA quick_check").fetchone()[0]
    if found != "ok":
        raise BadArtifact(f"{source} is damaged ({found}); restore an older backup")


def _postgres(program: str, url: sa.URL, *arguments: str) -> None:
    if shutil.which(program) is None:
        raise Misconfigured(
            f"the store is a PostgreSQL database and {program} is not on PATH: install PostgreSQL's client programs, "
            "of the server's version or newer (Debian: postgresql-client), and run this again",
            setting="store.url",
        )
    named: dict[str, object] = {"PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username}
    named |= {"PGPASSWORD": url.password, "PGDATABASE": url.database, "PGSSLMODE": url.query.get("sslmode")}
    # By the environment: arguments are seen by everybody on the machine.
    environment = {**os.environ, **{name: str(value) for name, value in named.items() if value}}
    where = (f"--dbname={url.database}",) if program == "pg_restore" else ()
    done = subprocess.run([program, *where, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise StoreUnavailable(f"{program} ended with {done.returncode}: {said}")


# The registry ------------------------------------------------------------------------------------------


def _save_registry(settings: Settings, target: Path) -> None:
    fs, root = fsspec.core.url_to_fs(settings.registry_root)
    if not fs.exists(root):
        return
    for path in sorted(fs.find(root)):
        name = path.removeprefix(str(root).rstrip("/") + "/")
        if not name.endswith(".partial"):  # a file that is being written
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(path, str(target / name))


def _put_registry(settings: Settings, folder: Path, contents: Contents) -> None:
    fs, root = fsspec.core.url_to_fs(settings.registry_root)
    for name in sorted(contents.files):
        if name.startswith(f"{_REGISTRY}/"):
            path = f"{str(root).rstrip('/')}/{name.partition('/')[2]}"
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(folder / name), path)


# The target --------------------------------------------------------------------------------------------


def _check_target(settings: Settings, contents: Contents, replace: bool) -> None:
    if contents.store != _kind(settings):
        raise Misconfigured(
            f"the backup is of a store on {contents.store}, store.url names one on {_kind(settings)}: name an empty "
            "database of the same kind",
            setting="store.url",
        )
    found = list(_occupied(settings, contents))
    if found and not replace:
        raise WrongState(f"there is already {', '.join(found)}: restore into an empty deployment, or say --replace")
    if found and (running := _running(settings)):
        raise WrongState(f"{', '.join(running)} run on what is to be replaced: stop them first")


def _occupied(settings: Settings, contents: Contents) -> Iterator[str]:
    """What lies where the backup is to go."""
    url = sa.make_url(settings.store_url)
    if contents.store == "sqlite":
        if Path(str(url.database)).exists():
            yield str(url.database)
    else:
        engine = sa.create_engine(url)
        try:
            if tables := sa.inspect(engine).get_table_names():
                yield f"a database with {len(tables)} tables"
        except sa.exc.OperationalError as error:
            raise StoreUnavailable(f"the store does not answer ({type(error.orig).__name__}); retry") from error
        finally:
            engine.dispose()
    names = [name for name in (LOG_FILE, OUTBOX_FILE) if name in contents.files]
    names += [name.partition("/")[2] for name in contents.files if name.startswith(f"{_KEYS}/")]
    yield from (str(settings.data_dir / name) for name in names if (settings.data_dir / name).exists())
    fs, root = fsspec.core.url_to_fs(settings.registry_root)
    if fs.exists(root) and fs.ls(root):
        yield settings.registry_root


def _running(settings: Settings) -> list[str]:
    try:
        database = Database(settings.store_url)
    except (Misconfigured, StoreUnavailable):
        return []  # no store of this release: nothing of it runs
    try:
        return [f"{each.kind} ({each.owner})" for each in processes(database) if not each.lost]
    finally:
        database.close()


def _put_file(source: Path, target: Path, replace: bool) -> None:
    """A file in its place, whole or not at all; what was there is put aside."""
    private_folder(target.parent)
    with full_is_unavailable(f"the folder {target.parent}"), tempfile.TemporaryDirectory(dir=target.parent) as work:
        partial = Path(work) / target.name
        shutil.copyfile(source, partial)
        partial.chmod(0o600)
        aside = f"replaced-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S%f}"
        for end in _SIDE_FILES:
            # Side files that lie about would be taken for this file's own.
            if (replace or end) and (old := target.with_name(f"{target.name}{end}")).exists():
                old.rename(target.with_name(f"{target.name}.{aside}{end}"))
        partial.rename(target)


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """The folder of a backup; a tar file is unpacked for the length of the block."""
    if not source.is_file():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="plaudit-restore-") as folder:
        try:
            with tarfile.open(source) as tar:
                tar.extractall(folder, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise BadArtifact(
                f"{source} cannot be unpacked ({type(error).__name__}): it is not a complete backup"
            ) from error
        yield Path(folder)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def differing_keys(settings: Settings, contents: Contents) -> list[str]:
    """Keys of the deployment that was backed up that are not in force under these settings."""
    here: Mapping[str, Any] = key_marks(settings)
    return [name for name, mark in contents.keys.items() if mark not in here.values()]
