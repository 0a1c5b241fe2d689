"""One utterance of a Wyoming client: its audio in, transcript events out while it speaks.

    audio-chunk -> PCM -> backlog -> LiveStream -> transcript-start, transcript-chunk ..., transcript, transcript-stop

A chunk carries only text that will never change, so the chunks joined are the transcript. Audio is taken as fast as the
client sends it, up to max_backlog_s ahead of the recogniser; what waits is heard as one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import numpy as np
from wyoming.asr import Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.event import Event

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import AudioError
from whisperfold.runtime.pcm import PcmFormat, PcmStream

if TYPE_CHECKING:
    from whisperfold.runtime.live_stream import LiveStream
    from whisperfold.runtime.stream_event import StreamEvent


class GrowingText:
    """Stream events -> the text so far, and what each event adds to it."""

    def __init__(self) -> None:
        self._utterances: dict[int, str] = {}
        self._told = ""

    @property
    def text(self) -> str:
        """Committed text of all utterances, joined by spaces."""
        return " ".join(text for text in self._utterances.values() if text)

    def added_by(self, event: StreamEvent) -> str:
        """Take an event; return the text that is new, which may be empty."""
        self._utterances[event.utterance] = event.committed.strip()
        text = self.text
        if not text.startswith(self._told):
            return ""  # never seen: the stream's promise is that committed text only grows
        new, self._told = text[len(self._told) :], text
        return new


class WyomingStream:
    """From audio-start to audio-stop; made by the connection, which hands it chunks."""

    def __init__(
        self,
        stream: LiveStream,
        send: Callable[[Event], Awaitable[None]],
        language: str | None,
        max_duration_s: float,
        max_backlog_s: float,
    ) -> None:
        """Start to listen.

        Args:
            stream: a fresh stream of the recogniser.
            send: writes an event to the client.
            language: what the client asked for; None: what the recogniser finds.
            max_duration_s: longest utterance, seconds.
            max_backlog_s: audio that may wait for the recogniser before `hear` waits, seconds.
        """
        self._stream, self._send, self._language = stream, send, language
        self._max_samples = round(max_duration_s * SAMPLE_RATE)
        self._max_waiting = round(max_backlog_s * SAMPLE_RATE)
        self._text = GrowingText()
        self._pcm: PcmStream | None = None
        self._heard = 0
        self._waiting: list[np.ndarray] = []
        self._is_over = False
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._feeder = asyncio.create_task(self._feed(), name="wyoming feeder")

    async def hear(self, pcm_format: PcmFormat, data: bytes) -> None:
        """Take a piece of audio; waits while too much is unheard, which in turn slows the client down.

        Raises:
            AudioError: the format changed within the utterance, or the utterance is too long.
        """
        if self._pcm is None:
            self._pcm = PcmStream(pcm_format)
        if pcm_format != self._pcm.format:
            raise AudioError(f"audio-chunk: {pcm_format} after {self._pcm.format}; send audio-start in between")
        self._take(self._pcm.convert(data))
        if self._heard > self._max_samples:
            limit_s = self._max_samples / SAMPLE_RATE
            raise AudioError(f"more than {limit_s:g} s of audio; send audio-stop earlier")
        while sum(piece.size for piece in self._waiting) > self._max_waiting and not self._feeder.done():
            self._has_room.clear()
            await self._has_room.wait()
        if self._feeder.done():
            await self._feeder  # raises what stopped it

    async def finish(self) -> None:
        """Hear the rest and tell the client the whole text."""
        if self._pcm is not None:
            self._take(self._pcm.finish())
        self._is_over = True
        self._has_news.set()
        await self._feeder

    async def abandon(self) -> None:
        """Stop without a result; the client is gone or did wrong. Calling it again, or after `finish`, is no harm."""
        self._feeder.cancel()
        await asyncio.wait([self._feeder])
        if not self._feeder.cancelled():
            self._feeder.exception()  # seen: the connection's own error is the one that counts
        self._stream.abandon()

    def _take(self, samples: np.ndarray) -> None:
        """Put samples on the backlog."""
        if samples.size:
            self._heard += samples.size
            self._waiting.append(samples)
            self._has_news.set()

    async def _feed(self) -> None:
        """Hear what waits, tell what it brings, until the utterance is over; then the whole text."""
        try:
            await self._send(TranscriptStart(language=self._language).event())
            while not (self._is_over and not self._waiting):
                await self._has_news.wait()
                self._has_news.clear()
                pieces, self._waiting = self._waiting, []
                self._has_room.set()
                if pieces:
                    await self._tell(await self._stream.push(np.concatenate(pieces)))
            await self._tell(await self._stream.finish())
            await self._send(Transcript(text=self._text.text, language=self._language).event())
            await self._send(TranscriptStop().event())
        finally:
            self._has_room.set()

    async def _tell(self, events: list[StreamEvent]) -> None:
        """Send the text that these events add."""
        for event in events:
            if event.kind == "final" and self._language is None:
                self._language = event.language
            new = self._text.added_by(event)
            if new:
                await self._send(TranscriptChunk(text=new).event())
