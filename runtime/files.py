"""Private files that appear whole or not at all, also when the power fails: temporary name, fsync, rename, fsync."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; path holds the old contents or all of the new ones."""
    fresh = fresh_path(path)
    try:
        write_synced(fresh, content)
        os.rename(fresh, path)
        sync_dir(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file, mode 0600, and wait until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        _inherit_owner(path)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fresh_path(path: Path) -> Path:
    """Return the temporary name beside path under which this process makes it."""
    return path.with_name(f".{path.name}.new-{os.getpid()}")


def sweep(folder: Path) -> None:
    """Remove what killed processes left half made in a folder; the caller holds the lock of those who write there."""
    for leftover in folder.glob(".*.new-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


@contextmanager
def exclusive(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file at path; the kernel frees the lock of a killed process.

    Raises:
        BlockingIOError: another process holds it, and wait is False.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def sync_dir(path: Path) -> None:
    """Wait until the disk has the directory's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def private_dir(path: Path) -> Path:
    """Make a directory that only its owner may enter, and its parents; return it."""
    if not path.is_dir():
        private_dir(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _inherit_owner(path)
    return path


def _inherit_owner(path: Path) -> None:
    """What root makes (`sudo whisperfold profiles use`) belongs to the owner of its folder: the daemon must read it."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
