import asyncio
import queue
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from whisperfold.runtime import microphone_source
from whisperfold.runtime.errors import BundleError
from whisperfold.runtime.level import LevelMeter
from whisperfold.runtime.microphone import MicrophoneStatus
from whisperfold.runtime.microphone_source import QUEUE_RECORDS, MicrophoneSource
from whisperfold.runtime.stream_event import StreamEvent

CHUNK = np.zeros(1600, np.float32)


def event(kind, text):
    return StreamEvent(kind, 0, 0.0, 1.0, text, "", (), "en", -0.1, 0.01, 0.0)


class FakeStream:
    """Makes the events that the test has put there."""

    level_dbfs, in_speech = -31.26, True

    def __init__(self):
        self.n_samples = 0
        self.events: list = []
        self.is_finished = False

    async def push(self, samples):
        self.n_samples += samples.size
        events, self.events = self.events, []
        return events

    async def finish(self):
        self.is_finished = True
        return [event("final", "the rest")]


class FakeRecognizer:
    def __init__(self, failures=0):
        self.stream, self.failures, self.decoding = FakeStream(), failures, []

    async def open_stream(self, options=None, **decoding):
        self.decoding.append(decoding)
        if self.failures:
            self.failures -= 1
            raise BundleError("bundle.toml: damaged")
        return self.stream


class FakeMicrophone:
    """Delivers what the test puts into `waiting`."""

    losses = dropped = 0
    is_lost = False
    device = SimpleNamespace(name="USB Mic")

    def __init__(self, device, wait, on_status):
        assert wait, "a daemon waits for its microphone"
        self.wanted, self.on_status = device, on_status
        self.level, self.waiting = LevelMeter(), queue.Queue()
        self.threads, self.is_open = set(), False

    def __enter__(self):
        self.is_open = True
        self.on_status(MicrophoneStatus("listening", "listening to 'USB Mic'", 0.0))
        return self

    def __exit__(self, *error):
        self.is_open = False

    def close(self):
        self.waiting.put(None)

    def chunks(self):
        while (chunk := self.waiting.get(timeout=10)) is not None:
            self.threads.add(threading.current_thread().name)
            yield chunk


class Setup:
    """A running source."""

    def __init__(self, failures=0):
        self.recognizer = FakeRecognizer(failures)
        self.source = MicrophoneSource(
            self.recognizer, "usb", {"hotwords": ("Ada",)}, open_microphone=self.open_microphone
        )
        self.opened = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def open_microphone(self, device, **options):
        self.microphone = FakeMicrophone(device, **options)
        self.loop.call_soon_threadsafe(self.opened.set)
        return self.microphone

    async def __aenter__(self):
        self.task = asyncio.create_task(self.source.run())
        return self

    async def __aexit__(self, *error):
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def until(records, kind, **fields):
    """The next record of a kind."""
    async for record in records:
        if record["type"] == kind and fields.items() <= record.items():
            return record
    raise AssertionError(f"ended before {kind}")


def run(test):
    asyncio.run(asyncio.wait_for(test, 10))


def test_every_subscriber_gets_the_events_and_the_level():
    async def test():
        async with Setup() as setup, setup.source.subscribe() as one, setup.source.subscribe() as two:
            await setup.opened.wait()
            setup.recognizer.stream.events = [event("partial", "hel"), event("final", "hello")]
            for _ in range(5):
                setup.microphone.waiting.put(CHUNK)
            for records in (one, two):
                assert (await until(records, "status", status="listening"))["message"] == "listening to 'USB Mic'"
                assert (await until(records, "partial"))["committed"] == "hel"
                assert (await until(records, "final"))["committed"] == "hello"
            levels = [await until(two, "level") for _ in range(2)]
            assert levels[0]["dbfs"] == -31.3 and levels[0]["in_speech"] is True
            assert levels[1]["heard_s"] - levels[0]["heard_s"] == pytest.approx(0.2)
            assert setup.recognizer.decoding == [{"hotwords": ("Ada",)}]
            assert setup.microphone.wanted == "usb"
            assert all(name.startswith("microphone") for name in setup.microphone.threads)
            assert setup.source.status()["subscribers"] == 2
        assert setup.source.status()["subscribers"] == 0

    run(test())


def test_cancelling_finishes_the_open_utterance_and_ends_the_subscribers():
    async def test():
        setup = Setup()
        async with setup.source.subscribe() as records:
            async with setup:
                await setup.opened.wait()
                setup.microphone.waiting.put(CHUNK)
                await until(records, "level")
                setup.microphone.waiting.put(CHUNK)
            assert (await until(records, "final"))["committed"] == "the rest"
            assert [record["status"] async for record in records] == ["stopped"]
        assert setup.recognizer.stream.is_finished and not setup.microphone.is_open
        assert setup.recognizer.stream.n_samples == 2 * CHUNK.size, "what the microphone held was recognised"
        assert setup.source.status()["state"] == "stopped"

    run(test())


def test_a_lost_device_is_told_to_those_here_and_to_those_who_come():
    async def test():
        async with Setup() as setup, setup.source.subscribe() as records:
            await setup.opened.wait()
            await until(records, "status", status="listening")
            setup.microphone.on_status(MicrophoneStatus("lost", "'USB Mic' has vanished", 3.0))
            setup.microphone.on_status(MicrophoneStatus("warning", "clips", 3.0))
            await until(records, "status", status="lost")
            await until(records, "status", status="warning")
            async with setup.source.subscribe() as late:
                assert (await anext(late))["status"] == "lost"
            status = setup.source.status()
            assert (status["state"], status["device"]) == ("lost", "USB Mic")
            setup.microphone.on_status(MicrophoneStatus("back", "listening to 'USB Mic'", 5.0))
            await until(records, "status", status="back")
            assert setup.source.status()["state"] == "listening"

    run(test())


def test_an_error_of_the_recogniser_is_told_and_tried_again(monkeypatch):
    monkeypatch.setattr(microphone_source, "RETRY_S", 0.01)

    async def test():
        setup = Setup(failures=2)
        async with setup.source.subscribe() as records, setup:
            assert "damaged" in (await until(records, "status", status="failed"))["message"]
            await until(records, "status", status="listening")
            assert len(setup.recognizer.decoding) == 3

    run(test())


def test_a_slow_subscriber_misses_levels_and_partials_but_no_final():
    async def test():
        setup = Setup()
        async with setup.source.subscribe() as records:
            await anext(records)
            for index in range(QUEUE_RECORDS - 1):
                setup.source._broadcast({"type": "final", "utterance": index})
                setup.source._broadcast({"type": "partial", "utterance": index})
                setup.source._broadcast({"type": "level", "dbfs": -30.0})
            setup.source._broadcast({"type": "final", "utterance": QUEUE_RECORDS - 1})
            got = [await anext(records) for _ in range(QUEUE_RECORDS)]
            finals = [record["utterance"] for record in got if record["type"] == "final"]
            assert finals == list(range(QUEUE_RECORDS))

    run(test())


def test_a_hopeless_subscriber_is_cut_off_and_the_others_are_not():
    async def test():
        setup = Setup()
        async with setup.source.subscribe() as hopeless, setup.source.subscribe() as quick:
            await anext(quick)
            for index in range(QUEUE_RECORDS + 1):
                setup.source._broadcast({"type": "final", "utterance": index})
                assert (await anext(quick))["utterance"] == index
            assert [record["status"] async for record in hopeless] == ["cut off"]

    run(test())
