"""Private files that appear whole or not at all, also when the power fails: temporary name, fsync, rename, fsync."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; path holds the old contents or all of the new ones."""
    fresh = path.with_name(f".{path.name}.new-{os.getpid()}")
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
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


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
    return path
