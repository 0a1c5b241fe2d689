"""The real `whisperfold serve` in a process of its own, for tests that talk to it from outside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE

TOKEN = "a-token-for-tests"
START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    port: int

    @property
    def url(self) -> str:
        """Address of its page."""
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def serving(bundle: Path, folder: Path, **settings: str | int) -> Iterator[Served]:
    """Start a server on a free port, yield it when it is ready, and stop it.

    Args:
        bundle: what it serves.
        folder: for its config file and its log.
        **settings: further fields of ServerConfig.
    """
    config, log_path = folder / "serve.toml", folder / "serve.log"
    values = {"port": 0, "token": TOKEN, "bundle": str(bundle), "threads": 2, **settings}
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    command = [sys.executable, "-m", "whisperfold.runtime.cli", "serve", "--config", str(config)]
    with log_path.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield Served(_announced_port(process, log_path))
        finally:
            process.terminate()


def with_silence(samples: np.ndarray, before_s: float = 1.0, after_s: float = 3.0) -> np.ndarray:
    """Samples with silence around them: a fake microphone's first moments may be lost."""
    return np.pad(samples, (round(before_s * SAMPLE_RATE), round(after_s * SAMPLE_RATE)))


def _announced_port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until the server says where it listens; return the port."""
    end_s = time.monotonic() + START_TIMEOUT_S
    while (said := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > end_s:
            raise AssertionError(f"serve does not answer; its log: {log.read_text()[-2000:]}")
        time.sleep(0.05)
    return int(said[1])
