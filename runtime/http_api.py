"""The HTTP endpoints: recordings in, transcripts out, in OpenAI's shapes; health and metrics.

form -> Request (transcription_request.py) -> recognizer.segments -> json, text, srt, vtt, verbose_json or events
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from whisperfold.runtime.access import check_caller
from whisperfold.runtime.http_errors import RequestError, as_request_error, error_body
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.transcript import Segment
from whisperfold.runtime.transcription_request import TranscriptionRequest, read_request
from whisperfold.runtime.transcription_response import done_event, render, segment_event
from whisperfold.runtime.upload import receive_upload

_LOG = logging.getLogger(__name__)
_UNBUFFERED = {"X-Accel-Buffering": "no"}
"""Tells a reverse proxy (nginx) to pass events on at once."""
CLIENT_GONE = 499
"""nginx's status for a client that did not wait; nobody reads it but the log."""


async def transcriptions(request: Request) -> Response:
    """POST /v1/audio/transcriptions."""
    return await _recognise(request, "transcribe")


async def translations(request: Request) -> Response:
    """POST /v1/audio/translations."""
    return await _recognise(request, "translate")


async def models(request: Request) -> Response:
    """GET /v1/models: the bundle, and the names that mean it."""
    state = request.app.state
    names = [state.recognizer.name, *state.config.model_aliases]
    records = [
        {"id": name, "object": "model", "created": 0, "owned_by": "whisperfold"} for name in dict.fromkeys(names)
    ]
    return JSONResponse({"object": "list", "data": records})


async def health(request: Request) -> Response:
    """GET /health: 200 if work is taken, else 503 with the reason; whose voice is used is not for everybody.

    "degraded" is 200: the microphone is gone, or older weights go on because a profile or bundle cannot be loaded.
    """
    state = request.app.state
    recognizer = state.recognizer.status()
    try:
        check_caller(request.scope, state.config)
    except RequestError:
        recognizer.pop("profile", None)
    microphone = state.microphone.status() if state.microphone is not None else None
    why = []
    if recognizer["error"] and not recognizer["held_back"]:
        why.append("weights")
    if recognizer["waiting"] > recognizer["max_waiting"]:
        why.append("queue")
    if state.stopping.is_set():
        why.append("stopping")
    is_able = not why
    if recognizer["held_back"]:
        why.append(recognizer["held_back"])
    if microphone is not None and microphone["state"] in ("lost", "failed"):
        why.append("microphone")
    body = {
        "status": "ready" if not why else "degraded" if is_able else "unavailable",
        "why": why,
        "recognizer": {name: value for name, value in recognizer.items() if name not in ("error", "held_back")},
        "microphone": microphone,
    }
    return JSONResponse(body, 200 if is_able else 503)


async def metrics(request: Request) -> Response:
    """GET /metrics: Prometheus text."""
    found = request.app.state.metrics
    return Response(found.render(), media_type=found.content_type)


async def _recognise(request: Request, task: str) -> Response:
    """A recording from its form to the answer."""
    state = request.app.state
    state.recognizer.check_room()  # before a large body is taken in for nothing
    try:
        upload = await receive_upload(request, state.config)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    try:
        asked = read_request(upload, task, state.recognizer, state.config)
    except BaseException:
        upload.close()
        raise
    segments = _until_closed(state.recognizer, asked)
    if asked.stream:
        first = await _while_connected(request, anext(segments, None))
        events = _events(first, segments, asked, state.config.log_transcripts)
        return StreamingResponse(events, headers=_UNBUFFERED, media_type="text/event-stream")
    found = await _while_connected(request, _collect(segments))
    if found is None:
        return Response(status_code=CLIENT_GONE)
    _log_transcript(state.config.log_transcripts, found)
    return render(asked, found, state.recognizer)


async def _until_closed(recognizer: Recognizer, asked: TranscriptionRequest) -> AsyncIterator[Segment]:
    """Segments; the work ends when the iteration does."""
    async with aclosing(recognizer.segments(asked.blocks, **asked.options)) as segments:  # type: ignore[type-var]
        async for segment in segments:
            yield segment


async def _collect(segments: AsyncIterator[Segment]) -> list[Segment]:
    """All segments."""
    return [segment async for segment in segments]


async def _while_connected(request: Request, work: Coroutine[Any, Any, Any] | Any) -> Any:
    """The result of work, or None if the client leaves first; then the work is cancelled."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for started in (task, watcher):
            started.cancel()
        await asyncio.wait({task, watcher})


async def _disconnected(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    first: Segment | None, segments: AsyncIterator[Segment], asked: TranscriptionRequest, log_transcripts: bool
) -> AsyncIterator[bytes]:
    """Server-sent events: a delta per segment, then the whole text; an error ends them."""
    found: list[Segment] = []
    try:
        if first is not None:
            for event in segment_event(asked, first, found):
                yield _event(event)
        async with aclosing(segments):  # type: ignore[type-var]
            async for segment in segments:
                for event in segment_event(asked, segment, found):
                    yield _event(event)
        _log_transcript(log_transcripts, found)
        yield _event(done_event(asked, found))
    except Exception as error:
        refusal = as_request_error(error)
        _LOG.log(logging.ERROR if refusal.status == 500 else logging.INFO, "event=stream_failed code=%s", refusal.code)
        yield _event({"type": "error", **error_body(refusal)})


def _event(record: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {record['type']}\ndata: {json.dumps(record, ensure_ascii=False)}\n\n".encode()


def _log_transcript(is_wanted: bool, segments: list[Segment]) -> None:
    """Only an owner who asks for it gets text in the log."""
    if is_wanted:
        _LOG.info("event=transcript text=%r", " ".join(segment.text for segment in segments))
