"""A client of the realtime WebSocket that speaks its JSON and keeps what it was told."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import soxr
from websockets.sync.client import ClientConnection, connect

TEXT = "conversation.item.input_audio_transcription"
PATH = "/v1/realtime?intent=transcription"


def pcm16(samples: np.ndarray, rate_hz: int = 24_000) -> bytes:
    """Return float32 16 kHz samples as 16-bit PCM at a rate."""
    at_rate = samples if rate_hz == 16_000 else soxr.resample(samples, 16_000, rate_hz)
    return (np.clip(at_rate, -1, 1) * 32767).astype("<i2").tobytes()


class Client:
    """A WebSocket that speaks JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []

    def send(self, kind: str, **values: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **values}))

    def append(self, samples: np.ndarray, rate_hz: int = 24_000) -> None:
        for chunk in np.array_split(samples, max(1, samples.size // 8_000)):
            self.send("input_audio_buffer.append", audio=base64.b64encode(pcm16(chunk, rate_hz)).decode())

    def until(self, kind: str, limit_s: float = 15.0) -> dict[str, Any]:
        """Read until an event of this kind has come."""
        end_s = time.monotonic() + limit_s
        while True:
            event = json.loads(self.socket.recv(timeout=max(0.01, end_s - time.monotonic())))
            self.events.append(event)
            if event["type"] == kind:
                return event

    def until_said(self, word: str, count: int = 1) -> None:
        """Read until the finished utterances hold a word so many times."""
        while self.said.lower().count(word) < count:
            self.until(f"{TEXT}.completed")

    @property
    def said(self) -> str:
        return " ".join(event["transcript"] for event in self.of(f"{TEXT}.completed"))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


@contextmanager
def open_client(server: Any, path: str = PATH, **options: Any) -> Iterator[Client]:
    """Connect; the session is created."""
    with connect(server.ws + path, max_queue=None, **options) as socket:  # unread events must not delay the close
        client = Client(socket)
        client.until("session.created")
        yield client
