"""Files and folders that only their owner may read, and what a full disk looks like."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from plaudit.errors import StoreUnavailable

# Less free space than this counts as a full disk: SQLite and the file system need some for a single page.
FULL_BELOW_BYTES = 1 << 20

_MAKING = threading.Lock()


def private_folder(path: Path) -> None:
    """Makes the folder if it is missing, for its owner alone; one that exists keeps its mode.

    Raises StoreUnavailable if the disk is full, otherwise OSError.
    """
    if not path.is_dir():
        with full_is_unavailable(f"the folder {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)


def private_database(path: Path) -> None:
    """Makes a SQLite file that only its owner may read and write; SQLite gives its side files the same mode.

    A file that exists is narrowed if this user owns it; otherwise it is left as it is. It is never opened here: to
    close it would drop the locks of this whole process on it (POSIX). Another process that ends would then take itself
    for the last one and delete the write-ahead log that this one goes on writing (sqlite.org/howtocorrupt.html,
    section 2.2). Raises OSError.
    """
    private_folder(path.parent)
    with _MAKING:  # nobody of this process opens the new file before it is closed here
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
            if not os.access(path, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None
    for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            each.chmod(0o600)


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder has no room left."""
    try:
        return shutil.disk_usage(folder).free < FULL_BELOW_BYTES
    except OSError:
        return False


@contextlib.contextmanager
def full_is_unavailable(what: str) -> Iterator[None]:
    """Turns the error of a full disk (or a used up quota) into StoreUnavailable that says what is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreUnavailable(f"{what} cannot grow: its disk is full ({error.strerror}); free space") from error
