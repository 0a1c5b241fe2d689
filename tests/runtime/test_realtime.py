"""The realtime WebSocket against a live server, with OpenAI's client and raw ones; its items and settings."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from realtime_client import TEXT, open_client, pcm16
from stream_events import event
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from whisperfold.runtime.realtime_items import RealtimeItems
from whisperfold.runtime.realtime_settings import RealtimeSettings
from whisperfold.runtime.transcribe import Transcriber


def plain(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split()


@pytest.fixture(scope="module")
def speech(jfk: np.ndarray) -> np.ndarray:
    """The clip and enough silence to end the utterance."""
    return np.concatenate([jfk, np.zeros(16_000 * 2, np.float32)])


def test_speech_becomes_events(server: Any, speech: np.ndarray, transcriber: Transcriber, jfk: np.ndarray) -> None:
    with open_client(server) as client:
        session = client.events[0]["session"]
        assert session["type"] == "transcription" and session["audio"]["input"]["format"]["rate"] == 24_000
        client.append(speech)
        client.until_said("country", 2)
    expected = plain(transcriber.transcribe(jfk).text)
    assert len(set(plain(client.said)) ^ set(expected)) <= 3
    for done in client.of(f"{TEXT}.completed"):
        deltas = [event["delta"] for event in client.of(f"{TEXT}.delta") if event["item_id"] == done["item_id"]]
        assert "".join(deltas) == done["transcript"] and deltas
        of_item = [
            e["type"] for e in client.events if done["item_id"] in (e.get("item_id"), e.get("item", {}).get("id"))
        ]
        wanted = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"]
        wanted += ["input_audio_buffer.committed", "conversation.item.added", f"{TEXT}.completed"]
        assert [kind for kind in of_item if kind in wanted] == wanted
        assert 0 <= done["audio_start_ms"] < done["audio_end_ms"] <= 13_000
    assert client.of("whisperfold.tentative")
    assert all(event["event_id"].startswith("event_") for event in client.events)
    assert len({event["event_id"] for event in client.events}) == len(client.events)


def test_bare_bytes_at_16_khz(server: Any, speech: np.ndarray) -> None:
    with open_client(server) as client:
        audio = {"input": {"format": {"type": "audio/pcm", "rate": 16_000}, "transcription": {"language": "en"}}}
        client.send("session.update", session={"type": "transcription", "audio": audio})
        updated = client.until("session.updated")["session"]
        assert updated["audio"]["input"]["format"]["rate"] == 16_000
        data = pcm16(speech, 16_000)
        for first in range(0, len(data), 4_001):  # odd lengths cut samples in two
            client.socket.send(data[first : first + 4_001])
        client.until_said("country")


def test_a_commit_ends_the_utterance(server: Any, jfk: np.ndarray) -> None:
    with open_client(server) as client:
        client.append(jfk[: 16_000 * 4])
        client.send("input_audio_buffer.commit")
        client.until_said("americans")
        client.append(jfk)
        client.send("input_audio_buffer.commit")
        client.until_said("country")
        assert client.events[-1]["audio_end_ms"] > 4_000  # the time of the connection goes on


def test_without_turn_detection_one_item_per_commit(server: Any, speech: np.ndarray) -> None:
    with open_client(server) as client:
        client.send("session.update", session={"audio": {"input": {"turn_detection": None}}})
        client.until("session.updated")
        client.append(np.concatenate([speech, speech]))
        client.send("input_audio_buffer.commit")
        done = client.until(f"{TEXT}.completed", 30)
        assert done["transcript"].lower().count("fellow") == 2
        deltas = "".join(event["delta"] for event in client.of(f"{TEXT}.delta"))
        assert deltas == done["transcript"]
        assert not client.of("input_audio_buffer.speech_started")


def test_a_cleared_buffer_gives_no_text(server: Any, jfk: np.ndarray) -> None:
    with open_client(server) as client:
        client.append(jfk[: 16_000 * 2])  # nobody has paused yet: no utterance can end before the clear arrives
        client.send("input_audio_buffer.clear")
        client.until("input_audio_buffer.cleared")
        client.send("input_audio_buffer.commit")
        assert client.until("error")["error"]["code"] == "input_audio_buffer_commit_empty"
        assert not client.of(f"{TEXT}.completed")


def test_silence_and_a_commit_give_an_empty_item(server: Any) -> None:
    with open_client(server) as client:
        client.append(np.zeros(16_000, np.float32))
        client.send("input_audio_buffer.commit")
        assert client.until(f"{TEXT}.completed")["transcript"] == ""


def test_the_beta_shapes(server: Any) -> None:
    with open_client(server) as client:
        session = {"input_audio_format": "pcm16", "input_audio_transcription": {"model": "x", "prompt": "Kennedy"}}
        client.send("transcription_session.update", session=session)
        updated = client.until("transcription_session.updated")["session"]
        assert updated["input_audio_format"] == "pcm16" and updated["input_audio_transcription"]["prompt"] == "Kennedy"


def test_a_stopping_server_finishes_what_was_said(start_server: Any, jfk: np.ndarray) -> None:
    server = start_server()
    with open_client(server) as client:
        client.append(jfk)
        client.until("input_audio_buffer.speech_started")
        server.call(server.app.state.stopping.set)
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                client.until(f"{TEXT}.completed")
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1001
    assert "country" in client.said.lower()


def test_openai_realtime_client(server: Any, speech: np.ndarray) -> None:
    client = OpenAI(api_key="none", base_url=f"{server.http}/v1", websocket_base_url=f"{server.ws}/v1")
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        connection.session.update(
            session={"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}}}}
        )
        for chunk in np.array_split(speech, 30):
            connection.input_audio_buffer.append(audio=base64.b64encode(pcm16(chunk)).decode())
        text = ""
        for event in connection:
            assert event.type != "error", event
            if event.type == f"{TEXT}.completed":
                text += event.transcript
                if text.lower().count("country") == 2:
                    break
    assert "fellow" in text


def test_captions_relay_the_microphone(start_server: Any) -> None:
    class Microphone:
        @asynccontextmanager
        async def subscribe(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
            async def records() -> AsyncIterator[dict[str, Any]]:
                yield {"type": "status", "status": "listening"}
                yield {"type": "final", "committed": "Grüß Gott."}

            yield records()

    server = start_server(microphone=Microphone(), unix_socket=None)
    with connect(server.ws + "/v1/captions") as socket:
        assert json.loads(socket.recv(timeout=5)) == {"type": "status", "status": "listening"}
        assert json.loads(socket.recv(timeout=5))["committed"] == "Grüß Gott."
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(timeout=5)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1013


def test_speech_that_was_none_is_taken_back() -> None:
    items = RealtimeItems()
    first = list(items.event_records(event("start"), False))
    list(items.event_records(event("partial", "", "uh"), False))
    after = list(items.event_records(event("start", utterance=1), False))
    assert [record["type"] for record in after] == [
        "input_audio_buffer.speech_stopped",
        "whisperfold.tentative",
        f"{TEXT}.completed",
        "input_audio_buffer.speech_started",
    ]
    assert after[1]["tentative"] == after[2]["transcript"] == ""
    assert after[2]["item_id"] == first[0]["item_id"] != after[3]["item_id"]


def test_items_follow_each_other() -> None:
    items = RealtimeItems()
    records = []
    for number in range(2):
        records += list(items.event_records(event("start", utterance=number), False))
        records += list(items.event_records(event("final", "Hi.", utterance=number), False))
    committed = [record for record in records if record["type"] == "input_audio_buffer.committed"]
    assert committed[0]["previous_item_id"] is None and committed[1]["previous_item_id"] == committed[0]["item_id"]


def test_settings_that_are_not_mentioned_stay() -> None:
    settings = RealtimeSettings(16_000, "en", "Hi", True)
    assert settings.updated({}, ("en",)) == settings
    assert settings.updated({"turn_detection": {"type": "server_vad"}}, ("en",)).is_manual is False
    assert settings.decoding == {"language": "en", "prompt": "Hi"}
