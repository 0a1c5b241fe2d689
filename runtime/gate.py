"""What every request passes before its handler: access, room, time limit of the answer, headers, one line of log.

A peer that does not take its answer is cut off: the transport is aborted, because a polite close would wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from whisperfold.runtime.access import check_access, is_public, peer_name
from whisperfold.runtime.http_errors import Refusal, RequestError
from whisperfold.runtime.metrics import Metrics

_LOG = logging.getLogger(__name__)
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_PERSON = re.compile(
    r"(/v1/(?:enroll|profiles)/)(?!active$).+?(/(?:adapt(?:/events)?|report|recordings(?:/\d+\.flac)?))?$", re.DOTALL
)
"""What stands before and after a name; an unknown end is taken for a part of it."""


class _SlowPeer(OSError):
    """The peer has not taken its answer in time and is cut off."""


class Gate:
    """ASGI middleware around the whole application; settings are those of `app.state.config` at the moment."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        call = _Call(scope, send, scope["app"].state.config.idle_timeout_s)
        is_counted = not is_public(scope)  # a health check must work when the server is full
        self._open += is_counted
        try:
            with self._metrics.connections.labels(scope["type"]).track_inprogress():
                refusal = self._refusal(scope)
                if refusal is None:
                    await self._app(scope, receive, call.send)
                else:
                    call.reason = refusal.code
                    await Refusal(refusal)(scope, receive, call.send)
        except (_SlowPeer, WebSocketDisconnect):
            pass  # starlette may have turned the one into the other
        finally:
            self._open -= is_counted
            if call.reason:
                self._metrics.rejected.labels(call.reason).inc()
            call.log()

    def _refusal(self, scope: Scope) -> RequestError | None:
        """Why this request is not served, if it is not."""
        state = scope["app"].state
        try:
            check_access(scope, state.config)
        except RequestError as error:
            return error
        if is_public(scope):
            return None
        if state.stopping.is_set():
            return RequestError(503, "stopping", "the server is stopping; try again in a moment")
        if self._open > state.config.max_connections:
            return RequestError(503, "connections", f"{state.config.max_connections} connections are open; try again")
        return None


class _Call:
    """One request on its way: how it was answered, how long it took."""

    def __init__(self, scope: Scope, send: Send, timeout_s: float) -> None:
        self._scope, self._send, self._timeout_s = scope, send, timeout_s
        self._started_s = time.monotonic()
        self._status = 0
        self.reason = ""

    async def send(self, message: Message) -> None:
        """Pass a message on to a peer that takes it in time."""
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-cache" if is_public(self._scope) else "no-store")
        elif message["type"] == "websocket.accept":
            self._status = 101
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            self.reason = "slow"
            self._scope["state"]["abort"]()
            raise _SlowPeer from None

    def log(self) -> None:
        """One line per request; the query stays out of it, it may hold a token."""
        scope = self._scope
        is_routine = is_public(scope) or scope["path"] == "/metrics"
        _LOG.log(
            logging.DEBUG if is_routine and self._status < 400 else logging.INFO,
            "event=request peer=%s method=%s path=%s status=%d took_s=%.3f%s",
            peer_name(scope),
            scope.get("method", "WS"),
            _path(scope)[:100].encode("unicode_escape").decode("ascii").replace(" ", "%20"),
            self._status,
            time.monotonic() - self._started_s,
            f" refused={self.reason}" if self.reason else "",
        )


def _path(scope: Scope) -> str:
    """The path for the log; a person's name in it stays out, whether or not the request is served."""
    return _PERSON.sub(r"\1{name}\2", str(scope["path"]))
