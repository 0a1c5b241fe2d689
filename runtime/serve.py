"""The server's flow: build, start, run, stop.

    ServerConfig -> Recognizer, Metrics, MicrophoneSource -> Starlette app -> uvicorn on TCP and a Unix socket
                                                          -> Wyoming port
    SIGHUP: config and bundle again    SIGTERM, SIGINT: no more work, finish what runs, leave

One process and one event loop; the model runs on the recogniser's threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from whisperfold.runtime import http_api
from whisperfold.runtime.captions_socket import captions
from whisperfold.runtime.enroll_api import enroll_routes
from whisperfold.runtime.enroll_job import EnrollJob
from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.errors import WhisperfoldError
from whisperfold.runtime.gate import Gate
from whisperfold.runtime.http_errors import answer_error
from whisperfold.runtime.listeners import listening
from whisperfold.runtime.metrics import Metrics
from whisperfold.runtime.notify import Notifier
from whisperfold.runtime.profiles_api import profile_routes
from whisperfold.runtime.realtime import realtime
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.server_config import NEED_RESTART, ServerConfig, is_loopback
from whisperfold.runtime.web_server import WebServer

if TYPE_CHECKING:
    from whisperfold.runtime.microphone_source import MicrophoneSource

_LOG = logging.getLogger(__name__)
WEB = Path(__file__).parent / "web"
Say = Callable[[str], None]


def serve(load: Callable[[], ServerConfig], say: Say) -> None:
    """Run a server until SIGTERM or SIGINT.

    Args:
        load: reads the config; called again at SIGHUP.
        say: tells the person at the terminal.

    Raises:
        WhisperfoldError: it cannot start.
    """
    config = load()
    with listening(config.host, config.port, config.unix_socket) as sockets:
        asyncio.run(_serve(config, load, sockets, say))


def create_app(
    config: ServerConfig, recognizer: Recognizer, metrics: Metrics, microphone: MicrophoneSource | None = None
) -> Starlette:
    """Return the application; everything that handlers share is in its state."""
    app = Starlette(
        routes=[
            Route("/", _page),
            Mount("/static", StaticFiles(directory=WEB, check_dir=False)),
            Route("/v1/audio/transcriptions", http_api.transcriptions, methods=["POST"]),
            Route("/v1/audio/translations", http_api.translations, methods=["POST"]),
            Route("/v1/models", http_api.models),
            *profile_routes,
            *enroll_routes,
            Route("/health", http_api.health),
            Route("/metrics", http_api.metrics),
            WebSocketRoute("/v1/realtime", realtime),
            WebSocketRoute("/v1/captions", captions),
        ],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=config.allowed_origins, allow_methods=["*"], allow_headers=["*"]),
            Middleware(Gate, metrics=metrics),
        ],
        exception_handlers={WhisperfoldError: answer_error, HTTPException: answer_error, Exception: answer_error},
    )
    app.state.config, app.state.recognizer, app.state.metrics = config, recognizer, metrics
    app.state.microphone = microphone
    enrollment = EnrollOptions(threads=config.threads, max_memory_mb=config.enroll_max_memory_mb)
    app.state.enroll_job = EnrollJob(recognizer, enrollment, config.enroll_nice)
    app.state.stopping = asyncio.Event()
    return app


async def _serve(
    config: ServerConfig, load: Callable[[], ServerConfig], sockets: list[socket.socket], say: Say
) -> None:
    """Build, start, run, stop."""
    metrics = Metrics()
    recognizer = Recognizer(
        config.bundle,
        config.threads,
        config.workers,
        config.max_waiting,
        config.idle_unload_s,
        metrics,
        config.providers,
        config.profiles,
        config.speaker,
    )
    microphone = _open_microphone(config, recognizer)
    app = create_app(config, recognizer, metrics, microphone)
    _watch(metrics, recognizer, microphone)
    notifier = Notifier.from_environment()
    server = WebServer(app)
    await recognizer.load()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(app.state.enroll_job.close)
        if config.wyoming_port:
            await stack.enter_async_context(_wyoming(config, recognizer, metrics))
        await stack.enter_async_context(_background(notifier.keep_alive(recognizer.is_alive)))
        running = await stack.enter_async_context(_background(server.serve(sockets)))
        stop = await stack.enter_async_context(_background(app.state.stopping.wait()))
        listen = await stack.enter_async_context(_background(microphone.run() if microphone else _nothing()))
        with _signals(app.state.stopping, lambda: _reload(app, load, notifier)):
            await server.until_started(running)
            for line in _endpoints(config, sockets):
                say(line)
            notifier.ready(f"serving {recognizer.name}")
            await asyncio.wait({stop, running}, return_when=asyncio.FIRST_COMPLETED)
            notifier.stopping()
            _LOG.info("event=stopping")
            listen.cancel()  # its followers get the last utterance, then their sockets close
            await server.stop(running, app.state.config.shutdown_s)
    await recognizer.close()
    _LOG.info("event=stopped")


def _open_microphone(config: ServerConfig, recognizer: Recognizer) -> MicrophoneSource | None:
    """The device's microphone, if one is configured."""
    if config.microphone is None:
        return None
    from whisperfold.runtime.microphone import Microphone
    from whisperfold.runtime.microphone_source import MicrophoneSource

    device = None if config.microphone == "default" else config.microphone
    return MicrophoneSource(recognizer, device, open_microphone=functools.partial(Microphone, block_s=config.chunk_s))


@contextlib.asynccontextmanager
async def _wyoming(config: ServerConfig, recognizer: Recognizer, metrics: Metrics) -> AsyncIterator[None]:
    """The Wyoming port."""
    from whisperfold.runtime.wyoming_connection import WyomingLimits
    from whisperfold.runtime.wyoming_server import serve_wyoming

    host = config.wyoming_host or config.host
    if not is_loopback(host):
        _LOG.warning(
            "event=wyoming_open host=%s: that protocol has no password; a firewall must say who may come", host
        )
    limits = WyomingLimits(
        connections=config.max_connections, idle_s=config.idle_timeout_s, backlog_s=config.max_buffer_s
    )
    server = await serve_wyoming(recognizer, host, config.wyoming_port or 0, metrics, config.zeroconf, limits)
    try:
        yield
    finally:
        await server.close()


def _watch(metrics: Metrics, recognizer: Recognizer, microphone: MicrophoneSource | None) -> None:
    """Values that are asked for whenever the metrics are read."""
    metrics.watch("whisperfold_queue_depth", "Runs that wait for a worker.", lambda: recognizer.status()["waiting"])
    metrics.watch("whisperfold_streams", "Open live streams.", lambda: recognizer.status()["streams"])
    metrics.watch(
        "whisperfold_weights_loaded", "1 if the weights are in memory.", lambda: recognizer.status()["loaded"]
    )
    if microphone is not None:
        dropped = microphone.status
        metrics.watch(
            "whisperfold_microphone_overflows", "Blocks of the microphone lost.", lambda: dropped()["dropped_blocks"]
        )


def _endpoints(config: ServerConfig, sockets: list[socket.socket]) -> list[str]:
    """One line for each place where the server can be reached."""
    host, port = sockets[0].getsockname()[:2]
    url = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    access = "" if config.is_loopback else " (token needed)"
    lines = [f"http://{url}/ web page, /v1/audio/transcriptions, /health, /metrics{access}"]
    lines.append(f"ws://{url}/v1/realtime live audio; /v1/captions the device's microphone{access}")
    if config.unix_socket is not None:
        lines.append(f"unix:{config.unix_socket} the same, without a token")
    if config.wyoming_port:
        lines.append(f"tcp://{config.wyoming_host or config.host}:{config.wyoming_port} Wyoming (Home Assistant)")
    return lines


async def _reload(app: Starlette, load: Callable[[], ServerConfig], notifier: Notifier) -> None:
    """Read config and bundle again; what cannot change while running stays, and is named in the log."""
    notifier.reloading()
    old: ServerConfig = app.state.config
    try:
        fresh = load()
        kept = {name: getattr(old, name) for name in NEED_RESTART}
        stale = [name for name, value in kept.items() if value != getattr(fresh, name)]
        await app.state.recognizer.reload(fresh.bundle)
        app.state.config = replace(fresh, **kept)
        _LOG.info("event=reloaded bundle=%s need_restart=%s", app.state.recognizer.name, ",".join(stale) or "none")
    except WhisperfoldError as error:
        _LOG.error("event=reload_failed error=%s", error)
    notifier.ready(f"serving {app.state.recognizer.name}")


async def _page(request: Request) -> FileResponse:
    """GET /: the web page."""
    return FileResponse(WEB / "index.html")


@contextlib.contextmanager
def _signals(stopping: asyncio.Event, reload: Callable[[], Any]) -> Any:
    """SIGTERM and SIGINT set stopping; SIGHUP starts a reload."""
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def start_reload() -> None:
        """One at a time is enough."""
        if not reloads:
            task = loop.create_task(reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    for number, handler in (
        (signal.SIGTERM, stopping.set),
        (signal.SIGINT, stopping.set),
        (signal.SIGHUP, start_reload),
    ):
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _background(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    """A task that ends with the block."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _nothing() -> None:
    """A task for what is not configured."""
