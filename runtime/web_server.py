"""uvicorn as this server needs it: no signals, logs or trust in proxies of its own, and limits on connections.

socket -> Protocol (time for the head of a request, number of connections) -> app
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from whisperfold.runtime.server_config import ServerConfig

_LOG = logging.getLogger(__name__)
_IDLE_CONNECTIONS = 64
"""Connections without a request that are kept beside max_connections."""
_MAX_HEAD_BYTES = 32 * 1024
_MAX_MESSAGE_BYTES = 4 * 2**20
"""Of one WebSocket message: a minute of audio as base64."""
_KEEP_ALIVE_S = 15


class WebServer(uvicorn.Server):
    """One uvicorn server on sockets that are bound already."""

    def __init__(self, app: Starlette) -> None:
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="websockets-sansio",
            ws_max_size=_MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        )
        super().__init__(config)
        for name in ("uvicorn.error", "uvicorn.access"):
            logging.getLogger(name).setLevel(logging.WARNING)  # below it they log queries, and tokens in them

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Signals are ours."""
        yield

    async def until_started(self, running: asyncio.Task[None]) -> None:
        """Wait until connections are accepted."""
        while not self.started and not running.done():
            await asyncio.sleep(0.005)

    async def stop(self, running: asyncio.Task[None], limit_s: float) -> None:
        """Accept no more, let what runs finish for limit_s, cut the rest."""
        for listener in self.servers:
            listener.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.server_state.tasks:
                    await asyncio.sleep(0.02)
        self.config.timeout_graceful_shutdown = 1
        self.should_exit = True
        await running


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on silent connections, and on how many there are."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A peer has connected."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        if len(self.connections) > self._settings.max_connections + _IDLE_CONNECTIONS:
            _LOG.warning("event=connection_refused reason=connections open=%d", len(self.connections))
            transport.abort()
            return
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer is gone."""
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def on_response_complete(self) -> None:
        """The next request may come."""
        super().on_response_complete()
        self._await_request()

    @property
    def _settings(self) -> ServerConfig:
        """The config of the moment."""
        config: ServerConfig = self.config.app.state.config  # type: ignore[union-attr]
        return config

    def _await_request(self) -> None:
        """Give the peer idle_timeout_s for the head of its next request."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self._settings.idle_timeout_s, self._cut_silent, self.cycle)

    def _cut_silent(self, last: RequestResponseCycle | None) -> None:
        """Whoever has not sent a whole head since the last request will not be waited for."""
        is_same = self.cycle is last and (last is None or last.response_complete)
        if is_same and self.transport.get_protocol() is self:
            _LOG.info("event=connection_cut reason=silent peer=%s", self.client or "unix")
            self.transport.abort()
