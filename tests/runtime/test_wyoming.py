"""Clients of the wyoming package against the server, over TCP: a scripted recogniser, then the packaged bundle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from whisperfold.runtime.errors import BusyError, ConfigError, ServerError
from whisperfold.runtime.metrics import Metrics
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.wyoming_connection import WyomingLimits
from whisperfold.runtime.wyoming_server import WyomingServer, serve_wyoming
from whisperfold.runtime.wyoming_stream import GrowingText

TIMEOUT_S = 10.0
WORDS = "one two three four five six seven eight nine ten".split()


def event(kind: str, committed: str, utterance: int = 0, language: str = "en") -> StreamEvent:
    return StreamEvent(kind, utterance, 0.0, 1.0, committed, "", (), language, -0.1, 0.0, 0.0)  # type: ignore[arg-type]


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

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))


@asynccontextmanager
async def connected(server: WyomingServer) -> AsyncIterator[AsyncTcpClient]:
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


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def assert_serves(server: WyomingServer) -> None:
    async with connected(server) as client:
        await client.write_event(Ping(text="still there?").event())
        assert Pong.from_event(await client.read_event()).text == "still there?"


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(16000 * seconds), np.float32)


def test_describe_tells_what_home_assistant_wants_to_know():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server) as client:
            await client.write_event(Describe().event())
            info = Info.from_event(await client.read_event())
        (program,) = info.asr
        (model,) = program.models
        assert program.supports_transcript_streaming
        assert program.installed and model.installed
        assert (model.name, model.languages) == ("fake.en", ["en", "de"])
        assert "openai/whisper" in model.attribution.url

    play(scenario)


def test_text_comes_while_the_client_speaks_and_the_chunks_make_the_transcript():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server) as client:
            await client.write_event(Transcribe(language="de-AT", transcript_names=["Zuzana"]).event())
            await client.write_event(AudioStart(16000, 2, 1).event())
            await client.write_event(AudioChunk(16000, 2, 1, bytes(32000)).event())
            start = await client.read_event()
            first = await client.read_event()  # long before audio-stop
            assert (start.type, start.data) == ("transcript-start", {"language": "de"})
            assert TranscriptChunk.from_event(first).text == "one two"
            await speak(client, silence(0.5), start=False)
            rest = await answers(client)
        assert [e.type for e in rest[-2:]] == ["transcript", "transcript-stop"]
        chunks = [TranscriptChunk.from_event(e).text for e in rest[:-2]]
        transcript = Transcript.from_event(rest[-2])
        assert "one two" + "".join(chunks) == transcript.text == "one two three end"
        assert transcript.language == "de"
        assert recognizer.options == [{"language": "de", "hotwords": ("Zuzana",)}]

    play(scenario)


def test_an_old_client_needs_neither_transcribe_nor_audio_start_and_may_speak_again():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server) as client:
            for words in ("one end", "one two end"):
                await speak(client, silence(0.5 * (len(words.split()) - 1)), start=False)
                assert Transcript.from_event((await answers(client))[-2]).text == words
        assert recognizer.options == [{}, {}]

    play(scenario)


def test_nothing_said_is_an_empty_transcript():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server) as client:
            await client.write_event(AudioStop().event())
            assert [e.type for e in await answers(client)][-2:] == ["transcript", "transcript-stop"]

    play(scenario)


def test_audio_that_came_while_the_recogniser_was_busy_is_heard_as_one_piece():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        recognizer.may_push.clear()
        async with connected(server) as client:
            await speak(client, silence(2.0), chunk=160)
            await client.read_event()
            (connection,) = server._connections.values()
            await until(lambda: connection._stream is not None and connection._stream._is_over)
            recognizer.may_push.set()
            assert Transcript.from_event((await answers(client))[-2]).text == "one two three four end"
        assert recognizer.streams[0].n_pushes == 2  # the first chunk, and the other 199
        assert recognizer.streams[0].samples.size == 32000

    play(scenario)


def test_a_client_that_sends_a_whole_file_is_slowed_down_not_refused():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        recognizer.may_push.clear()
        async with connected(server) as client:
            sending = asyncio.create_task(speak(client, silence(60.0), chunk=16000))
            await until(lambda: bool(recognizer.streams) and recognizer.streams[0].n_pushes == 1)
            recognizer.may_push.set()
            result = await answers(client)
            await sending
        assert Transcript.from_event(result[-2]).text == " ".join([*WORDS, "end"])
        assert recognizer.streams[0].samples.size == 60 * 16000

    play(scenario, backlog_s=1.0)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "JSON"),
        (b"[1, 2]\n", "JSON with a type"),
        (b'{"data": {}}\n', "JSON with a type"),
        (b'{"type": 5}\n', "type must be a string"),
        (b'{"type": "describe", "data": [1]}\n', "data an object"),
        (b'{"type": "describe", "data_length": "many"}\n', "JSON with a type"),
        (b'{"type": "describe", "data_length": 3}\n[1]', "JSON"),
        (b"[" * 60000 + b"\n", "JSON"),
        (b"x" * 70000, "at most 65536 bytes"),
        (b'{"type": "audio-chunk", "payload_length": 9999999999}\n', "at most 1048576"),
        (b'{"type": "audio-chunk", "payload_length": 1e400}\n', "at most 1048576"),
        (b'{"type": "audio-chunk", "data": {"rate": 16000}}\n', "missing or wrong field"),
        (b'{"type": "audio-start", "data": {"rate": "16k", "width": 2, "channels": 1}}\n', "rate_hz=16k"),
        (b'{"type": "audio-chunk", "data": {"rate": 16000, "width": 2, "channels": 0}}\n', "channels=0"),
        (b'{"type": "transcribe", "data": {"language": 7}}\n{"type": "audio-stop"}\n', "language as a string"),
        (b'{"type": "transcribe", "data": {"transcript_names": 7}}\n{"type": "audio-stop"}\n', "lists of strings"),
    ],
)
def test_garbage_is_answered_with_an_error_and_hurts_nobody_else(sent, message, caplog):
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server) as neighbour:
            await neighbour.write_event(AudioStart(16000, 2, 1).event())
            async with connected(server) as client:
                client._writer.write(sent)
                (refusal,) = await answers(client)
            assert refusal.type == "error"
            assert message in refusal.data["text"]
            await speak(neighbour, silence(0.5), start=False)
            assert Transcript.from_event((await answers(neighbour))[-2]).text == "one end"
        assert "internal error" not in refusal.data["text"]

    metrics = Metrics()
    play(scenario, metrics)
    assert b'whisperfold_rejected_total{reason="wyoming"} 1.0' in metrics.render()
    assert "wyoming_refused" in caplog.text


def test_a_client_that_leaves_in_the_middle_frees_its_stream():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        recognizer.may_push.clear()
        async with connected(server) as client:
            await client.write_event(AudioChunk(16000, 2, 1, bytes(32000)).event())
            await until(lambda: bool(recognizer.streams) and recognizer.streams[0].n_pushes == 1)
            client._writer.write(b'{"type": "audio-chunk", "payload_length": 1000}\nhalf')
        await until(lambda: server.n_connections == 0)
        assert recognizer.streams[0].is_abandoned
        await assert_serves(server)

    play(scenario)


def test_an_idle_client_is_disconnected():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server) as client:
            client._writer.write(b'{"type": "aud')  # half an event is none
            assert await client.read_event() is None

    play(scenario, idle_s=0.05)


def test_a_client_that_does_not_read_is_disconnected():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server) as client:
            flood = json.dumps({"type": "ping", "data": {"text": "x" * 50000}}).encode() + b"\n"
            try:
                while server.n_connections or client._writer.transport.get_write_buffer_size() < 10**6:
                    client._writer.write(flood)
                    await asyncio.sleep(0)
                    if client._writer.is_closing():
                        break
            except ConnectionError:
                pass
            await until(lambda: server.n_connections == 0)
            client._writer.transport.abort()
        await assert_serves(server)

    play(scenario, idle_s=0.2)


def test_an_endless_utterance_is_refused():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server) as client:
            await speak(client, silence(1.5), chunk=8000)
            last = (await answers(client))[-1]
        assert (last.type, last.data["code"]) == ("error", "audio")
        assert "more than 1 s" in last.data["text"]
        await until(lambda: recognizer.streams[0].is_abandoned)

    play(scenario, duration_s=1.0)


def test_one_client_too_many_is_told_so():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server), connected(server):
            await until(lambda: server.n_connections == 2)
            async with connected(server) as third:
                (refusal,) = await answers(third)
            assert refusal.data["code"] == "busy"
        await until(lambda: server.n_connections == 0)
        await assert_serves(server)

    metrics = Metrics()
    play(scenario, metrics, connections=2)
    assert b'whisperfold_rejected_total{reason="connections"} 1.0' in metrics.render()
    assert b'whisperfold_connections{kind="wyoming"} 0.0' in metrics.render()


def test_fifty_clients_at_once_are_served_or_told_why_not():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        everybody_is_here = asyncio.Barrier(50)

        async def one_client() -> str:
            async with connected(server) as client:
                await everybody_is_here.wait()
                try:
                    await speak(client, silence(1.0))
                except ConnectionError:
                    pass  # told so before it had sent everything
                last = (await answers(client))[-1]
            return str(last.data["code"]) if last.type == "error" else last.type

        outcomes = await asyncio.gather(*(one_client() for _ in range(50)))
        assert {outcome: outcomes.count(outcome) for outcome in set(outcomes)} == {"transcript-stop": 16, "busy": 34}
        await until(lambda: server.n_connections == 0)
        await assert_serves(server)

    play(scenario)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BusyError("64 are waiting"), "busy", "64 are waiting"),
        (ConfigError("language 'xx' is unknown"), "config", "'xx'"),
        (RuntimeError("secret detail"), "server", "internal error"),
    ],
)
def test_what_the_recogniser_refuses_is_told(error, code, text):
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        recognizer.error = error
        async with connected(server) as client:
            await client.write_event(AudioStart(16000, 2, 1).event())
            (refusal,) = await answers(client)
        assert (refusal.type, refusal.data["code"]) == ("error", code)
        assert text in refusal.data["text"]
        assert "secret" not in refusal.data["text"]

    play(scenario)


def test_closing_lets_an_open_utterance_end_and_hangs_up_on_the_idle():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        async with connected(server) as idle, connected(server) as client:
            await client.write_event(AudioStart(16000, 2, 1).event())
            await client.read_event()
            await until(lambda: server.n_connections == 2)
            closing = asyncio.create_task(server.close())
            assert await idle.read_event() is None
            await speak(client, silence(0.5), start=False)
            assert Transcript.from_event((await answers(client))[-2]).text == "one end"
            assert await client.read_event() is None
            await closing

    play(scenario)


def test_a_port_in_use_is_said():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        with pytest.raises(ServerError, match=f"127.0.0.1:{server.port}"):
            await serve_wyoming(recognizer, port=server.port)  # type: ignore[arg-type]

    play(scenario)


def test_growing_text_joins_utterances_and_never_takes_back():
    text = GrowingText()
    said = [
        text.added_by(event("start", "")),
        text.added_by(event("partial", "Ask not")),
        text.added_by(event("partial", "Ask not")),
        text.added_by(event("final", "Ask not what.")),
        text.added_by(event("start", "", utterance=1)),
        text.added_by(event("final", " Ask. ", utterance=1)),
    ]
    assert said == ["", "Ask not", "", " what.", "", " Ask."]
    assert text.text == "Ask not what. Ask."


def test_real_speech_at_48_khz_stereo(bundle_path, jfk):
    import soxr

    async def main() -> None:
        recognizer = Recognizer(bundle_path, threads=2)
        server = await serve_wyoming(recognizer, port=0)
        try:
            samples = soxr.resample(jfk, 16000, 48000)
            pcm = np.repeat((samples * 32767).astype("<i2"), 2).tobytes()
            async with AsyncTcpClient("127.0.0.1", server.port, read_timeout=60) as client:
                await client.write_event(Transcribe(language="en").event())
                await client.write_event(AudioStart(48000, 2, 2).event())
                step = 48000 * 4 // 2
                heard = []
                for i in range(0, len(pcm), step):
                    await client.write_event(AudioChunk(48000, 2, 2, pcm[i : i + step]).event())
                await client.write_event(AudioStop().event())
                heard = await answers(client)
        finally:
            await server.close()
            await recognizer.close()
        transcript = Transcript.from_event(next(e for e in heard if e.type == "transcript")).text
        chunks = "".join(TranscriptChunk.from_event(e).text for e in heard if e.type == "transcript-chunk")
        assert "what your country can do for you" in transcript.lower()
        assert "what you can do for your country" in transcript.lower()
        assert chunks == transcript

    asyncio.run(asyncio.wait_for(main(), 60))
