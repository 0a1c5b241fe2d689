"""The process in which a server's adaptation runs: one order on stdin, one JSON line per step on stdout.

    stdin   {"name", "bundle", "profiles", "nice", "options": {...EnrollOptions}}   one line; then it stays open
    stdout  {"type": "progress", "stage", "share", "remaining_s", "loss"}
            ...  {"type": "done"} or {"type": "error", "message"}

A name is in no argument list, where everybody on the device could read it. When stdin closes, the server is gone, and
so is this process; its checkpoint stays.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from whisperfold.runtime.adaptation import AdaptationOptions
from whisperfold.runtime.augment import Augmentation
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.decision import PromotionRules
from whisperfold.runtime.enroll import Progress, enroll
from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.errors import WhisperfoldError
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.transcribe import Transcriber

_EVERY_S = 0.5
"""Progress is told this often at most."""
_OOM_SCORE = 500
"""Of 1000: when memory runs out, this process goes and the server stays."""


def main() -> int:
    """Carry out one order; return the exit code."""
    orders = io.FileIO(0, "r", closefd=False)
    order = json.loads(orders.readline())
    threading.Thread(target=_end_with, args=(orders,), daemon=True).start()
    os.nice(order["nice"])
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    try:
        bundle = Path(order["bundle"])
        options = options_of(order["options"])
        store = ProfileStore(Bundle.open(bundle, check=False), Path(order["profiles"]))
        transcriber = Transcriber.open(bundle, options.threads)
        enroll(store, order["name"], transcriber, options, on_progress=_Teller(sys.stdout).progress)
    except WhisperfoldError as error:
        _tell(sys.stdout, {"type": "error", "message": str(error)})
        return 1
    _tell(sys.stdout, {"type": "done"})
    return 0


def options_of(fields: Mapping[str, Any]) -> EnrollOptions:
    """Return the options whose `asdict` came as JSON."""
    adaptation = dict(fields["adaptation"])
    ranges: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in adaptation["augmentation"].items()
    }
    adaptation |= {"augmentation": Augmentation(**ranges), "modules": tuple(adaptation["modules"])}
    rules = PromotionRules(**fields["rules"])
    return EnrollOptions(**{**fields, "adaptation": AdaptationOptions(**adaptation), "rules": rules})


class _Teller:
    """Progress, not too often."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._stage, self._told_s = out, "", 0.0

    def progress(self, progress: Progress) -> None:
        """Tell where the enrollment is."""
        now_s = time.monotonic()
        if progress.stage != self._stage or now_s - self._told_s >= _EVERY_S:
            self._stage, self._told_s = progress.stage, now_s
            _tell(self._out, {"type": "progress", **asdict(progress)})


def _tell(out: IO[str], record: dict[str, Any]) -> None:
    """Write one line."""
    out.write(json.dumps(record) + "\n")
    out.flush()


def _end_with(orders: io.FileIO) -> None:
    """End this process when the server has."""
    while orders.read(1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
