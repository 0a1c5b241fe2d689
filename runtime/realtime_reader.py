"""A realtime client's messages -> steps for the worker, and answers to what makes no sense.

{"type": "input_audio_buffer.append", "audio": base64 of PCM16}    or the bare bytes as a binary message
{"type": "input_audio_buffer.commit"}    {"type": "input_audio_buffer.clear"}
{"type": "session.update", "session": {...}}    and the beta's transcription_session.update
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.pcm import PcmFormat, PcmStream
from whisperfold.runtime.realtime_inbox import Inbox, Step
from whisperfold.runtime.realtime_items import Record, error_event, new_event, new_session_id
from whisperfold.runtime.realtime_settings import RealtimeSettings

_MAX_ERRORS = 20
"""Senseless messages in a row before the connection ends."""
_LEAST_COMMIT_S = 0.1
"""OpenAI refuses to commit less."""
_UPDATES = {"session.update": "session.updated", "transcription_session.update": "transcription_session.updated"}


class RealtimeReader:
    """Reads one socket."""

    def __init__(self, socket: WebSocket, inbox: Inbox, model: str, languages: tuple[str, ...]) -> None:
        self._socket, self._inbox = socket, inbox
        self._model, self._languages = model, languages
        self._id = new_session_id()
        self._settings = RealtimeSettings()
        self._pcm = PcmStream(PcmFormat(self._settings.rate_hz, width_bytes=2, channels=1))
        self._uncommitted_s = 0.0

    async def run(self, idle_timeout_s: float) -> tuple[int, str]:
        """Read until the client is idle or makes no sense at all; return the close code and its reason.

        Raises:
            WebSocketDisconnect: the client has gone.
        """
        await self._send(new_event("session.created", session=self._record()))
        n_errors = 0
        while n_errors < _MAX_ERRORS:
            try:
                async with asyncio.timeout(idle_timeout_s):
                    message = await self._socket.receive()
            except TimeoutError:
                return 1001, f"nothing came for {idle_timeout_s:g} s"
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code") or 1005)
            error = await self._take(message)
            n_errors = n_errors + 1 if error is not None else 0
            if error is not None:
                await self._send(error)
        return 1008, f"{_MAX_ERRORS} messages in a row made no sense"

    async def _take(self, message: Any) -> Record | None:
        """Act on one message; return the error event that it deserves, if any."""
        if message.get("bytes") is not None:
            await self._hear(message["bytes"])
            return None
        try:
            event = json.loads(message["text"])
        except (ValueError, RecursionError):
            return error_event("not JSON; expected an object with a type", "invalid_json")
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            return error_event("expected an object with a type", "invalid_event")
        event_id = event.get("event_id") if isinstance(event.get("event_id"), str) else None
        kind = event["type"]
        if kind == "input_audio_buffer.append":
            try:
                await self._hear(base64.b64decode(event.get("audio", ""), validate=True))
            except (binascii.Error, TypeError, ValueError):
                return error_event("audio: not base64", "invalid_audio", event_id)
        elif kind == "input_audio_buffer.commit":
            return await self._commit(event_id)
        elif kind == "input_audio_buffer.clear":
            self._inbox.drop_audio()
            self._uncommitted_s = 0.0
            await self._inbox.put(Step("clear"))
        elif kind in _UPDATES:
            try:
                await self._update(self._settings.updated(event.get("session"), self._languages))
            except ConfigError as error:
                return error_event(str(error), "invalid_session", event_id)
            await self._send(new_event(_UPDATES[kind], session=self._record()))
        else:
            return error_event(f"type {kind[:60]!r} is unknown here", "unknown_type", event_id)
        return None

    async def _hear(self, data: bytes) -> None:
        """PCM16 at the session's rate."""
        self._uncommitted_s += len(data) / 2 / self._settings.rate_hz
        samples = self._pcm.convert(data)
        if samples.size:
            await self._inbox.put(Step("audio", samples))

    async def _commit(self, event_id: str | None) -> Record | None:
        """End the utterance, with the last samples that the resampler holds."""
        if self._uncommitted_s < _LEAST_COMMIT_S:
            found = f"{1000 * self._uncommitted_s:.0f} ms of audio since the last commit"
            return error_event(f"{found}, expected at least 100 ms", "input_audio_buffer_commit_empty", event_id)
        self._uncommitted_s = 0.0
        await self._flush()
        await self._inbox.put(Step("commit"))
        return None

    async def _update(self, settings: RealtimeSettings) -> None:
        """Take new settings from here on; audio before them keeps its own."""
        if settings.rate_hz != self._settings.rate_hz:
            await self._flush(settings.rate_hz)
        is_other = settings.decoding != self._settings.decoding or settings.is_manual != self._settings.is_manual
        self._settings = settings
        if is_other:
            await self._inbox.put(Step("configure", settings=settings))

    async def _flush(self, rate_hz: int | None = None) -> None:
        """Hand over what the resampler holds, and start a new one."""
        samples = self._pcm.finish()
        self._pcm = PcmStream(PcmFormat(rate_hz or self._settings.rate_hz, width_bytes=2, channels=1))
        if samples.size:
            await self._inbox.put(Step("audio", samples))

    def _record(self) -> Record:
        """The session as it is now."""
        return self._settings.record(self._id, self._model)

    async def _send(self, record: Record) -> None:
        """Send one event."""
        await self._socket.send_text(json.dumps(record, ensure_ascii=False))
