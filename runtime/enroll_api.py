"""The HTTP endpoints of the enrollment wizard: sentences, recordings, the adaptation, how it ended.

    GET    /v1/enroll?language=en                what to read aloud, how much is needed, who has begun
    GET    /v1/enroll/NAME                       recordings, adaptation, result of the last one
    POST   /v1/enroll/NAME/recordings            form (enroll_take.py) -> what is wrong with it
    GET    /v1/enroll/NAME/recordings/0001.flac  to play it back       DELETE: away with it
    POST   /v1/enroll/NAME/adapt                 202, or 409 if one is running        DELETE: cancel
    GET    /v1/enroll/NAME/adapt/events          server-sent events: its state, until it has ended
    GET    /v1/enroll/NAME/report                the page of the newest version, taken or not

Who may ask is settled before (gate.py). Recordings are checked on the recogniser's workers; disks are asked on threads.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.enroll_job import EnrollJob, JobState
from whisperfold.runtime.enroll_take import Take, asked_language, check_take, receive_take
from whisperfold.runtime.errors import EnrollmentError, ProfileError
from whisperfold.runtime.http_api import CLIENT_GONE
from whisperfold.runtime.http_errors import RequestError
from whisperfold.runtime.lessons import MIN_RECORDINGS, MIN_TOTAL_S
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.profiles_api import REPORT_HEADERS
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.recordings import Recording, RecordingStore, read_prompts

N_PROMPTS = 25
_RESULT = ("created", "promoted", "reason", "owner", "canary", "recordings", "recordings_s", "left_out", "seconds")
"""Of a version's facts."""
_EVENT_HEADERS = {"X-Accel-Buffering": "no"}


async def _sentences(request: Request) -> Response:
    """GET /v1/enroll."""
    recognizer: Recognizer = request.app.state.recognizer
    language = asked_language(recognizer, request.query_params.get("language", "")) or "en"
    body = {
        "language": language,
        "languages": recognizer.languages,
        "prompts": _prompts(language),
        "people": await asyncio.to_thread(_people, recognizer.store),
        "needed": {"recordings": MIN_RECORDINGS, "seconds": MIN_TOTAL_S},
        "max_s": recognizer.bundle.window.max_s,
        "running": _job(request).is_running,
    }
    return JSONResponse(body)


async def _person(request: Request) -> Response:
    """GET /v1/enroll/NAME."""
    name, store = _name(request), request.app.state.recognizer.store
    kept, result, can_resume = await asyncio.to_thread(_found, store, name)
    body = {
        "name": name,
        "recordings": [_shown(item) for item in kept],
        "seconds": round(sum(item.duration_s for item in kept), 1),
        "adaptation": {**asdict(_job(request).state(name)), "can_resume": can_resume},
        "result": result,
    }
    return JSONResponse(body)


async def _add(request: Request) -> Response:
    """POST /v1/enroll/NAME/recordings."""
    name, recognizer = _name(request), request.app.state.recognizer
    try:
        take = await receive_take(request)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    take, check = await check_take(recognizer, take)
    kept = None
    if take.keep and not check.problem:
        kept = await asyncio.to_thread(_keep, recognizer.store, name, take)
    body = {
        "problem": check.problem,
        "warning": check.warning,
        "heard": check.heard,
        "snr_db": round(check.snr_db, 1),
        "duration_s": round(take.samples.size / SAMPLE_RATE, 2),
        "recording": _shown(kept) if kept else None,
    }
    return JSONResponse(body, 201 if kept else 200)


async def _audio(request: Request) -> Response:
    """GET /v1/enroll/NAME/recordings/FILE."""

    def read() -> bytes:
        """The file as it was written, unsealed where it is sealed."""
        recordings, recording = _recording(request)
        files = request.app.state.recognizer.store.said(_name(request))
        try:
            content: bytes = files.read(recordings.folder / recording.file)
        except FileNotFoundError:
            raise RequestError(404, "recording", "its file is gone; delete the recording, and read it again") from None
        return content

    return Response(await asyncio.to_thread(read), media_type="audio/flac")


async def _remove(request: Request) -> Response:
    """DELETE /v1/enroll/NAME/recordings/FILE."""

    def remove() -> None:
        """While nobody learns from it."""
        recordings, recording = _recording(request)
        with request.app.state.recognizer.store.locked(_name(request)):
            recordings.remove(recording)

    await asyncio.to_thread(remove)
    return await _person(request)


async def _adapt(request: Request) -> Response:
    """POST /v1/enroll/NAME/adapt."""
    name, recognizer = _name(request), request.app.state.recognizer
    language = asked_language(recognizer, request.query_params.get("language", ""))
    kept, _, _ = await asyncio.to_thread(_found, recognizer.store, name)
    seconds = sum(item.duration_s for item in kept)
    if len(kept) < MIN_RECORDINGS or seconds < MIN_TOTAL_S:
        raise RequestError(
            409,
            "recordings",
            f"{len(kept)} recordings, {seconds:.0f} s; expected at least {MIN_RECORDINGS} and {MIN_TOTAL_S:.0f} s: "
            "record more",
        )
    await _job(request).start(name, language)
    return JSONResponse(asdict(_job(request).state(name)), 202)


async def _cancel(request: Request) -> Response:
    """DELETE /v1/enroll/NAME/adapt."""
    name = _name(request)
    await _job(request).cancel(name)
    return JSONResponse(asdict(_job(request).state(name)))


async def _events(request: Request) -> Response:
    """GET /v1/enroll/NAME/adapt/events."""
    states = _job(request).follow(_name(request), request.app.state.stopping)
    return StreamingResponse(_as_events(states), headers=_EVENT_HEADERS, media_type="text/event-stream")


async def _report(request: Request) -> Response:
    """GET /v1/enroll/NAME/report."""
    name, store = _name(request), request.app.state.recognizer.store

    def read() -> str:
        """The newest page."""
        versions = store.versions(name)
        if not versions:
            raise RequestError(404, "report", "no report of this person; it comes with the adaptation")
        page: str = store.read_report(versions[-1])
        return page

    return HTMLResponse(await asyncio.to_thread(read), headers=REPORT_HEADERS)


enroll_routes: list[BaseRoute] = [
    Route("/v1/enroll", _sentences),
    Route("/v1/enroll/{name}", _person),
    Route("/v1/enroll/{name}/recordings", _add, methods=["POST"]),
    Route("/v1/enroll/{name}/recordings/{file}", _audio),
    Route("/v1/enroll/{name}/recordings/{file}", _remove, methods=["DELETE"]),
    Route("/v1/enroll/{name}/adapt", _adapt, methods=["POST"]),
    Route("/v1/enroll/{name}/adapt", _cancel, methods=["DELETE"]),
    Route("/v1/enroll/{name}/adapt/events", _events),
    Route("/v1/enroll/{name}/report", _report),
]


def _job(request: Request) -> EnrollJob:
    """The server's adaptations."""
    job: EnrollJob = request.app.state.enroll_job
    return job


def _name(request: Request) -> str:
    """The person of the address."""
    name: str = request.path_params["name"]
    try:
        request.app.state.recognizer.store.person(name)
    except ProfileError as error:
        raise RequestError(400, "name", str(error), "name") from None
    return name


def _prompts(language: str) -> list[str]:
    """The packaged sentences; none for most languages: people write their own."""
    try:
        return read_prompts(language)[:N_PROMPTS]
    except EnrollmentError:
        return []


def _keep(store: ProfileStore, name: str, take: Take) -> Recording:
    """Store a take; one that was sent twice is kept once."""
    with store.locked(name):
        store.keep_language(name, take.language)
        recordings = store.recordings(name)
        if (added := recordings.add(take.samples, take.text)) is not None:
            return added
        for item in recordings.all():
            if item.text == take.text:
                return item
    raise RequestError(409, "recording", "this very recording is kept already, for another sentence: read it again")


def _recording(request: Request) -> tuple[RecordingStore, Recording]:
    """The recording of the address, and where it is."""
    recordings: RecordingStore = request.app.state.recognizer.store.recordings(_name(request))
    for item in recordings.all():
        if item.file == request.path_params["file"]:
            return recordings, item
    raise RequestError(404, "recording", "no such recording; GET /v1/enroll/NAME lists them", "file")


def _found(store: ProfileStore, name: str) -> tuple[list[Recording], dict[str, Any] | None, bool]:
    """Recordings, the result of the last adaptation, and whether one can go on."""
    versions = store.versions(name)
    result = None
    if versions:
        facts = versions[-1].facts
        result = {"version": versions[-1].version, **{key: facts[key] for key in _RESULT if key in facts}}
    can_resume = any((store.person(name) / "state").glob("*.safetensors"))
    return store.recordings(name).all(), result, can_resume


def _people(store: ProfileStore) -> list[dict[str, Any]]:
    """Who has recordings or a profile; of one whose recordings cannot be counted, why."""
    people = []
    for name in store.names():
        n_kept, problem = None, ""
        try:
            if store.is_encrypted(name):
                problem = "encrypted"
            else:
                n_kept = len(store.recordings(name).all())
        except (EnrollmentError, ProfileError, OSError):  # GET of the person says more
            problem = "damaged"
        people.append({"name": name, "recordings": n_kept, "problem": problem})
    return people


def _shown(recording: Recording) -> dict[str, Any]:
    """What is told of a recording."""
    return {"file": recording.file, "text": recording.text, "duration_s": recording.duration_s}


async def _as_events(states: AsyncIterator[JobState]) -> AsyncIterator[bytes]:
    """Server-sent events."""
    async for state in states:
        yield f"event: state\ndata: {json.dumps(asdict(state))}\n\n".encode()
