"""Live streams while the profile is switched: every utterance on one set of weights, none lost, none twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime.audio import load_audio
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.error_rate import error_rate, normalised_words, score
from whisperfold.runtime.metrics import Metrics
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.speaker import open_transcriber
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.transcribe import Transcriber

CANARY = Path(__file__).resolve().parents[2] / "runtime" / "canary"
RATE_HZ = 16_000
SECOND = np.zeros(RATE_HZ, np.float32)
KENNEDY = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def check_stream(events: list[StreamEvent], reference: str) -> list[str]:
    """Every start has at most one final, none comes twice, times go on, and the words are there once; the finals."""
    finals = [event for event in events if event.kind == "final"]
    numbers = [event.utterance for event in finals]
    assert numbers == sorted(set(numbers)), "a final twice or out of order"
    assert set(numbers) <= {event.utterance for event in events if event.kind == "start"}
    for one, next_one in zip(finals, finals[1:], strict=False):
        assert one.end_s <= next_one.start_s + 0.1
    for event in events:  # committed text never changes
        if event.kind == "partial" and event.utterance in numbers:
            assert finals[numbers.index(event.utterance)].committed.startswith(event.committed)
    said = " ".join(event.committed for event in finals)
    assert all(event.committed for event in finals)
    rate = error_rate([score("stream", reference, said)])
    assert rate < 25.0, f"{rate:.1f} %: {said}"
    n_expected, n_heard = len(normalised_words(reference)), len(normalised_words(said))
    assert 0.85 * n_expected < n_heard < 1.15 * n_expected
    return [event.committed for event in finals]


def test_a_stream_goes_over_between_two_utterances_never_within_one(
    bundle: Bundle, voices: ProfileStore, jfk: np.ndarray
) -> None:
    async def work() -> None:
        recognizer = Recognizer(bundle.path, threads=2, profiles=voices.folder.parent)
        stream = await recognizer.open_stream()
        engines: dict[int, set[int]] = {}
        chunks = np.array_split(np.concatenate([SECOND, jfk, SECOND, SECOND, jfk, SECOND]), 108)
        events: list[StreamEvent] = []
        for number, chunk in enumerate(chunks):
            events += await stream.push(chunk)
            utterance = stream._session._utterance
            if utterance is not None:
                engines.setdefault(utterance.number, set()).add(id(stream._session._engine))
            if number == 9:
                voices.use("anna")
            if number == 10:  # the last push has seen it
                await until(lambda: recognizer._weights._loaded.profile is not None)
                assert utterance is not None and utterance.number == 0
            if number == 11:
                assert utterance is not None and utterance.number == 0, "the switch is to wait for its end"
        events += await stream.finish()
        assert all(len(found) == 1 for found in engines.values())
        assert len(set.union(*engines.values())) == 2
        assert stream._session._engine is recognizer._weights._loaded.engine
        check_stream(events, f"{KENNEDY} {KENNEDY}")
        await recognizer.close()

    asyncio.run(asyncio.wait_for(work(), 30))


@pytest.mark.slow
def test_switching_under_load_loses_nothing(
    bundle: Bundle, voices: ProfileStore, transcriber: Transcriber, jfk: np.ndarray
) -> None:
    rows = [json.loads(line) for line in (CANARY / "canary.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: row["duration_s"])[:6]
    talks = []
    for first in (0, 2, 4):
        pieces, said = [SECOND, jfk, SECOND], [KENNEDY]
        for row in rows[first : first + 2]:
            pieces += [load_audio(CANARY / row["audio"]), SECOND]
            said.append(row["text"])
        talks.append((np.concatenate(pieces), " ".join(said)))

    clip = jfk[: RATE_HZ * 5]
    anna = open_transcriber(bundle.path, "anna", voices.folder.parent, 2)
    texts = {transcriber.transcribe(clip).text, anna.transcribe(clip).text}
    assert len(texts) == 2

    async def work() -> None:
        metrics = Metrics()
        recognizer = Recognizer(bundle.path, threads=2, workers=2, metrics=metrics, profiles=voices.folder.parent)
        n_pushed, n_chunks = 0, sum(-(-talk.size // 3200) for talk, _ in talks)
        engines: set[int] = set()
        clips: list[str] = []

        async def talk(samples: np.ndarray) -> list[StreamEvent]:
            nonlocal n_pushed
            stream, events = await recognizer.open_stream(), []
            for first in range(0, samples.size, 3200):
                events += await stream.push(samples[first : first + 3200])
                engines.add(id(stream._session._engine))
                n_pushed += 1
            return events + await stream.finish()

        async def upload() -> None:
            while n_pushed < n_chunks:
                clips.append((await recognizer.transcribe(clip)).text)

        async def switch() -> None:
            """Back and forth, from here and as another process would."""
            for turn in range(8):
                await until(lambda turn=turn: n_pushed >= n_chunks * (turn + 0.5) / 9)
                name = (None, "anna")[(turn + 1) % 2]
                await (recognizer.use(name) if turn % 4 < 2 else asyncio.to_thread(voices.use, name))

        found = await asyncio.gather(*(talk(samples) for samples, _ in talks), switch(), upload())
        n_finals = sum(len(check_stream(found[row], said)) for row, (_, said) in enumerate(talks))
        assert f"whisperfold_utterances_total {n_finals}.0" in metrics.render().decode()
        assert f"whisperfold_clips_total {len(clips)}.0" in metrics.render().decode()
        assert len(engines) >= 4 and set(clips) == texts
        assert recognizer.status()["running"] == recognizer.status()["waiting"] == recognizer.status()["streams"] == 0
        await recognizer.close()

    asyncio.run(asyncio.wait_for(work(), 240))
