"""A real server for the tests of the protocols: uvicorn in a thread, on a free port and a Unix socket.

And stand-ins for the tests of the command line.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf
from starlette.applications import Starlette

from whisperfold.runtime import devices, microphone, speaker
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.listeners import listening
from whisperfold.runtime.metrics import Metrics
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.serve import create_app
from whisperfold.runtime.server_config import ServerConfig
from whisperfold.runtime.session import Engine
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.web_server import WebServer

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file
from cli_stand_in import FakeTranscriber  # noqa: E402


@dataclass
class LiveServer:
    """A running server; `call` runs something on its loop."""

    app: Starlette
    host: str
    loop: asyncio.AbstractEventLoop
    server: WebServer

    @property
    def http(self) -> str:
        return f"http://{self.host}"

    @property
    def ws(self) -> str:
        return f"ws://{self.host}"

    @property
    def metrics(self) -> str:
        return self.app.state.metrics.render().decode()

    def call(self, function: Callable[[], Any]) -> None:
        self.loop.call_soon_threadsafe(function)

    def until(self, condition: Callable[[], bool], limit_s: float = 10.0) -> None:
        """Wait until the server has come so far."""
        end_s = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end_s, "condition never came true"
            time.sleep(0.01)


StartServer = Callable[..., LiveServer]


@pytest.fixture(scope="session")
def start_server(transcriber: Transcriber, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start servers that share the session's weights; settings are fields of ServerConfig."""
    running: list[tuple[LiveServer, threading.Thread]] = []

    def start(
        microphone: Any = None, recognizer: Callable[..., Recognizer] = Recognizer, **settings: Any
    ) -> LiveServer:
        no_profiles = tmp_path_factory.getbasetemp() / "no-profiles"
        given = {"port": 0, "bundle": transcriber.bundle.path, "profiles": no_profiles, **settings}
        config = ServerConfig(**given).checked()
        ready: Future[LiveServer] = Future()
        thread = threading.Thread(
            target=lambda: asyncio.run(_run(config, transcriber, recognizer, microphone, ready)), daemon=True
        )
        thread.start()
        live = ready.result(20)
        running.append((live, thread))
        return live

    yield start
    for live, thread in running:
        if thread.is_alive():
            live.call(live.app.state.stopping.set)
        thread.join(20)
        assert not thread.is_alive(), "a server does not stop"


@pytest.fixture(scope="session")
def server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> LiveServer:
    """One server with ordinary settings, for the tests that do not change it."""
    return start_server(unix_socket=tmp_path_factory.mktemp("sock") / "whisperfold.sock")


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    """A client of the ordinary server."""
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


async def _run(
    config: ServerConfig,
    transcriber: Transcriber,
    make_recognizer: Callable[..., Recognizer],
    microphone: Any,
    ready: Future[LiveServer],
) -> None:
    try:
        with listening(config.host, config.port, config.unix_socket) as sockets:
            metrics = Metrics()
            recognizer = make_recognizer(
                config.bundle,
                2,
                config.workers,
                config.max_waiting,
                metrics=metrics,
                profiles=config.profiles,
                speaker=config.speaker,
            )
            recognizer._weights._loaded = transcriber  # loaded once for all tests
            app = create_app(config, recognizer, metrics, microphone)
            web = WebServer(app)
            task = asyncio.create_task(web.serve(sockets))
            await web.until_started(task)
            host, port = sockets[0].getsockname()[:2]
            ready.set_result(LiveServer(app, f"{host}:{port}", asyncio.get_running_loop(), web))
            await app.state.stopping.wait()
            await web.stop(task, 5.0)
            await recognizer.close()
    except BaseException as error:
        if not ready.done():
            ready.set_exception(error)
        raise


@pytest.fixture(scope="session")
def short_clip(tmp_path_factory: pytest.TempPathFactory, jfk: Any) -> Path:
    """Two seconds of speech as FLAC."""
    path = tmp_path_factory.mktemp("clip") / "short.flac"
    sf.write(path, jfk[: 16_000 * 2], 16_000)
    return path


FACTS = {"promoted": True, "reason": "better", "owner": {"before": 10.0, "after": 8.0}, "canary": {}, "recordings": 8}


@pytest.fixture(scope="session")
def other_voice(bundle: Bundle, transcriber: Transcriber, jfk: np.ndarray) -> tuple[Adapter, dict[str, np.ndarray]]:
    """An adapter that nobody trained, and its weights: strong enough to change what the sample clip says."""
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    adapter, rng = Adapter.create(bundle, rank=4, alpha=4.0), np.random.default_rng(1)
    for name in [name for name in adapter.tensors if name.endswith("lora_B")]:
        adapter.tensors[name] = rng.normal(0.0, 0.05, adapter.tensors[name].shape).astype(np.float32)
    clips = [jfk, jfk[: 16_000 * 5]]
    plain = [transcriber.transcribe(clip).text for clip in clips]
    for strength in np.arange(0.5, 3.0, 0.1):
        voice = adapter.weakened(float(strength))
        weights = voice.fold(bundle)
        changed = Transcriber(Engine(bundle, 2, overrides=weights))
        texts = [changed.transcribe(clip).text for clip in clips]
        if all(text and text != was for text, was in zip(texts, plain, strict=True)):
            return voice, weights
    raise AssertionError("no strength of a random adapter changes the texts and leaves some")


@pytest.fixture
def voices(bundle: Bundle, other_voice: tuple[Adapter, dict[str, np.ndarray]], tmp_path: Path) -> ProfileStore:
    """A store where anna has a profile, which is not in use."""
    store = ProfileStore(bundle, tmp_path / "profiles")
    store.promote(store.add("anna", *other_voice, FACTS, "<style>p{}</style><p>report of anna</p>"))
    return store


@pytest.fixture
def make(bundle_path: Path, transcriber: Transcriber) -> Callable[..., Recognizer]:
    """Recognizers on weights that are loaded already."""

    def make(is_loaded: bool = True, **settings: Any) -> Recognizer:
        recognizer = Recognizer(bundle_path, threads=2, speaker="none", **settings)
        recognizer._weights._loaded = transcriber if is_loaded else None
        return recognizer

    return make


@pytest.fixture
def recogniser(monkeypatch: pytest.MonkeyPatch) -> FakeTranscriber:
    """The stand-in that every command of this test opens."""
    fake = FakeTranscriber()

    def fake_open(*arguments: Any) -> FakeTranscriber:
        fake.opened.append(arguments)
        return fake

    monkeypatch.setattr(speaker, "open_transcriber", fake_open)
    return fake


@pytest.fixture
def usb_microphone(monkeypatch: pytest.MonkeyPatch) -> devices.InputDevice:
    """The only device that can record; PortAudio is not asked."""
    device = devices.InputDevice(3, "USB Mic", 1, 48000, "ALSA", True)
    for module in (devices, microphone):
        monkeypatch.setattr(module, "load_sounddevice", lambda: None)
        monkeypatch.setattr(module, "list_devices", lambda refresh=False: [device])
    return device


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """Path of a second of silence."""
    path = tmp_path / "clip.wav"
    sf.write(path, np.zeros(16000, np.float32), 16000)
    return str(path)
