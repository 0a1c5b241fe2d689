"""A live stream on the shared weights: samples in, events out, one call at a time.

What is pushed while a call runs is handed over as one chunk by the next call, so a device that cannot keep up
makes fewer guesses and loses nothing. A client's commit ends the session and begins another; the stream's times and
utterance numbers go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.workers import FINAL, PARTIAL

if TYPE_CHECKING:
    from whisperfold.runtime.following import FollowingSession
    from whisperfold.runtime.metrics import Metrics
    from whisperfold.runtime.stream_event import StreamEvent

_Run = Callable[[int, Callable[[], "list[StreamEvent]"]], Awaitable["list[StreamEvent]"]]


class LiveStream:
    """One client's stream; made by `Recognizer.open_stream`."""

    def __init__(
        self,
        session: FollowingSession,
        run: _Run,
        on_close: Callable[[], None],
        metrics: Metrics | None = None,
    ) -> None:
        """Take over a session.

        Args:
            session: its state.
            run: runs a function on a worker, by priority.
            on_close: called once, when the stream ends.
            metrics: where latencies are counted.
        """
        self._session = session
        self._run, self._on_close, self._metrics = run, on_close, metrics
        self._pending: list[np.ndarray] = []
        self._order = asyncio.Lock()
        self._busy = Lock()  # a cancelled call may still be running on its worker
        self._heard_samples = 0
        self._offset_s = 0.0
        self._first_utterance = 0
        self._n_utterances = 0
        self._committed_s: list[float] = []  # when each word of the open utterance was committed
        self._is_open = True

    @property
    def level_dbfs(self) -> float:
        """Level of the last chunk, dB relative to full scale."""
        return self._session.level_dbfs

    @property
    def in_speech(self) -> bool:
        """Whether somebody speaks now."""
        return self._session.in_speech

    async def push(self, samples: np.ndarray) -> list[StreamEvent]:
        """Hear samples, float32 (n,) at 16 kHz; return what they brought.

        Calls may overlap: the first that gets a worker takes everything, the others return nothing.

        Raises:
            AudioError: not float32 mono, or holding NaN.
        """
        if samples.size:
            self._pending.append(samples)
        async with self._order:
            return await self._run(PARTIAL, self._accept) if self._pending else []

    async def finish(self) -> list[StreamEvent]:
        """End the stream: what is open becomes final."""
        async with self._order:
            try:
                return await self._run(FINAL, lambda: self._accept() + self._finish())
            finally:
                self.abandon()

    async def end_utterance(self) -> list[StreamEvent]:
        """Make what is open final and go on with a new utterance (a client's commit)."""
        async with self._order:
            return await self._run(FINAL, self._end_utterance)

    def abandon(self) -> None:
        """Leave without an end; calling it again does nothing."""
        if self._is_open:
            self._is_open = False
            self._on_close()

    def _accept(self) -> list[StreamEvent]:
        """On a worker: everything that waits, as one chunk."""
        with self._busy:
            chunks, self._pending = self._pending, []
            if not chunks:
                return []
            samples = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
            started_s = time.monotonic()
            self._heard_samples += samples.size
            events = self._placed(self._session.accept_chunk(samples))
            self._observe(events, samples.size / SAMPLE_RATE, time.monotonic() - started_s)
            return events

    def _finish(self) -> list[StreamEvent]:
        """On a worker: the end of the session."""
        with self._busy:
            started_s = time.monotonic()
            events = self._placed(self._session.finish())
            self._observe(events, 0.0, time.monotonic() - started_s)
            return events

    def _end_utterance(self) -> list[StreamEvent]:
        """On a worker: the end of the session, and the next one."""
        events = self._accept() + self._finish()
        with self._busy:
            self._session = self._session.fresh()
            self._offset_s = self._heard_samples / SAMPLE_RATE
            self._first_utterance = self._n_utterances
            return events

    def _placed(self, events: list[StreamEvent]) -> list[StreamEvent]:
        """Events with times and numbers of the whole stream."""
        placed = [event.shifted(self._offset_s, self._first_utterance) for event in events]
        if placed:
            self._n_utterances = max(self._n_utterances, placed[-1].utterance + 1)
        return placed

    def _observe(self, events: list[StreamEvent], audio_s: float, busy_s: float) -> None:
        """Count audio, utterances, and how long after its end a word was committed."""
        if self._metrics is None:
            return
        self._metrics.observe_audio(audio_s, busy_s)
        now_s = self._heard_samples / SAMPLE_RATE + busy_s
        for event in events:
            if event.kind == "start":
                self._committed_s = []
                continue
            n_new = len(event.committed.split()) - len(self._committed_s)
            self._committed_s += [now_s] * n_new
            if event.kind == "final":
                self._metrics.observe_final(max(0.0, now_s - event.end_s))
                if len(event.words) == len(self._committed_s):  # a language without blanks has no such words
                    for word, committed_s in zip(event.words, self._committed_s, strict=True):
                        self._metrics.commit_latency.observe(max(0.0, committed_s - word.end_s))
                self._committed_s = []
