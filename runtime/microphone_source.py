"""The device's own microphone as something that many clients listen to.

    Microphone (its own thread) -> LiveStream (a worker of the Recognizer) -> records -> every subscriber's queue

Records are plain JSON: the events of the stream, ``{"type": "level", "dbfs", "in_speech", "heard_s"}`` about five
times a second, and ``{"type": "status", "status", "message", "at_s"}`` with the status starting, listening, lost,
back, warning, failed, stopped or cut off. A slow subscriber misses levels and partials, never finals; one that does
not even read its finals is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import WhisperfoldError
from whisperfold.runtime.microphone import Microphone, MicrophoneStatus

if TYPE_CHECKING:
    from whisperfold.runtime.recognizer import LiveStream, Recognizer

_LOG = logging.getLogger(__name__)
Record = dict[str, Any]
QUEUE_RECORDS = 64
"""Records that wait for one subscriber: about ten seconds of levels and partials, or 64 finals."""
LEVEL_EVERY_S = 0.2
RETRY_S = 5.0
"""Pause after an error of the recogniser, or without PortAudio."""
_DROPPABLE = ("level", "partial")


class MicrophoneSource:
    """Broadcasts what the microphone hears; `run` is its one task.

    Args:
        recognizer: weights and workers, shared with everybody else.
        device: None, index, name or part of a name; need not be there yet.
        decoding: fields of DecodingOptions, e.g. hotwords.
        open_microphone: makes the Microphone; tests put another one in its place.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        device: str | None = None,
        decoding: dict[str, Any] | None = None,
        open_microphone: Callable[..., Microphone] = Microphone,
    ) -> None:
        self._recognizer, self._device, self._decoding = recognizer, device, decoding or {}
        self._open_microphone = open_microphone
        self._microphone: Microphone | None = None
        self._subscribers: set[_Subscriber] = set()
        self._status: Record = {
            "type": "status",
            "status": "starting",
            "message": "opening the microphone",
            "at_s": 0.0,
        }
        self._heard_s = self._next_level_s = 0.0

    def status(self) -> Record:
        """Return what /health tells: state, device, level, losses, dropped blocks, subscribers."""
        microphone = self._microphone
        device = microphone.device if microphone is not None else None
        state = self._status["status"]
        return {
            "state": "listening" if state == "back" else state,
            "message": self._status["message"],
            "device": device.name if device is not None else self._device,
            "level_dbfs": round(microphone.level.dbfs, 1) if microphone is not None else None,
            "problem": microphone.level.problem if microphone is not None else "",
            "losses": microphone.losses if microphone is not None else 0,
            "dropped_blocks": microphone.dropped if microphone is not None else 0,
            "heard_s": round(self._heard_s, 1),
            "subscribers": len(self._subscribers),
        }

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Record]]:
        """Yield an iterator over the records from now on; the first one is the status of now."""
        subscriber = _Subscriber()
        subscriber.put(self._status)
        self._subscribers.add(subscriber)
        try:
            yield subscriber.records()
        finally:
            self._subscribers.discard(subscriber)

    async def run(self) -> None:
        """Listen until cancelled; then the open utterance becomes final, and the subscribers' iterators end.

        A lost device is waited for, and an error of the recogniser is reported and tried again: only
        cancelling ends this.
        """
        stream: LiveStream | None = None
        try:
            while True:
                try:
                    if stream is None:
                        stream = await self._recognizer.open_stream(**self._decoding)
                    await self._listen(stream)
                except WhisperfoldError as error:
                    self._set_status(
                        {"type": "status", "status": "failed", "message": str(error), "at_s": self._heard_s}
                    )
                    _LOG.error("microphone source failed, next try in %.0f s: %s", RETRY_S, error)
                await asyncio.sleep(RETRY_S)
        finally:
            if stream is not None:
                self._broadcast_all(await stream.finish())
            self._set_status({"type": "status", "status": "stopped", "message": "stopped", "at_s": self._heard_s})
            for subscriber in self._subscribers:
                subscriber.close()

    async def _listen(self, stream: LiveStream) -> None:
        """Open the microphone and broadcast until cancelled or failed; all of it on a thread of its own."""
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, thread_name_prefix="microphone")

        def on_status(status: MicrophoneStatus) -> None:
            """Hand a status over from the microphone's thread."""
            loop.call_soon_threadsafe(self._set_status, status.record())

        def hear(microphone: Microphone) -> Generator[np.ndarray, None, None]:
            """Chunks of an open microphone, closed at their end."""
            with microphone:
                yield from microphone.chunks()

        async def pump(chunks: Iterator[np.ndarray]) -> None:
            """Recognise and broadcast until the microphone is closed."""
            while (chunk := await loop.run_in_executor(thread, next, chunks, None)) is not None:
                await self._push(stream, chunk)

        try:
            opening = partial(self._open_microphone, self._device, wait=True, on_status=on_status)
            self._microphone = microphone = await loop.run_in_executor(thread, opening)
            chunks = hear(microphone)
            pumping = asyncio.ensure_future(pump(chunks))
            try:
                await asyncio.shield(pumping)
            finally:  # what the microphone still holds is recognised, too
                microphone.close()
                await asyncio.wait([pumping])
                await loop.run_in_executor(thread, chunks.close)
        finally:
            thread.shutdown(wait=False)

    async def _push(self, stream: LiveStream, chunk: np.ndarray) -> None:
        """Recognise a chunk and broadcast what it brought, and the level if it is time to."""
        self._heard_s += chunk.size / SAMPLE_RATE
        self._broadcast_all(await stream.push(chunk))
        if self._heard_s >= self._next_level_s:
            self._next_level_s = self._heard_s + LEVEL_EVERY_S - 1e-3
            level = {"dbfs": round(stream.level_dbfs, 1), "in_speech": stream.in_speech}
            self._broadcast({"type": "level", **level, "heard_s": round(self._heard_s, 2)})

    def _broadcast_all(self, events: list[Any]) -> None:
        """Send events to every subscriber."""
        for event in events:
            self._broadcast(event.record())

    def _set_status(self, record: Record) -> None:
        """Keep the newest status for those who come later, and send it; a warning does not change the state."""
        if record["status"] != "warning":
            self._status = record
        self._broadcast(record)

    def _broadcast(self, record: Record) -> None:
        """Put a record into every queue."""
        for subscriber in self._subscribers:
            subscriber.put(record)


class _Subscriber:
    """The queue of one reader."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._has_news = asyncio.Event()
        self._is_closed = False

    def put(self, record: Record) -> None:
        """Add a record; when the queue is full, the oldest level or partial goes, or else the reader."""
        if self._is_closed:
            return
        if len(self._records) >= QUEUE_RECORDS:
            oldest = next((each for each in self._records if each["type"] in _DROPPABLE), None)
            if oldest is not None:
                self._records.remove(oldest)
            elif record["type"] in _DROPPABLE:
                return
            else:
                self._records.clear()
                self._records.append({"type": "status", "status": "cut off", "message": "too slow", "at_s": 0.0})
                _LOG.warning("subscriber cut off: it has not read %d records", QUEUE_RECORDS)
                self.close()
                return
        self._records.append(record)
        self._has_news.set()

    def close(self) -> None:
        """Let the iterator end after what is waiting."""
        self._is_closed = True
        self._has_news.set()

    async def records(self) -> AsyncIterator[Record]:
        """Yield records as they come, until close()."""
        while True:
            while self._records:
                yield self._records.popleft()
            if self._is_closed:
                return
            self._has_news.clear()
            await self._has_news.wait()
