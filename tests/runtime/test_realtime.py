"""The realtime WebSocket against a live server, with OpenAI's client and raw ones."""

import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import pytest
import soxr
from openai import OpenAI
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.realtime_items import RealtimeItems
from whisperfold.runtime.realtime_settings import RealtimeSettings
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.transcribe import Transcriber

TEXT = "conversation.item.input_audio_transcription"
PATH = "/v1/realtime?intent=transcription"


def plain(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split()


def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "condition never came true"
        time.sleep(0.01)


def pcm16(samples: np.ndarray, rate_hz: int = 24_000) -> bytes:
    at_rate = samples if rate_hz == 16_000 else soxr.resample(samples, 16_000, rate_hz)
    return (np.clip(at_rate, -1, 1) * 32767).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def speech(jfk: np.ndarray) -> np.ndarray:
    """The clip and enough silence to end the utterance."""
    return np.concatenate([jfk, np.zeros(16_000 * 2, np.float32)])


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
    with connect(server.ws + path, max_queue=None, **options) as socket:  # unread events must not delay the close
        client = Client(socket)
        client.until("session.created")
        yield client


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


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("no json", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("[]", "invalid_event"),
        ("{}", "invalid_event"),
        ('{"type": 5}', "invalid_event"),
        ('{"type": "response.create"}', "unknown_type"),
        ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "invalid_audio"),
        ('{"type": "input_audio_buffer.append", "audio": 7}', "invalid_audio"),
        ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty"),
        ('{"type": "session.update", "session": {"type": "realtime"}}', "invalid_session"),
        ('{"type": "session.update", "session": 5}', "invalid_session"),
    ],
)
def test_garbage_gets_an_error_and_the_session_goes_on(server: Any, message: str, code: str) -> None:
    with open_client(server) as client:
        client.socket.send(message)
        error = client.until("error")["error"]
        assert error["code"] == code and error["type"] == "invalid_request_error"
        client.send("session.update", session={})
        client.until("session.updated")


def test_an_error_names_the_clients_event(server: Any) -> None:
    with open_client(server) as client:
        client.send("nonsense", event_id="mine")
        assert client.until("error")["error"]["event_id"] == "mine"


def test_much_garbage_ends_the_connection(server: Any) -> None:
    with open_client(server) as client:
        with pytest.raises(ConnectionClosed) as caught:
            for _ in range(21):
                client.socket.send("garbage")
                client.until("error")
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1008


def test_a_huge_message_ends_the_connection(server: Any) -> None:
    with open_client(server) as client:
        with pytest.raises(ConnectionClosed) as caught:
            client.socket.send(bytes(5 * 2**20))
            client.until("error")
        assert caught.value.rcvd is None or caught.value.rcvd.code == 1009


def test_an_idle_client_is_told_and_closed(start_server: Any) -> None:
    with open_client(start_server(idle_timeout_s=0.2)) as client:
        with pytest.raises(ConnectionClosed) as caught:
            client.until("error")
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "nothing came for 0.2 s")


def test_tokens(start_server: Any) -> None:
    server = start_server(token="right-token")
    proxied = {"X-Forwarded-For": "10.0.0.9"}
    with pytest.raises(InvalidStatus) as caught, connect(server.ws + PATH, additional_headers=proxied):
        pass
    assert caught.value.response.status_code == 401
    assert json.loads(caught.value.response.body)["error"]["code"] == "token"
    with open_client(server, f"{PATH}&token=right-token", additional_headers=proxied):
        pass
    offered: Any = ["realtime", "openai-insecure-api-key.right-token"]
    with open_client(server, additional_headers=proxied, subprotocols=offered) as client:
        assert client.socket.subprotocol == "realtime"
    with pytest.raises(InvalidStatus), connect(server.ws + PATH, origin="https://evil.example"):  # type: ignore[arg-type]
        pass


def test_too_many_connections(start_server: Any) -> None:
    server = start_server(max_connections=2)
    with open_client(server), open_client(server):
        with pytest.raises(InvalidStatus) as caught, connect(server.ws + PATH):
            pass
        assert caught.value.response.status_code == 503 and caught.value.response.headers["retry-after"] == "2"
    until(lambda: server.app.state.recognizer.status()["streams"] == 0)
    with open_client(server):
        pass


def test_a_client_that_vanishes_leaves_nothing(start_server: Any, jfk: np.ndarray) -> None:
    server = start_server()
    with open_client(server) as client:
        client.append(jfk[:32_000])
        until(lambda: server.app.state.recognizer.status()["streams"] == 1)
        client.socket.socket.close()
    until(lambda: server.app.state.recognizer.status()["streams"] == 0)
    assert 'whisperfold_connections{kind="websocket"} 0.0' in server.metrics


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


def test_captions_without_a_microphone(server: Any) -> None:
    with connect(server.ws + "/v1/captions") as socket, pytest.raises(ConnectionClosed) as caught:
        socket.recv(timeout=5)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 4404
    assert "no microphone is configured" in caught.value.rcvd.reason


def test_another_intent(server: Any) -> None:
    with connect(server.ws + "/v1/realtime?intent=conversation") as socket, pytest.raises(ConnectionClosed) as caught:
        socket.recv(timeout=5)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1008


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


def test_a_client_that_does_not_read_is_cut_off(start_server: Any) -> None:
    server = start_server(idle_timeout_s=0.5)
    with connect(server.ws + PATH, max_queue=1) as socket, pytest.raises(ConnectionClosed):
        while True:  # each message is answered by one that nobody reads
            socket.send('{"type": "session.update", "session": {}}')
    until(lambda: 'rejected_total{reason="slow"} 1.0' in server.metrics)
    with open_client(server):
        pass


def test_fifty_clients_are_served_or_refused(start_server: Any, jfk: np.ndarray) -> None:
    server = start_server(max_connections=15)

    def one(number: int) -> str:
        try:
            with open_client(server, open_timeout=20) as client:
                client.append(jfk[:24_000])
                client.send("input_audio_buffer.commit")
                client.until(f"{TEXT}.completed", 20)
                return "served"
        except InvalidStatus as error:
            return str(error.response.status_code)

    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(one, range(50)))
    assert set(outcomes) <= {"served", "503"} and outcomes.count("served") >= 15


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


# --- parts ---


def event(kind: Any, committed: str = "", tentative: str = "", utterance: int = 0, end_s: float = 1.0) -> StreamEvent:
    return StreamEvent(kind, utterance, 0.5, end_s, committed, tentative, (), "en", -0.2, 0.1, 0.0)


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


@pytest.mark.parametrize(
    ("session", "message"),
    [
        ({"audio": []}, "audio: expected an object"),
        ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, "'audio/pcmu' is not supported"),
        ({"input_audio_format": "g711_ulaw"}, "'g711_ulaw' is not supported"),
        ({"audio": {"input": {"format": {"type": "audio/pcm", "rate": 1}}}}, "rate=1: expected one of"),
        ({"input_audio_rate": True}, "rate=True"),
        ({"input_audio_transcription": {"language": "xx"}}, "language='xx'"),
        ({"input_audio_transcription": {"prompt": 5}}, "prompt: expected text"),
        ({"input_audio_transcription": {"prompt": "x" * 5000}}, "5000 characters"),
        ({"type": "realtime"}, "transcribes only"),
    ],
)
def test_settings_are_checked(session: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RealtimeSettings().updated(session, ("en",))


def test_settings_that_are_not_mentioned_stay() -> None:
    settings = RealtimeSettings(16_000, "en", "Hi", True)
    assert settings.updated({}, ("en",)) == settings
    assert settings.updated({"turn_detection": {"type": "server_vad"}}, ("en",)).is_manual is False
    assert settings.decoding == {"language": "en", "prompt": "Hi"}
