"""Why a request is not served -> the answer, in the shape that OpenAI's clients read.

{"error": {"message": "...", "type": "invalid_request_error", "param": null, "code": "audio"}}
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from whisperfold.runtime.errors import (
    AudioError,
    BundleError,
    BusyError,
    ConfigError,
    EnrollmentError,
    ProfileError,
    WhisperfoldError,
)

RETRY_AFTER_S = 2
"""What a client is told to wait after a 503, seconds."""
_LINGER_S = 5.0
"""A refused client may go on sending for this long: closed at once, it would never see the answer."""


class RequestError(WhisperfoldError):
    """A request that cannot be served.

    Attributes:
        status: HTTP status.
        code: one word for programs, logs and metrics.
        param: name of the field that is wrong, if it is one.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def as_request_error(error: Exception) -> RequestError:
    """Return the status and code that an error means for the client."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BusyError):
        return RequestError(503, error.reason, str(error))
    if isinstance(error, AudioError):
        return RequestError(400, "audio", str(error), "file")
    if isinstance(error, ConfigError):
        return RequestError(400, "option", str(error))
    if isinstance(error, ProfileError | EnrollmentError):
        return RequestError(409, "profile", str(error))
    if isinstance(error, BundleError):
        return RequestError(503, "bundle", "the speech model cannot be loaded; the server's log says why")
    if isinstance(error, HTTPException):
        return RequestError(error.status_code, "http", str(error.detail))
    return RequestError(500, "internal", "internal error; the server's log says more")


def error_body(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def error_headers(error: RequestError) -> dict[str, str]:
    """Headers that belong to the status."""
    if error.status == 503:
        return {"Retry-After": str(RETRY_AFTER_S)}
    if error.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {}


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette exception handler: an unread body is taken while the answer is under way."""
    refusal = as_request_error(error)
    if getattr(request, "_stream_consumed", False):
        return JSONResponse(error_body(refusal), refusal.status, error_headers(refusal))
    return Refusal(refusal)


class Refusal(Response):
    """An answer before the end of the request's body; works as an ASGI app for HTTP and WebSocket."""

    def __init__(self, error: RequestError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(
            json.dumps(error_body(error)).encode(),
            error.status,
            {**error_headers(error), "Connection": "close", **(headers or {})},
            "application/json",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, then read on for a moment."""
        if scope["type"] == "websocket":
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_S):
                message = await receive()
                while message["type"] == "http.request" and message.get("more_body"):
                    message = await receive()
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
