"""What the wyoming server refuses: garbage, too much, too many at once, clients that hang or leave."""

import asyncio
import json

import pytest
from event_loop import until
from wyoming.asr import Transcript
from wyoming.audio import AudioChunk, AudioStart
from wyoming_scenario import FakeRecognizer, answers, assert_serves, connected, play, silence, speak

from whisperfold.runtime.errors import BusyError, ConfigError, ServerError
from whisperfold.runtime.metrics import Metrics
from whisperfold.runtime.wyoming_server import WyomingServer, serve_wyoming


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


def test_a_port_in_use_is_said():
    async def scenario(recognizer: FakeRecognizer, server: WyomingServer) -> None:
        with pytest.raises(ServerError, match=f"127.0.0.1:{server.port}"):
            await serve_wyoming(recognizer, port=server.port)  # type: ignore[arg-type]

    play(scenario)
