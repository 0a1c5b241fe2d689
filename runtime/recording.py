"""A file on its way through the transcriber: blocks of samples -> one segment per call, until somebody stops it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from threading import Event, Lock
from typing import Any

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.transcript import Segment


class Recording:
    """A file on its way through the transcriber; next_segment and close run on workers, never at once.

    Args:
        blocks: float32 (n,) at 16 kHz; closed at the end if it is a generator.
        give_way: called between blocks, so that an hour of silence does not keep others waiting.
    """

    def __init__(self, blocks: Iterable[np.ndarray], give_way: Callable[[], None]) -> None:
        self._blocks, self._give_way = blocks, give_way
        self._segments: Iterator[Segment] = iter(())
        self._lock = Lock()
        self.stop = Event()
        self.read_s = 0.0
        self.busy_s = 0.0

    def start(self, transcriber: Transcriber, options: dict[str, Any]) -> None:
        """Check the options; nothing is read yet."""
        self._segments = transcriber.transcribe_blocks(self._counted(), **options)

    def next_segment(self) -> Segment | None:
        """Read and decode until there is a segment; None at the end."""
        with self._lock:
            started_s = time.monotonic()
            segment = next(self._segments, None)
            self.busy_s += time.monotonic() - started_s
            return segment

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            close_blocks(self._segments)
            self._segments = iter(())
            close_blocks(self._blocks)

    def _counted(self) -> Iterator[np.ndarray]:
        """The blocks until somebody stops; counts their seconds."""
        for block in self._blocks:
            self._give_way()
            if self.stop.is_set():
                return
            self.read_s += block.size / SAMPLE_RATE
            yield block


def close_blocks(iterator: Any) -> None:
    """Close a generator; other iterables need none."""
    if hasattr(iterator, "close"):
        iterator.close()
