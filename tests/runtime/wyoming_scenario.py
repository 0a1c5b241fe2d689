"""Scenarios of wyoming clients and a server over TCP, with a scripted recogniser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from event_loop import run
from stream_events import event
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.ping import Ping, Pong

from whisperfold.runtime.metrics import Metrics
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.wyoming_connection import WyomingLimits
from whisperfold.runtime.wyoming_server import WyomingServer, serve_wyoming

TIMEOUT_S = 10.0
WORDS = "one two three four five six seven eight nine ten".split()


class FakeStream:
    """Commits one word per half second of audio."""

    def __init__(self, recognizer: FakeRecognizer) -> None:
        self.recognizer = recognizer
        self.samples = np.zeros(0, np.float32)
        self.n_pushes = 0
        self.is_abandoned = False

    @property
    def text(self) -> str:
        return " ".join(WORDS[: self.samples.size // 8000])

    async def push(self, samples: np.ndarray) -> list[StreamEvent]:
        self.n_pushes += 1
        self.samples = np.concatenate([self.samples, samples])
        await self.recognizer.may_push.wait()
        return [event("partial", self.text)]

    async def finish(self) -> list[StreamEvent]:
        return [event("final", self.text + " end")]

    def abandon(self) -> None:
        self.is_abandoned = True


class FakeRecognizer:
    """A recogniser without weights."""

    name = "fake.en"
    languages = ("en", "de")

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []
        self.options: list[dict[str, Any]] = []
        self.may_push = asyncio.Event()
        self.may_push.set()
        self.error: Exception | None = None

    async def open_stream(self, options: Any = None, **decoding: Any) -> FakeStream:
        if self.error is not None:
            raise self.error
        self.options.append(decoding)
        self.streams.append(FakeStream(self))
        return self.streams[-1]


Scenario = Callable[[FakeRecognizer, WyomingServer], Coroutine[Any, Any, None]]


def play(scenario: Scenario, metrics: Metrics | None = None, **limits: Any) -> None:
    """Run a scenario against a server on a free port; whatever happened, the next client is served."""

    async def main() -> None:
        recognizer = FakeRecognizer()
        server = await serve_wyoming(
            recognizer,  # type: ignore[arg-type]
            port=0,
            metrics=metrics,
            limits=WyomingLimits(**limits),
        )
        try:
            await scenario(recognizer, server)
        finally:
            recognizer.may_push.set()
            await server.close()
        assert server.n_connections == 0

    run(main())


@asynccontextmanager
async def connected(server: WyomingServer) -> AsyncIterator[AsyncTcpClient]:
    """A client that waits for an answer a limited time."""
    async with AsyncTcpClient("127.0.0.1", server.port, read_timeout=TIMEOUT_S) as client:
        yield client


async def speak(client: AsyncTcpClient, samples: np.ndarray, chunk: int = 1600, start: bool = True) -> None:
    """Send float32 16 kHz samples as Home Assistant does."""
    if start:
        await client.write_event(AudioStart(16000, 2, 1).event())
    pcm = (samples * 32767).astype("<i2")
    for i in range(0, len(pcm), chunk):
        await client.write_event(AudioChunk(16000, 2, 1, pcm[i : i + chunk].tobytes()).event())
    await client.write_event(AudioStop().event())


async def answers(client: AsyncTcpClient) -> list[Event]:
    """Everything up to transcript-stop, or until the server hangs up."""
    events = []
    while (answer := await client.read_event()) is not None:
        events.append(answer)
        if answer.type == "transcript-stop":
            break
    return events


async def assert_serves(server: WyomingServer) -> None:
    """A new client is answered."""
    async with connected(server) as client:
        await client.write_event(Ping(text="still there?").event())
        assert Pong.from_event(await client.read_event()).text == "still there?"


def silence(seconds: float) -> np.ndarray:
    """So much of it at 16 kHz."""
    return np.zeros(round(16000 * seconds), np.float32)
