"""WebSocket /v1/realtime: live audio in, OpenAI's realtime transcription events out.

    client --messages--> RealtimeReader --steps--> Inbox --> work: LiveStream --> RealtimeItems --> client

Reading waits when the inbox is full, so the client's socket fills up: nothing is dropped and memory stays bounded.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from whisperfold.runtime.access import accepted_subprotocol
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import BusyError, WhisperfoldError
from whisperfold.runtime.live_stream import LiveStream
from whisperfold.runtime.realtime_inbox import Inbox, Step
from whisperfold.runtime.realtime_items import RealtimeItems, Record, error_event, new_event
from whisperfold.runtime.realtime_reader import RealtimeReader
from whisperfold.runtime.realtime_settings import RealtimeSettings
from whisperfold.runtime.recognizer import Recognizer

if TYPE_CHECKING:
    from whisperfold.runtime.stream_event import StreamEvent

_LOG = logging.getLogger(__name__)
CLOSE_NORMAL, CLOSE_GOING_AWAY, CLOSE_POLICY, CLOSE_INTERNAL, CLOSE_TRY_LATER = 1000, 1001, 1008, 1011, 1013


async def realtime(socket: WebSocket) -> None:
    """Serve one client until it leaves, is idle for too long, or the server stops."""
    state = socket.app.state
    intent = socket.query_params.get("intent", "transcription")
    await socket.accept(accepted_subprotocol(socket.scope))
    if intent != "transcription":
        await close_socket(socket, CLOSE_POLICY, f"intent={intent[:30]}: this server transcribes only")
        return
    inbox = Inbox(round(state.config.max_buffer_s * SAMPLE_RATE))
    reader = RealtimeReader(socket, inbox, state.recognizer.name, state.recognizer.languages)
    worker = RealtimeWorker(socket, inbox, state.recognizer, state.config.log_transcripts)
    try:
        code, reason = await _serve(reader, worker, inbox, state.config.idle_timeout_s, state.stopping)
    except (WebSocketDisconnect, RuntimeError):  # RuntimeError: starlette's for a socket that is closed
        return
    finally:
        worker.close()
    await close_socket(socket, code, reason)


async def close_socket(socket: WebSocket, code: int, reason: str) -> None:
    """Close with a reason, unless the client has."""
    if WebSocketState.DISCONNECTED not in (socket.client_state, socket.application_state):
        await socket.close(code, reason.encode()[:120].decode(errors="ignore"))


async def _serve(
    reader: RealtimeReader, worker: RealtimeWorker, inbox: Inbox, idle_timeout_s: float, stopping: asyncio.Event
) -> tuple[int, str]:
    """Read and work at the same time; return the close code and its reason."""
    reading = asyncio.create_task(reader.run(idle_timeout_s))
    working = asyncio.create_task(worker.run())
    stop = asyncio.create_task(stopping.wait())
    tasks = (reading, working, stop)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if reading.done():
            return reading.result()
        reading.cancel()  # the server stops: what was said becomes text first
        await inbox.put(Step("end"))
        await working
        return CLOSE_GOING_AWAY, "the server is stopping"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class RealtimeWorker:
    """Takes steps from the inbox, runs them on a live stream, tells the client."""

    def __init__(self, socket: WebSocket, inbox: Inbox, recognizer: Recognizer, log_transcripts: bool) -> None:
        self._socket, self._inbox, self._recognizer = socket, inbox, recognizer
        self._log_transcripts = log_transcripts
        self._settings = RealtimeSettings()
        self._items = RealtimeItems()
        self._stream: LiveStream | None = None
        self._heard_s = 0.0
        self._stream_start_s = 0.0

    async def run(self) -> tuple[int, str]:
        """Work until the end step, or until it cannot go on; return the close code and its reason."""
        try:
            while True:
                step = await self._inbox.get()
                if step.kind == "audio":
                    await self._hear(step)
                elif step.kind == "commit":
                    await self._commit()
                elif step.kind == "clear":
                    await self._clear()
                else:
                    await self._finish()
                if step.settings is not None:
                    self._settings = step.settings
                if step.kind == "end":
                    return CLOSE_NORMAL, ""
        except BusyError as error:
            await self._send([error_event(str(error), error.reason, kind="server_error")])
            return CLOSE_TRY_LATER, "the server is busy"
        except WhisperfoldError as error:
            _LOG.warning("event=realtime_failed error=%s", error)
            await self._send([error_event("this audio cannot be recognised; connect again", "failed")])
            return CLOSE_INTERNAL, "recognition failed"

    def close(self) -> None:
        """Give the stream's place back."""
        if self._stream is not None:
            self._stream.abandon()
            self._stream = None

    async def _hear(self, step: Step) -> None:
        """Audio."""
        stream = await self._opened()
        self._heard_s += step.samples.size / SAMPLE_RATE
        await self._tell(await stream.push(step.samples))

    async def _commit(self) -> None:
        """The client says that the utterance is over."""
        stream = await self._opened()
        events = await stream.end_utterance()
        await self._tell(events)
        if self._settings.is_manual or not any(event.kind == "final" for event in events):
            await self._send(self._items.commit_records(self._heard_s))

    async def _clear(self) -> None:
        """The client takes back what has no text yet."""
        if self._stream is not None:
            await self._stream.end_utterance()
        self._items.forget()
        await self._send([new_event("input_audio_buffer.cleared")])

    async def _finish(self) -> None:
        """The end of the stream: of the connection, or because other settings need another stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await self._tell(await stream.finish())
            if self._items.is_open:
                await self._send(self._items.commit_records(self._heard_s))

    async def _opened(self) -> LiveStream:
        """The stream, opened when it is first needed."""
        if self._stream is None:
            self._stream = await self._recognizer.open_stream(**self._settings.decoding)
            self._stream_start_s = self._heard_s
        return self._stream

    async def _tell(self, events: Iterable[StreamEvent]) -> None:
        """Send what stream events mean; their times are those of the connection's audio."""
        for event in events:
            placed = event.shifted(self._stream_start_s)
            await self._send(self._items.event_records(placed, self._settings.is_manual))
            if event.kind == "final" and self._log_transcripts:
                _LOG.info("event=transcript text=%r", event.committed)

    async def _send(self, records: Iterable[Record]) -> None:
        """Send records in order."""
        for record in records:
            await self._socket.send_text(json.dumps(record, ensure_ascii=False))
