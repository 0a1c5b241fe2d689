"""The HTTP endpoints against a live server: OpenAI's client, raw requests, and everything that must be refused."""

import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf
from openai import APIError, BadRequestError, NotFoundError, OpenAI

from whisperfold.runtime.transcribe import Transcriber

REPOSITORY = Path(__file__).resolve().parents[2]
JFK = REPOSITORY / "runtime" / "samples" / "jfk.flac"
URL = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def text(transcriber: Transcriber, jfk: np.ndarray) -> str:
    return transcriber.transcribe(jfk).text


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


def wav(samples: np.ndarray, rate_hz: int = 16_000, kind: str = "WAV") -> bytes:
    out = io.BytesIO()
    sf.write(out, samples, rate_hz, format=kind)
    return out.getvalue()


def post(http: httpx.Client, content: bytes = b"", url: str = URL, **fields: Any) -> httpx.Response:
    return http.post(url, files={"file": ("clip.wav", content)}, data={"model": "whisper-1", **fields})


def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "condition never came true"
        time.sleep(0.01)


def raw(server: Any, data: bytes, limit_s: float = 10.0, end: bytes = b"no end") -> bytes:
    """Send bytes, return everything that comes back until the server closes, or until an end."""
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port)), timeout=limit_s) as peer:
        peer.sendall(data)
        answer = b""
        while end not in answer and (piece := peer.recv(65536)):
            answer += piece
    return answer


# --- the official client ---


def test_openai_json(client: OpenAI, text: str) -> None:
    result = client.audio.transcriptions.create(model="whisper-1", file=JFK)
    assert result.text == text
    assert result.usage is not None and result.usage.type == "duration" and result.usage.seconds == 11.0


def test_openai_text(client: OpenAI, text: str) -> None:
    assert client.audio.transcriptions.create(model="tiny.en", file=JFK, response_format="text") == f"{text}\n"  # type: ignore[comparison-overlap]


def test_openai_verbose_words(client: OpenAI, text: str) -> None:
    result = client.audio.transcriptions.create(
        model="whisper-1", file=JFK, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert result.text == text and result.duration == 11.0 and result.language == "en"
    assert result.segments is not None and " ".join(segment.text for segment in result.segments) == text
    assert result.words is not None and len(result.words) == len(text.split())
    assert all(word.start <= word.end for word in result.words) and result.words[-1].end <= 11.0


def test_openai_srt_and_vtt(client: OpenAI, text: str) -> None:
    srt = client.audio.transcriptions.create(model="whisper-1", file=JFK, response_format="srt")
    assert str(srt).startswith("1\n00:00:00,") and text in str(srt)
    vtt = client.audio.transcriptions.create(model="whisper-1", file=JFK, response_format="vtt")
    assert str(vtt).startswith("WEBVTT\n\n00:00:00.") and text in str(vtt)


def test_openai_stream(client: OpenAI, text: str, jfk: np.ndarray) -> None:
    recording = np.concatenate([jfk, np.zeros(16_000 * 4, np.float32), jfk])
    stream = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", wav(recording)), stream=True)
    events = list(stream)
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) >= 2 and events[-1].type == "transcript.text.done"
    assert "".join(deltas) == events[-1].text
    assert events[-1].text.replace(",", "") == f"{text} {text}".replace(",", "")


def test_openai_options(client: OpenAI) -> None:
    result = client.audio.transcriptions.create(
        model="whisper-1", file=JFK, language="en-US", prompt="A speech by Kennedy.", temperature=0.2
    )
    assert "country" in result.text


def test_openai_errors(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="not readable audio") as caught:
        client.audio.transcriptions.create(model="whisper-1", file=("x.wav", b"this is no audio" * 10))
    assert caught.value.code == "audio" and caught.value.param == "file"
    with pytest.raises(NotFoundError, match="model 'large-v3' is not here"):
        client.audio.transcriptions.create(model="large-v3", file=JFK)
    with pytest.raises(BadRequestError, match="English-only and cannot translate"):
        client.audio.translations.create(model="whisper-1", file=JFK)
    with pytest.raises(APIError, match="not readable audio"):
        client.audio.transcriptions.create(model="whisper-1", file=("x.wav", b"no audio" * 10), stream=True)


def test_openai_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()][:2] == ["tiny.en", "whisper-1"]


# --- shapes and errors ---


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


def test_verbose_stream_has_segments(http: httpx.Client, text: str) -> None:
    body = post(http, JFK.read_bytes(), stream="true", response_format="verbose_json").text
    events = [json.loads(part.split("data: ")[1]) for part in body.strip().split("\n\n")]
    assert [event["type"] for event in events] == [
        "transcript.text.delta",
        "transcript.text.segment",
        "transcript.text.done",
    ]
    assert events[1]["text"] == text and events[2]["duration"] == 11.0 and events[2]["segments"][0]["text"] == text


def test_silence_gives_empty_text(http: httpx.Client) -> None:
    silence = wav(np.zeros(32_000, np.float32))
    assert post(http, silence).json()["text"] == ""
    assert post(http, silence, response_format="text").text == ""
    assert post(http, silence, response_format="vtt").text == "WEBVTT\n\n"
    events = post(http, silence, stream="true").text
    assert events.count("data:") == 1 and '"transcript.text.done"' in events


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_formats_and_rates(http: httpx.Client, jfk: np.ndarray, kind: str) -> None:
    stereo = np.repeat(np.repeat(jfk[:64_000], 3)[:, None], 2, axis=1)  # 48 kHz, two channels
    assert "americans" in post(http, wav(stereo, 48_000, kind)).json()["text"].lower()


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


def test_health_and_metrics(http: httpx.Client) -> None:
    post(http, JFK.read_bytes())
    health = http.get("/health")
    assert health.status_code == 200 and health.json()["status"] == "ready" and health.json()["microphone"] is None
    metrics = http.get("/metrics").text
    for name in ("clips_total", "audio_seconds_total", "clip_rtf_bucket", "resident_memory_bytes", "connections"):
        assert f"whisperfold_{name}" in metrics


# --- limits ---


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
        until(lambda: status()["running"] == 1)
    left_s = time.monotonic()
    until(lambda: status()["running"] == 0 and status()["waiting"] == 0)
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
    until(lambda: 'rejected_total{reason="slow"} 1.0' in server.metrics)
    assert httpx.get(f"{server.http}/health").status_code == 200


def test_garbage_is_refused(server: Any) -> None:
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00" * 20 + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(server, b"GET /" + b"a" * 100_000).startswith(b"HTTP/1.1 400 ")
    assert httpx.get(f"{server.http}/health").status_code == 200


# --- page and sockets ---


def test_the_page_is_safe(http: httpx.Client) -> None:
    answer = http.get("/")
    if answer.status_code == 404:
        pytest.skip("no runtime/web here")
    assert "text/html" in answer.headers["content-type"] and answer.headers["cache-control"] == "no-cache"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'") and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    etag = http.get("/static/app.js").headers["etag"]
    assert http.get("/static/app.js", headers={"If-None-Match": etag}).status_code == 304


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


def test_the_unix_socket(server: Any, text: str) -> None:
    path = server.app.state.config.unix_socket
    assert oct(path.stat().st_mode & 0o777) == "0o660"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://anything", timeout=30) as http:
        assert post(http, JFK.read_bytes()).json()["text"] == text


def test_allowed_pages_may_call(start_server: Any) -> None:
    server = start_server(allowed_origins=("https://my.example",))
    asked = {"Origin": "https://my.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(server.http + URL, headers=asked)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "https://my.example"
    assert httpx.options(server.http + URL, headers={**asked, "Origin": "https://evil.example"}).status_code == 400
    assert httpx.get(f"{server.http}/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403


def test_no_text_in_the_log(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        httpx.post(
            server.http + URL, files={"file": JFK.read_bytes()}, data={"model": "whisper-1"}, timeout=30
        ).raise_for_status()
        until(lambda: f"path={URL} status=200" in caplog.text)
    assert "country" not in caplog.text and "uvicorn" not in caplog.text
