"""What the HTTP endpoints refuse: wrong forms, too much of everything, peers that hang or leave, tricks."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from clips import wav
from http_requests import URL, post, raw
from openai import OpenAI


def test_an_error_in_mid_stream_is_an_event(http: httpx.Client, jfk: np.ndarray) -> None:
    pause = np.zeros(16_000 * 4, np.float32)
    flac = bytearray(wav(np.concatenate([jfk, pause, jfk, pause, jfk]), kind="FLAC"))
    flac[len(flac) * 3 // 4 :] = bytes(len(flac) - len(flac) * 3 // 4)
    body = post(http, bytes(flac), stream="true").text
    assert body.startswith("event: transcript.text.delta\ndata: ")
    last = json.loads(body.strip().split("data: ")[-1])
    assert last["type"] in ("error", "transcript.text.done")
    if last["type"] == "error":
        assert last["error"]["code"] == "audio"


@pytest.mark.parametrize(
    ("content", "kind"), [(b"\x1a\x45\xdf\xa3" + bytes(99), "WebM"), (b"\0\0\0\x20ftypM4A " + bytes(99), "MP4")]
)
def test_what_libsndfile_cannot_read(http: httpx.Client, content: bytes, kind: str) -> None:
    answer = post(http, content)
    assert answer.status_code == 415 and kind in answer.json()["error"]["message"]
    assert "send WAV, FLAC, Ogg, Opus or MP3" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"response_format": "xml"}, 400, "response_format"),
        ({"temperature": "2"}, 400, "temperature"),
        ({"temperature": "nan"}, 400, "temperature"),
        ({"temperature": "warm"}, 400, "temperature"),
        ({"language": "de"}, 400, "language"),
        ({"stream": "maybe"}, 400, "stream"),
        ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities"),
        ({"timestamp_granularities[]": "letter", "response_format": "verbose_json"}, 400, "timestamp_granularities"),
        ({"model": ""}, 400, "model"),
        ({"model": "x"}, 404, "model"),
    ],
)
def test_fields_are_checked(http: httpx.Client, fields: dict[str, str], status: int, param: str) -> None:
    answer = post(http, b"RIFF", **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error")


def test_bodies_that_are_no_form(http: httpx.Client) -> None:
    assert http.post(URL, json={"model": "whisper-1"}).status_code == 415
    assert http.post(URL, files={"other": b"x"}, data={"model": "whisper-1"}).json()["error"]["code"] == "file"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert http.post(URL, content=b"--y garbage", headers=headers).status_code == 400
    assert http.post(URL, content=b"x", headers={"content-type": "multipart/form-data"}).status_code == 400
    assert http.post(URL, data={"file": "text"}, files={"model": b"x"}).status_code == 400
    many = {f"f{number}": "x" for number in range(99)}
    assert post(http, b"RIFF", **many).status_code == 400
    assert post(http, b"RIFF", prompt="x" * 100_000).status_code == 400


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404 and http.get(URL).status_code == 405
    assert http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_a_large_upload_is_refused_while_it_arrives(start_server: Any) -> None:
    server = start_server(max_upload_bytes=200_000)
    with httpx.Client(base_url=server.http, timeout=20) as http:
        answer = post(http, bytes(300_000))
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "size"
        sent = []

        def body() -> Iterator[bytes]:  # chunked: no Content-Length tells in advance
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
            for number in range(2_000):
                sent.append(number)
                yield bytes(50_000)

        try:
            answer = http.post(URL, content=body(), headers={"content-type": "multipart/form-data; boundary=x"})
            assert answer.status_code == 413
        except httpx.WriteError:
            pass  # cut off while it sends on
        assert http.get("/health").status_code == 200


def test_a_long_recording_is_refused(start_server: Any) -> None:
    server = start_server(max_duration_s=3.0)
    hours = wav(np.zeros(16_000 * 600, np.float32), kind="FLAC")
    assert len(hours) < 200_000  # small on the wire, long in time
    with httpx.Client(base_url=server.http, timeout=20) as http:
        answer = post(http, hours)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "duration"


def test_too_many_channels(http: httpx.Client) -> None:
    answer = post(http, wav(np.zeros((1000, 64), np.float32)))
    assert answer.status_code == 400 and "64 channels" in answer.json()["error"]["message"]


def test_a_remote_client_needs_the_token(start_server: Any) -> None:
    server = start_server(token="right-token")
    proxied = {"X-Forwarded-For": "10.0.0.9"}
    with httpx.Client(base_url=server.http, timeout=20) as http:
        refused = http.get("/v1/models", headers=proxied)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "token"
        assert http.get("/v1/models", headers={**proxied, "Authorization": "Bearer wrong"}).status_code == 401
        assert http.get("/v1/models", headers={**proxied, "Authorization": "Bearer right-token"}).status_code == 200
        assert http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
        assert http.get("/", headers=proxied).status_code in (200, 404)  # the page is public
        assert 'whisperfold_rejected_total{reason="token"} 2.0' in server.metrics
    with OpenAI(base_url=f"{server.http}/v1", api_key="right-token", default_headers=proxied) as client:
        assert client.models.list().data[0].id == "tiny.en"


def test_fifty_clients_are_served_or_refused(start_server: Any, short_clip: Path) -> None:
    server = start_server(max_waiting=4, max_connections=30)
    content = short_clip.read_bytes()

    def one(number: int) -> int:
        with httpx.Client(base_url=server.http, timeout=30) as http:
            answer = post(http, content)
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["code"] in ("queue", "connections")
            return answer.status_code

    with ThreadPoolExecutor(50) as pool:
        statuses = list(pool.map(one, range(50)))
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 1 and len(statuses) == 50
    assert one(0) == 200


def test_a_client_that_leaves_stops_its_work(start_server: Any, jfk: np.ndarray) -> None:
    server = start_server()
    recording = wav(np.tile(np.concatenate([jfk, np.zeros(16_000 * 3, np.float32)]), 40))
    request = httpx.Request(
        "POST", server.http + URL, files={"file": ("a.wav", recording)}, data={"model": "whisper-1"}
    )
    head = f"POST {URL} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in request.headers.items()) + "\r\n"
    host, port = server.host.split(":")
    status = server.app.state.recognizer.status
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(head.encode() + request.read())
        server.until(lambda: status()["running"] == 1)
    left_s = time.monotonic()
    server.until(lambda: status()["running"] == 0 and status()["waiting"] == 0)
    assert time.monotonic() - left_s < 5.0
    assert "whisperfold_clips_total 0.0" in server.metrics


def test_silent_and_slow_connections_are_cut(start_server: Any) -> None:
    server = start_server(idle_timeout_s=0.3)
    assert raw(server, b"") == b""  # half open
    assert raw(server, b"GET /health HT") == b""  # slow loris
    second = raw(server, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hea")  # and again, after a good one
    assert second.startswith(b"HTTP/1.1 200 ") and second.count(b"HTTP/1.1") == 1
    head = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    answer = raw(server, head.encode() + b"Content-Length: 1000\r\n\r\n--x\r\n", end=b"}}")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert httpx.get(f"{server.http}/health").status_code == 200


def test_a_client_that_does_not_read_is_cut_off(start_server: Any) -> None:
    server = start_server(idle_timeout_s=0.5)
    host, port = server.host.split(":")
    request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as peer, pytest.raises(ConnectionError):
        while True:  # each request is answered, nobody reads
            peer.sendall(request * 100)
    server.until(lambda: 'rejected_total{reason="slow"} 1.0' in server.metrics)
    assert httpx.get(f"{server.http}/health").status_code == 200


def test_garbage_is_refused(server: Any) -> None:
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00" * 20 + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(server, b"GET /" + b"a" * 100_000).startswith(b"HTTP/1.1 400 ")
    assert httpx.get(f"{server.http}/health").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../serve.py",
        "/static/%2e%2e/serve.py",
        "/static/..%2fserve.py",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/..\\serve.py",
        "/static/%00",
        "/static/",
        "/..//etc/passwd",
    ],
)
def test_path_tricks(server: Any, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"404", b"400", b"405"), answer[:200]
    assert b"import" not in answer and b"root:" not in answer
