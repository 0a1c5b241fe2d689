"""The endpoints of the profiles against a live server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime.profiles import ProfileStore

TOKEN = "a-token-of-enough-letters"


@pytest.fixture
def http(start_server: Any, voices: ProfileStore) -> Iterator[httpx.Client]:
    server = start_server(profiles=voices.folder.parent)
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


def transcribe(http: httpx.Client, clip: Path) -> str:
    files = {"file": ("clip.flac", clip.read_bytes())}
    return http.post("/v1/audio/transcriptions", files=files, data={"model": "whisper-1"}).json()["text"]


def test_list_use_and_back(http: httpx.Client, jfk: np.ndarray, tmp_path: Path, voices: ProfileStore) -> None:
    clip = tmp_path / "clip.flac"
    sf.write(clip, jfk[: 16_000 * 5], 16_000)
    listed = http.get("/v1/profiles").json()
    assert listed["active"] is None
    (anna,) = listed["profiles"]
    assert (anna["name"], anna["version"], anna["recordings"]) == ("anna", "0001", 8)
    assert anna["owner"] == {"before": 10.0, "after": 8.0} and anna["canary"] == {} and anna["created"][:2] == "20"
    plain = transcribe(http, clip)
    used = http.post("/v1/profiles/active", json={"name": "anna"})
    assert used.status_code == 200 and used.json() == {**listed, "active": "anna"}
    assert http.get("/health").json()["recognizer"]["profile"] == {"name": "anna", "version": "0001"}
    assert transcribe(http, clip) != plain
    voices.use(None)  # another process
    assert http.get("/v1/profiles").json()["active"] is None
    assert transcribe(http, clip) == plain


def test_no_names_in_the_log(http: httpx.Client, voices: ProfileStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        http.get("/v1/profiles/anna/report")
        http.post("/v1/profiles/active", json={"name": "anna"})
        http.delete("/v1/profiles/anna")
        http.get("/health")  # the lines of what went before are written
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("whisperfold"))
    assert "path=/v1/profiles/{name}/report status=200" in ours and "event=loaded" in ours
    assert "anna" not in ours


def test_the_report_brings_its_own_style_only(http: httpx.Client) -> None:
    page = http.get("/v1/profiles/anna/report")
    assert "report of anna" in page.text and page.headers["content-type"].startswith("text/html")
    assert "script" not in page.headers["content-security-policy"] and page.headers["cache-control"] == "no-store"
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    assert page.headers["content-security-policy"] == policy
    assert http.get("/v1/enroll/anna/report").headers["content-security-policy"] == policy


def test_delete(http: httpx.Client, voices: ProfileStore) -> None:
    recording = voices.recordings("anna").folder / "0001.flac"
    recording.parent.mkdir(parents=True, exist_ok=True)
    recording.write_bytes(b"voice")
    http.post("/v1/profiles/active", json={"name": "anna"})
    assert http.delete("/v1/profiles/anna?with_recordings=yes").status_code == 400
    assert http.delete("/v1/profiles/anna").json() == {"active": None, "profiles": []}
    assert recording.exists()
    assert http.delete("/v1/profiles/anna?with_recordings=1").status_code == 200
    assert not voices.person("anna").exists()
    assert http.delete("/v1/profiles/anna").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "body"),
        (b"[]", 400, "body"),
        (b'{"name": 5}', 400, "body"),
        (b'{"nam": "anna"}', 400, "body"),
        (b"\xff", 400, "body"),
        (b'{"name": "' + b"x" * 2000 + b'"}', 413, "body"),
        (b'{"name": "zoe"}', 404, "profile"),
        (b'{"name": "../anna"}', 404, "profile"),
    ],
)
def test_what_is_refused(http: httpx.Client, body: bytes, status: int, code: str) -> None:
    answer = http.post("/v1/profiles/active", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_damage(http: httpx.Client, voices: ProfileStore) -> None:
    folder = voices.get("anna").folder
    with (folder / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    answer = http.post("/v1/profiles/active", json={"name": "anna"})
    assert answer.status_code == 409 and "rollback anna" in answer.json()["error"]["message"]
    (folder / "report.html").unlink()
    assert http.get("/v1/profiles/anna/report").status_code == 409
    (folder / "profile.json").write_text("{")
    assert http.get("/v1/profiles").json() == {"active": None, "profiles": []}
    assert http.get("/v1/profiles/zoe/report").status_code == 404
    assert http.get("/v1/profiles/..%2Fanna/report").status_code == 404


def test_a_server_for_one_speaker_does_not_switch(start_server: Any, voices: ProfileStore) -> None:
    server = start_server(profiles=voices.folder.parent, speaker="none")
    with httpx.Client(base_url=server.http, timeout=30) as client:
        answer = client.post("/v1/profiles/active", json={"name": "anna"})
        assert answer.status_code == 409 and "started for speaker 'none'" in answer.json()["error"]["message"]
        assert client.get("/v1/profiles").json()["active"] is None


def test_a_profile_that_cannot_be_loaded_degrades_a_server_that_goes_on(
    start_server: Any, voices: ProfileStore, short_clip: Path
) -> None:
    server = start_server(profiles=voices.folder.parent, speaker="anna")
    with httpx.Client(base_url=server.http, timeout=30) as client:
        assert client.get("/health").json()["status"] == "ready"
        voices.delete("anna")
        assert transcribe(client, short_clip)
        health = client.get("/health")
        assert health.status_code == 200 and health.json()["status"] == "degraded"
        assert health.json()["why"] == ["profile"] and "no profile" not in health.text


def test_who_may_ask(start_server: Any, voices: ProfileStore) -> None:
    server = start_server(profiles=voices.folder.parent, token=TOKEN)
    voices.use("anna")
    elsewhere = {"X-Forwarded-For": "192.168.1.9"}
    with httpx.Client(base_url=server.http, timeout=30) as client:
        for method, path in (
            ("GET", "/v1/profiles"),
            ("GET", "/v1/profiles/anna/report"),
            ("POST", "/v1/profiles/active"),
            ("DELETE", "/v1/profiles/anna"),
        ):
            assert client.request(method, path, headers=elsewhere).status_code == 401, path
            other_site = {"Origin": "https://evil.example"}
            assert client.request(method, path, headers=other_site).status_code == 403, path
        assert "profile" not in client.get("/health", headers=elsewhere).json()["recognizer"]
        with_token = {**elsewhere, "Authorization": f"Bearer {TOKEN}"}
        assert client.get("/health", headers=with_token).json()["recognizer"]["profile"]["name"] == "anna"
        assert client.get("/v1/profiles", headers=with_token).json()["active"] == "anna"
