"""A Wyoming server, as Home Assistant wants it: text comes while the person speaks.

    port -> connections (wyoming_connection.py) -> utterances (wyoming_stream.py) -> Recognizer

A client that does wrong gets an ``error`` event and is disconnected (which every client understands); the others
notice nothing. **The protocol has neither passwords nor encryption**: the default address is this machine only; on
any other, whoever reaches the port can use it, so let a firewall or the unit's IPAddressAllow say who that is.

Source: the README and classes of the wyoming package.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from wyoming.info import AsrModel, AsrProgram, Attribution, Info

from whisperfold.runtime.announce import Announcement, announce
from whisperfold.runtime.errors import BusyError, ServerError, WhisperfoldError
from whisperfold.runtime.wyoming_connection import WyomingConnection, WyomingLimits

if TYPE_CHECKING:
    from whisperfold.runtime.metrics import Metrics
    from whisperfold.runtime.recognizer import Recognizer

_LOG = logging.getLogger(__name__)
DEFAULT_PORT = 10300
"""What Home Assistant's own whisper server uses."""


async def serve_wyoming(
    recognizer: Recognizer,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    metrics: Metrics | None = None,
    zeroconf: bool = True,
    limits: WyomingLimits | None = None,
) -> WyomingServer:
    """Start to serve.

    Args:
        recognizer: does the work.
        host: address to listen on; the default is this machine only. There is no password on any.
        port: TCP port; 0 takes a free one.
        metrics: where connections and refusals are counted.
        zeroconf: announce the server on the local network, unless host is this machine only.
        limits: see `WyomingLimits`.

    Returns:
        The running server; ``await server.close()`` ends it.

    Raises:
        ServerError: the port cannot be listened on.
    """
    server = WyomingServer(recognizer, metrics, limits or WyomingLimits())
    await server.start(host, port, zeroconf)
    return server


class WyomingServer:
    """Listens, and holds the connections."""

    def __init__(self, recognizer: Recognizer, metrics: Metrics | None, limits: WyomingLimits) -> None:
        self.recognizer, self.metrics, self.limits = recognizer, metrics, limits
        self._connections: dict[asyncio.Task[None], WyomingConnection] = {}
        self._server: asyncio.Server | None = None
        self._announcement: Announcement | None = None

    @property
    def port(self) -> int:
        """TCP port that is listened on."""
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def n_connections(self) -> int:
        """Clients that are connected now."""
        return len(self._connections)

    async def start(self, host: str, port: int, zeroconf: bool) -> None:
        """Listen and announce; see `serve_wyoming`."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=self.limits.header_bytes)
        except OSError as error:
            raise ServerError(f"wyoming: cannot listen on {host}:{port} ({error.strerror}); choose another") from error
        _LOG.info("event=wyoming_listening host=%s port=%d", host, self.port)
        if zeroconf:
            self._announcement = await announce(f"whisperfold-{socket.gethostname()}", host, self.port)

    async def close(self, grace_s: float = 10.0) -> None:
        """Take no more clients, let open utterances end for grace_s, disconnect everybody."""
        if self._announcement is not None:
            await self._announcement.close()
        if self._server is not None:
            self._server.close()
        for task, connection in self._connections.items():
            connection.is_last = True
            if not connection.is_speaking:
                task.cancel()
        if self._connections:
            _, late = await asyncio.wait(list(self._connections), timeout=grace_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._server is not None:
            await self._server.wait_closed()

    def info(self) -> Info:
        """What `describe` is answered with."""
        model = AsrModel(
            name=self.recognizer.name,
            languages=list(self.recognizer.languages),
            attribution=Attribution(name="OpenAI (Whisper)", url="https://github.com/openai/whisper"),
            installed=True,
            description=f"Whisper {self.recognizer.name}, compressed for this device",
            version=None,
        )
        program = AsrProgram(
            name="whisperfold",
            models=[model],
            attribution=Attribution(name="whisperfold, after AdaPTwin", url="https://arxiv.org/abs/2406.08904"),
            installed=True,
            description="Speech recognition folded to fit the device",
            version=None,
            supports_transcript_streaming=True,
        )
        return Info(asr=[program])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, from its first to its last byte; whatever it does stays in here."""
        task = asyncio.current_task()
        assert task is not None
        connection = WyomingConnection(self.recognizer, self.info, self.limits, reader, writer)
        try:
            if len(self._connections) >= self.limits.connections:
                raise BusyError(f"{self.limits.connections} clients are connected; try again", reason="connections")
            self._connections[task] = connection
            self._count_connections()
            await connection.run()
        except asyncio.CancelledError:
            pass  # close() ends us
        except TimeoutError:
            _LOG.info("event=wyoming_idle peer=%s idle_s=%g", connection.peer, self.limits.idle_s)
        except (OSError, asyncio.IncompleteReadError):
            _LOG.debug("event=wyoming_lost peer=%s", connection.peer)
        except WhisperfoldError as error:
            _LOG.warning("event=wyoming_refused peer=%s error=%s", connection.peer, error)
            self._count_refusal(error)
            await connection.refuse(error)
        except Exception:
            _LOG.exception("event=wyoming_failed peer=%s", connection.peer)
            await connection.refuse(ServerError("internal error; see the server's log"))
        finally:
            await connection.close()
            self._connections.pop(task, None)
            self._count_connections()

    def _count_connections(self) -> None:
        """Tell the metrics how many clients are connected."""
        if self.metrics is not None:
            self.metrics.connections.labels("wyoming").set(len(self._connections))

    def _count_refusal(self, error: WhisperfoldError) -> None:
        """Tell the metrics why a client was sent away."""
        if self.metrics is not None:
            reason = error.reason if isinstance(error, BusyError) else "wyoming"
            self.metrics.rejected.labels(reason).inc()
