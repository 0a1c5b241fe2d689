"""Private files that appear whole or not at all, also when the power fails: temporary name, fsync, rename, fsync."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whisperfold.runtime.errors import WhisperfoldError

_LOOK_S = 0.05
"""Between two tries to take a lock."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Linux, renameat2(2)."""


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
    """Write a new file, mode 0600, and wait until the disk has it; a link of that name is replaced, not followed."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
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
def exclusive(path: Path, wait_s: float | None = None) -> Iterator[None]:
    """Hold the lock file at path, made with its folder; the kernel frees the lock of a killed process.

    Raises:
        BlockingIOError: another process holds it for longer than wait_s; None waits for ever.
    """
    until_s = None if wait_s is None else time.monotonic() + wait_s
    while (descriptor := _lock(path, until_s)) is None:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def refusal_as(error_class: type[WhisperfoldError], path: Path) -> Iterator[None]:
    """Turn what the disk refuses in the block (it is full, no permission) into an error of one line."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise error_class(f"{where}: {error.strerror or error}; free space, or mend the permissions") from error


def sync_dir(path: Path) -> None:
    """Wait until the disk has the directory's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Let two files or folders change places in one instant; False, and nothing done, where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return int(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)) == 0


def private_dir(path: Path) -> Path:
    """Make a directory that only its owner may enter, and its parents; return it."""
    if not path.is_dir():
        private_dir(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _inherit_owner(path)
    return path


def _lock(path: Path, until_s: float | None) -> int | None:
    """The descriptor of a lock file that is held; None if it was deleted meanwhile, with its folder."""
    private_dir(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _inherit_owner(path)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if until_s is None else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if until_s is None or time.monotonic() >= until_s:
                    raise
                time.sleep(_LOOK_S)
        if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _inherit_owner(path: Path) -> None:
    """What root makes (`sudo whisperfold profiles use`) belongs to the owner of its folder: the daemon must read it."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
