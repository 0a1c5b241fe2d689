"""The events of one Wyoming client: requests in, answers out.

    describe -> info        ping -> pong
    transcribe, audio-start, audio-chunk ..., audio-stop -> a WyomingStream, which answers

Whatever is no event, or is too large, or does not come in time ends this connection and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, async_read_event, async_write_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from whisperfold.runtime.errors import WhisperfoldError
from whisperfold.runtime.pcm import PcmFormat
from whisperfold.runtime.wyoming_stream import WyomingStream

if TYPE_CHECKING:
    from whisperfold.runtime.recognizer import Recognizer

_LOG = logging.getLogger(__name__)
_Request = TypeVar("_Request")
_MAX_HOTWORDS = 100
_LINGER_S = 1.0


class WyomingError(WhisperfoldError):
    """A client that does not speak the protocol."""


@dataclass(frozen=True)
class WyomingLimits:
    """What one client, and all of them, may take."""

    connections: int = 16
    """At the same time."""
    idle_s: float = 60.0
    """Without a whole event from the client, or without it reading ours, seconds."""
    duration_s: float = 600.0
    """Of one utterance, seconds of audio."""
    backlog_s: float = 30.0
    """Audio that waits for the recogniser before the client is slowed down, seconds."""
    header_bytes: int = 64 * 1024
    """Of an event's header line, and of its data."""
    payload_bytes: int = 1024 * 1024
    """Of one audio-chunk."""


class WyomingConnection:
    """One client, from its first event to its last.

    Attributes:
        peer: its address, for the log.
        is_last: leave after the utterance that is open.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        info: Callable[[], Info],
        limits: WyomingLimits,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Take over a connection.

        Args:
            recognizer: does the work.
            info: what `describe` is answered with.
            limits: of this client.
            reader: made with limits.header_bytes as its limit.
            writer: of the same connection.
        """
        self.peer = str((writer.get_extra_info("peername") or ("?",))[0])
        self.is_last = False
        self._recognizer, self._info, self._limits, self._writer = recognizer, info, limits, writer
        self._reader = _BoundedReader(reader, limits)
        self._request = Transcribe()
        self._stream: WyomingStream | None = None

    @property
    def is_speaking(self) -> bool:
        """Whether an utterance is open."""
        return self._stream is not None

    async def run(self) -> None:
        """Answer events until the client leaves, or is_last is set and no utterance is open."""
        while (event := await self._read()) is not None:
            await self._answer(event)
            if self.is_last and not self.is_speaking:
                return

    async def refuse(self, error: WhisperfoldError) -> None:
        """Tell the client what is wrong, if it still listens.

        What it is still sending is thrown away for a moment: hanging up on unread bytes would reset the connection,
        and the client might never see the error.
        """
        code = type(error).__name__.removesuffix("Error").lower()
        try:
            await self._send(Error(text=str(error), code=code).event())
            self._writer.write_eof()
            async with asyncio.timeout(_LINGER_S):
                await self._reader.discard()
        except (OSError, TimeoutError):
            _LOG.debug("event=wyoming_lost peer=%s", self.peer)

    async def close(self) -> None:
        """Give up an open utterance and hang up, even on a client that does not read."""
        if self._stream is not None:
            await self._stream.abandon()
        self._writer.close()
        try:
            async with asyncio.timeout(_LINGER_S):
                await self._writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            self._writer.transport.abort()

    async def _answer(self, event: Event) -> None:
        """Handle one event; unknown ones are for other programs."""
        if AudioChunk.is_type(event.type):
            chunk = _parsed(AudioChunk.from_event, event)
            stream = self._stream or await self._open()
            await stream.hear(PcmFormat(chunk.rate, chunk.width, chunk.channels), chunk.audio)
        elif AudioStart.is_type(event.type):
            start = _parsed(AudioStart.from_event, event)
            PcmFormat(start.rate, start.width, start.channels)
            await self._open()
        elif AudioStop.is_type(event.type):
            await self._finish()
        elif Transcribe.is_type(event.type):
            self._request = _parsed(Transcribe.from_event, event)
        elif Describe.is_type(event.type):
            await self._send(self._info().event())
        elif Ping.is_type(event.type):
            await self._send(Pong(text=_parsed(Ping.from_event, event).text).event())

    async def _open(self) -> WyomingStream:
        """Begin an utterance; one that was not stopped is given up."""
        if self._stream is not None:
            await self._stream.abandon()
            self._stream = None
        options = _decoding_options(self._request)
        live = await self._recognizer.open_stream(**options)
        limits = self._limits
        self._stream = WyomingStream(live, self._send, options.get("language"), limits.duration_s, limits.backlog_s)
        return self._stream

    async def _finish(self) -> None:
        """End the utterance: the transcript goes out; the next one starts with a fresh request."""
        stream = self._stream or await self._open()
        await stream.finish()
        self._stream, self._request = None, Transcribe()

    async def _read(self) -> Event | None:
        """The next event; None when the client has left.

        Raises:
            WyomingError: bytes that are no event, or too many of them.
            TimeoutError: none came in time.
        """
        async with asyncio.timeout(self._limits.idle_s):
            try:
                event = await async_read_event(self._reader)  # type: ignore[arg-type]
            except (AttributeError, KeyError, TypeError, RecursionError) as error:
                raise WyomingError("not a Wyoming event; expected a line of JSON with a type") from error
        if event is None and not self._reader.at_eof():
            limit = self._limits.header_bytes
            raise WyomingError(f"not a Wyoming event; expected a line of JSON, at most {limit} bytes")
        if event is not None and not (isinstance(event.type, str) and isinstance(event.data, dict)):
            raise WyomingError("not a Wyoming event; type must be a string and data an object")
        return event

    async def _send(self, event: Event) -> None:
        """Write an event; TimeoutError if the client does not read."""
        async with asyncio.timeout(self._limits.idle_s):
            await async_write_event(event, self._writer)


class _BoundedReader:
    """What `async_read_event` needs of a reader; the lengths that a client states are not believed."""

    def __init__(self, reader: asyncio.StreamReader, limits: WyomingLimits) -> None:
        self._reader, self._max_bytes = reader, max(limits.header_bytes, limits.payload_bytes)

    async def readline(self) -> bytes:
        """The header; ValueError when it is longer than the reader's limit."""
        return await self._reader.readline()

    async def readexactly(self, n_bytes: int) -> bytes:
        """Data or payload."""
        if not 0 <= n_bytes <= self._max_bytes:
            raise WyomingError(f"an event of {n_bytes} bytes, at most {self._max_bytes} are taken; send smaller chunks")
        return await self._reader.readexactly(n_bytes)

    async def discard(self) -> None:
        """Read to the end and keep nothing."""
        while await self._reader.read(64 * 1024):
            pass

    def at_eof(self) -> bool:
        """Whether the client has left."""
        return self._reader.at_eof()


def _parsed(parse: Callable[[Event], _Request], event: Event) -> _Request:
    """The event as its class; WyomingError when a field is missing."""
    try:
        return parse(event)
    except (KeyError, TypeError, ValueError) as error:
        raise WyomingError(f"{event.type}: missing or wrong field {error}") from error


def _decoding_options(request: Transcribe) -> dict[str, Any]:
    """Language ("de-AT" -> "de"; "auto" is left to the recogniser) and the names and terms to listen for."""
    language, names, terms = request.language, request.transcript_names or [], request.transcript_terms or []
    if not isinstance(language, str | None) or not _are_strings(names) or not _are_strings(terms):
        raise WyomingError("transcribe: expected language as a string, names and terms as lists of strings")
    code = (language or "").replace("_", "-").split("-")[0].lower()
    options: dict[str, Any] = {"language": code} if code not in ("", "auto") else {}
    if names or terms:
        options["hotwords"] = (*names, *terms)[:_MAX_HOTWORDS]
    return options


def _are_strings(values: Any) -> bool:
    """Whether it is a list of strings."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
