"""Memory of this process: how much it has, and giving back what is free."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path


def resident_bytes() -> float:
    """Resident memory of this process; 0 where /proc does not tell."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.0


def give_back() -> None:
    """Return freed memory to the system; glibc keeps it otherwise (158 MB after an unload, 99 MB trimmed)."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(0)
