"""What the realtime WebSocket refuses: garbage, strangers, too many at once, clients that hang or vanish."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from realtime_client import PATH, TEXT, open_client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.realtime_settings import RealtimeSettings


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
    server.until(lambda: server.app.state.recognizer.status()["streams"] == 0)
    with open_client(server):
        pass


def test_a_client_that_vanishes_leaves_nothing(start_server: Any, jfk: np.ndarray) -> None:
    server = start_server()
    with open_client(server) as client:
        client.append(jfk[:32_000])
        server.until(lambda: server.app.state.recognizer.status()["streams"] == 1)
        client.socket.socket.close()
    server.until(lambda: server.app.state.recognizer.status()["streams"] == 0)
    assert 'whisperfold_connections{kind="websocket"} 0.0' in server.metrics


def test_captions_without_a_microphone(server: Any) -> None:
    with connect(server.ws + "/v1/captions") as socket, pytest.raises(ConnectionClosed) as caught:
        socket.recv(timeout=5)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 4404
    assert "no microphone is configured" in caught.value.rcvd.reason


def test_another_intent(server: Any) -> None:
    with connect(server.ws + "/v1/realtime?intent=conversation") as socket, pytest.raises(ConnectionClosed) as caught:
        socket.recv(timeout=5)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1008


def test_a_client_that_does_not_read_is_cut_off(start_server: Any) -> None:
    server = start_server(idle_timeout_s=0.5)
    with connect(server.ws + PATH, max_queue=1) as socket, pytest.raises(ConnectionClosed):
        while True:  # each message is answered by one that nobody reads
            socket.send('{"type": "session.update", "session": {}}')
    server.until(lambda: 'rejected_total{reason="slow"} 1.0' in server.metrics)
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
