"""One set of weights for many: order, limits, cancelling, unloading, reloading."""

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from event_loop import run, until

from whisperfold.runtime.errors import BundleError, BusyError, ConfigError
from whisperfold.runtime.memory import resident_bytes
from whisperfold.runtime.metrics import Metrics
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.workers import BULK, FINAL, PARTIAL, Workers

Make = Callable[..., Recognizer]


def test_a_clip(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        metrics = Metrics()
        recognizer = make(metrics=metrics)
        result = await recognizer.transcribe(jfk)
        assert "your country" in result.text
        assert recognizer.status()["running"] == recognizer.status()["waiting"] == 0
        await recognizer.close()
        assert "whisperfold_clips_total 1.0" in metrics.render().decode()
        assert "whisperfold_audio_seconds_total 11.0" in metrics.render().decode()

    run(work())


def test_what_it_is(make: Make) -> None:
    recognizer = make(is_loaded=False)
    assert recognizer.name == "tiny.en" and recognizer.languages == ("en",)
    assert recognizer.status()["loaded"] is False and recognizer.is_alive()


def test_segments_come_as_they_are_recognised(make: Make, transcriber: Transcriber, jfk: np.ndarray) -> None:
    async def work() -> None:
        recognizer = make()
        blocks = [jfk, np.zeros(16_000 * 4, np.float32), jfk]
        found = [segment.text async for segment in recognizer.segments(blocks)]
        assert found == [segment.text for segment in transcriber.transcribe_blocks(blocks)] and len(found) == 2
        await recognizer.close()

    run(work())


def test_leaving_early_closes_the_file(make: Make, jfk: np.ndarray) -> None:
    closed = threading.Event()
    read = []

    def blocks() -> Iterator[np.ndarray]:
        try:
            for number in range(50):
                read.append(number)
                yield np.concatenate([jfk, np.zeros(16_000 * 3, np.float32)])
        finally:
            closed.set()

    async def work() -> None:
        recognizer = make()
        segments = recognizer.segments(blocks())
        await anext(segments)
        await segments.aclose()  # type: ignore[attr-defined]
        assert await asyncio.to_thread(closed.wait, 10)
        assert len(read) < 10 and recognizer.status()["running"] == 0
        await recognizer.close()

    run(work())


def test_more_than_max_waiting_is_refused(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        recognizer = make(max_waiting=1)
        gate = threading.Event()
        holding = asyncio.create_task(recognizer.run(FINAL, gate.wait))
        await until(lambda: recognizer.status()["running"] == 1)
        clips = [asyncio.create_task(recognizer.transcribe(jfk[:16_000])) for _ in range(2)]
        await until(lambda: recognizer.status()["waiting"] == 2)
        with pytest.raises(BusyError, match="2 recordings and 2 live chunks are waiting") as caught:
            await recognizer.transcribe(jfk)
        assert caught.value.reason == "queue"
        with pytest.raises(BusyError):
            recognizer.check_room()
        with pytest.raises(BusyError):
            await recognizer.open_stream()
        gate.set()
        await asyncio.gather(holding, *clips)
        recognizer.check_room()
        await recognizer.close()

    run(work())


def test_a_cancelled_clip_gives_its_place_back(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        recognizer = make(max_waiting=0)
        gate = threading.Event()
        holding = asyncio.create_task(recognizer.run(FINAL, gate.wait))
        clip = asyncio.create_task(recognizer.transcribe(jfk))
        await until(lambda: recognizer.status()["waiting"] == 1)
        clip.cancel()
        with pytest.raises(asyncio.CancelledError):
            await clip
        recognizer.check_room()
        gate.set()
        await holding
        await recognizer.close()

    run(work())


def test_options_are_checked(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        recognizer = make()
        with pytest.raises(ConfigError):
            await recognizer.transcribe(jfk, language="xx")
        with pytest.raises(ConfigError):
            await anext(recognizer.segments([jfk], no_such_option=1))
        await recognizer.close()

    run(work())
    with pytest.raises(ConfigError, match="workers=0"):
        make(workers=0)


def test_weights_come_with_the_first_work_and_go_when_idle(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        recognizer = make(is_loaded=False, idle_unload_s=0.05)
        assert (await recognizer.transcribe(jfk[:16_000])).duration_s == 1.0
        weights, before = weakref.ref(recognizer._weights._loaded), resident_bytes()
        assert weights() is not None
        await until(lambda: not recognizer.status()["loaded"])
        assert weights() is None and resident_bytes() < before - 20e6
        assert "country" in (await recognizer.transcribe(jfk)).text
        await recognizer.close()

    run(work())


def test_work_that_runs_keeps_the_weights(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        recognizer = make(idle_unload_s=0.01)
        segments = recognizer.segments([jfk, np.zeros(16_000 * 4, np.float32), jfk])
        await anext(segments)
        await asyncio.sleep(0.05)
        assert recognizer.status()["loaded"]
        await segments.aclose()  # type: ignore[attr-defined]
        await until(lambda: not recognizer.status()["loaded"])
        await recognizer.close()

    run(work())


def test_a_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle there"):
        Recognizer(tmp_path / "none")


def test_reload_is_for_new_work(make: Make, transcriber: Transcriber, jfk: np.ndarray, tmp_path: Path) -> None:
    async def work() -> None:
        recognizer = make()
        segments = recognizer.segments([jfk, np.zeros(16_000 * 4, np.float32), jfk])
        first = await anext(segments)
        await recognizer.reload()
        assert recognizer._weights._loaded is not transcriber
        second = await anext(segments)  # the old weights finish their work; a pause more may be a comma less
        assert first.text.replace(",", "") == second.text.replace(",", "")
        with pytest.raises(BundleError):
            await recognizer.reload(tmp_path)
        assert recognizer.status()["error"] is not None and "country" in (await recognizer.transcribe(jfk)).text
        await recognizer.close()

    run(work())


def test_after_close_nothing_is_taken(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        recognizer = make()
        clip = asyncio.create_task(recognizer.transcribe(jfk[:16_000]))
        await until(lambda: recognizer.status()["running"] + recognizer.status()["waiting"] > 0)
        await recognizer.close()
        assert clip.done() or await clip
        with pytest.raises(BusyError, match="stopping"):
            await recognizer.transcribe(jfk)

    run(work())


def test_a_stream_changes_over_to_new_weights_in_a_pause(make: Make, jfk: np.ndarray) -> None:
    async def work() -> None:
        recognizer = make()
        stream = await recognizer.open_stream()
        speech = np.concatenate([jfk, np.zeros(16_000 * 2, np.float32)])
        events = []
        for chunk in np.array_split(speech, 13):
            events += await stream.push(chunk)
        old = stream._session._engine
        await recognizer.reload()
        for chunk in np.array_split(speech, 13):
            events += await stream.push(chunk)
        events += await stream.finish()
        assert stream._session._engine is not old
        finals = [event for event in events if event.kind == "final"]
        starts = [event.start_s for event in finals]
        assert starts == sorted(starts) and starts[-1] > 13.0
        assert [event.utterance for event in finals] == sorted({event.utterance for event in finals})
        await recognizer.close()

    run(work())


def test_finals_overtake() -> None:
    workers, gate, order = Workers(1), threading.Event(), []
    first = workers.submit(BULK, gate.wait)
    while workers.running == 0:
        pass
    for priority in (BULK, PARTIAL, FINAL):
        workers.submit(priority, lambda priority=priority: order.append(priority))  # type: ignore[misc]
    cancelled = workers.submit(FINAL, lambda: order.append(-1))
    assert cancelled.cancel() and workers.waiting == 4
    gate.set()
    workers.close()
    assert first.done() and order == [FINAL, PARTIAL, BULK]
    with pytest.raises(BusyError):
        workers.submit(FINAL, gate.wait)


def test_a_long_recording_gives_way() -> None:
    workers, gate, order = Workers(1), threading.Event(), []

    def recording() -> None:
        gate.wait(10)
        workers.give_way()
        order.append("recording")

    done = workers.submit(BULK, recording)
    for name, priority in (("bulk", BULK), ("live", PARTIAL), ("final", FINAL)):
        workers.submit(priority, lambda name=name: order.append(name))  # type: ignore[misc]
    gate.set()
    workers.close()
    assert done.done() and order == ["final", "live", "recording", "bulk"]


def test_an_exception_belongs_to_its_future() -> None:
    workers = Workers(1)
    failed = workers.submit(FINAL, lambda: 1 / 0)
    assert isinstance(failed.exception(5), ZeroDivisionError)
    assert workers.submit(FINAL, lambda: 5).result(5) == 5
    workers.close()
