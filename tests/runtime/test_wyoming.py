"""Clients of the wyoming package against the server, over TCP: a scripted recogniser, then the packaged bundle."""

import asyncio

import numpy as np
from event_loop import until
from stream_events import event
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming_scenario import WORDS, FakeRecognizer, answers, connected, play, silence, speak

from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.wyoming_server import WyomingServer, serve_wyoming
from whisperfold.runtime.wyoming_stream import GrowingText


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
            await client.write_event(AudioStart(16000, 2, 1).event())
            await client.write_event(AudioChunk(16000, 2, 1, bytes(320)).event())
            await until(lambda: bool(recognizer.streams) and recognizer.streams[0].n_pushes == 1)
            await speak(client, silence(1.99), chunk=160, start=False)
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
