"""The HTTP endpoints against a live server: OpenAI's client, raw requests, the page, the Unix socket."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from clips import JFK, wav
from http_requests import URL, post
from openai import APIError, BadRequestError, NotFoundError, OpenAI

from whisperfold.runtime.transcribe import Transcriber


@pytest.fixture(scope="module")
def text(transcriber: Transcriber, jfk: np.ndarray) -> str:
    return transcriber.transcribe(jfk).text


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


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


def test_health_and_metrics(http: httpx.Client) -> None:
    post(http, JFK.read_bytes())
    health = http.get("/health")
    assert health.status_code == 200 and health.json()["status"] == "ready" and health.json()["microphone"] is None
    metrics = http.get("/metrics").text
    for name in ("clips_total", "audio_seconds_total", "clip_rtf_bucket", "resident_memory_bytes", "connections"):
        assert f"whisperfold_{name}" in metrics


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
        server.until(lambda: f"path={URL} status=200" in caplog.text)
    assert "country" not in caplog.text and "uvicorn" not in caplog.text
