"""A live stream: pushes that overlap, what is counted, an utterance that the client ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from event_loop import run, until

from whisperfold.runtime.live_stream import LiveStream
from whisperfold.runtime.metrics import Metrics
from whisperfold.runtime.recognizer import Recognizer

Make = Callable[..., Recognizer]


def test_a_stream(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        metrics = Metrics()
        recognizer = make(metrics=metrics)
        stream = await recognizer.open_stream()
        assert recognizer.status()["streams"] == 1
        events = []
        for chunk in np.array_split(np.concatenate([jfk, np.zeros(24_000, np.float32)]), 25):
            events += await stream.push(chunk)
        events += await stream.finish()
        assert recognizer.status()["streams"] == 0
        finals = [event.committed for event in events if event.kind == "final"]
        assert "country" in " ".join(finals)
        text = metrics.render().decode()
        assert f"whisperfold_utterances_total {len(finals)}.0" in text
        n_words = sum(len(final.split()) for final in finals)
        assert f"whisperfold_commit_latency_seconds_count {n_words}.0" in text
        await recognizer.close()

    run(work())


def test_calls_of_a_stream_never_overlap(make: Make) -> None:
    class Session:
        level_dbfs, in_speech = -60.0, False

        def __init__(self) -> None:
            self.sizes: list[int] = []
            self.gate = threading.Event()
            self._busy = threading.Lock()

        def accept_chunk(self, samples: np.ndarray) -> list[Any]:
            assert self._busy.acquire(blocking=False)
            self.sizes.append(samples.size)
            self.gate.wait(10)
            self._busy.release()
            return []

        def finish(self) -> list[Any]:
            return []

    async def work() -> None:
        recognizer, session = make(workers=3), Session()
        stream = LiveStream(session, recognizer.run, lambda: None)  # type: ignore[arg-type]
        pushes = [asyncio.create_task(stream.push(np.zeros(size, np.float32))) for size in (1, 2, 3, 4)]
        await until(lambda: session.sizes != [])
        session.gate.set()
        await asyncio.gather(*pushes)
        assert session.sizes[0] + sum(session.sizes[1:]) == 10 and len(session.sizes) <= 2
        await recognizer.close()

    run(work())


def test_an_utterance_that_a_client_ends_is_counted(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        metrics = Metrics()
        recognizer = make(metrics=metrics)
        stream = await recognizer.open_stream()
        await stream.push(jfk[: 16_000 * 2])
        events = await stream.end_utterance()
        finals = [event for event in events if event.kind == "final"]
        n_words = len(finals[0].committed.split())
        text = metrics.render().decode()
        assert f"whisperfold_utterances_total {len(finals)}.0" in text and len(finals) == 1
        assert "whisperfold_final_latency_seconds_count 1.0" in text
        assert f"whisperfold_commit_latency_seconds_count {n_words}.0" in text
        events = await stream.push(jfk[16_000 * 2 : 16_000 * 4]) + await stream.finish()
        assert [event.utterance for event in events if event.kind == "final"] == [1]
        assert "whisperfold_utterances_total 2.0" in metrics.render().decode()
        await recognizer.close()

    run(work())
