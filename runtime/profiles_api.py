"""The HTTP endpoints of the profiles: who has enrolled, whose voice is in use, the report, away with it.

    GET    /v1/profiles                    {"active": name or null, "profiles": [{"name", "version", ...}]}
    POST   /v1/profiles/active             {"name": name or null} -> the same list
    GET    /v1/profiles/NAME/report        the page of the current version
    DELETE /v1/profiles/NAME               the recordings stay, unless ?with_recordings=1; -> the same list

Who may ask is settled before (gate.py), as for every other endpoint. Disks are slow: stores are asked on a thread.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from whisperfold.runtime.errors import ProfileError
from whisperfold.runtime.http_errors import RequestError
from whisperfold.runtime.profile import Profile
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recognizer import Recognizer

_MAX_BODY_BYTES = 1024
_SHOWN = ("created", "owner", "canary", "recordings")
"""Of a profile's facts."""
REPORT_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
"""The report brings its style with it, and nothing else."""


async def _list(request: Request) -> Response:
    """GET /v1/profiles."""
    return await _answer(request.app.state.recognizer)


async def _use(request: Request) -> Response:
    """POST /v1/profiles/active."""
    recognizer: Recognizer = request.app.state.recognizer
    name = await _asked_name(request)
    if name is not None:
        await asyncio.to_thread(_check_known, recognizer.store, name)
    await recognizer.use(name)
    return await _answer(recognizer)


async def _report(request: Request) -> Response:
    """GET /v1/profiles/NAME/report."""
    store: ProfileStore = request.app.state.recognizer.store

    def read() -> str:
        """The page of the current version."""
        _check_known(store, request.path_params["name"])
        return store.read_report(store.get(request.path_params["name"]))

    return HTMLResponse(await asyncio.to_thread(read), headers=REPORT_HEADERS)


async def _delete(request: Request) -> Response:
    """DELETE /v1/profiles/NAME."""
    recognizer: Recognizer = request.app.state.recognizer
    with_recordings = request.query_params.get("with_recordings", "0")
    if with_recordings not in ("0", "1"):
        raise RequestError(400, "option", f"with_recordings={with_recordings[:20]!r}: expected 0 or 1")

    def delete() -> None:
        """The profile, whether or not there are recordings only."""
        _check_known(recognizer.store, request.path_params["name"])
        recognizer.store.delete(request.path_params["name"], with_recordings == "1")

    await asyncio.to_thread(delete)
    return await _answer(recognizer)


profile_routes = [
    Route("/v1/profiles", _list),
    Route("/v1/profiles/active", _use, methods=["POST"]),
    Route("/v1/profiles/{name}/report", _report),
    Route("/v1/profiles/{name}", _delete, methods=["DELETE"]),
]


async def _answer(recognizer: Recognizer) -> Response:
    """The list."""
    return JSONResponse(await asyncio.to_thread(_listed, recognizer))


def _listed(recognizer: Recognizer) -> dict[str, Any]:
    """Who is in use, and who has a profile; a damaged one is left out."""
    active, store = recognizer.profile, recognizer.store
    profiles = []
    for name in store.names():
        try:
            if store.has(name):
                profiles.append(_shown(store.get(name)))
        except ProfileError:
            continue
    return {"active": active.name if active else None, "profiles": profiles}


def _shown(profile: Profile) -> dict[str, Any]:
    """What is told of a profile."""
    return {
        "name": profile.name,
        "version": profile.version,
        **{name: profile.facts[name] for name in _SHOWN if name in profile.facts},
    }


def _check_known(store: ProfileStore, name: str) -> None:
    """404 for a name without a profile or recordings."""
    if name not in store.names():
        raise RequestError(404, "profile", f"no profile {name[:80]!r}; GET /v1/profiles lists them", "name")


async def _asked_name(request: Request) -> str | None:
    """The name in the body of a POST."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise RequestError(413, "body", f"the body is longer than {_MAX_BODY_BYTES} bytes")
    try:
        asked = json.loads(body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict) or set(asked) != {"name"} or not isinstance(asked["name"], str | None):
        raise RequestError(400, "body", 'expected {"name": "NAME"}, or {"name": null} for the bundle as it is', "name")
    name: str | None = asked["name"]
    return name
