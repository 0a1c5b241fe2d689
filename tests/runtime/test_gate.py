"""The log of the gate: a line per request, without anybody's name, whatever becomes of the request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from whisperfold.runtime.gate import _path

TOKEN = "a-token-of-enough-letters"


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/v1/enroll/anna", "/v1/enroll/{name}"),
        ("/v1/enroll/anna/recordings", "/v1/enroll/{name}/recordings"),
        ("/v1/enroll/anna/recordings/0001.flac", "/v1/enroll/{name}/recordings/0001.flac"),
        ("/v1/enroll/anna/recordings/anna.flac", "/v1/enroll/{name}"),
        ("/v1/enroll/anna/adapt/events", "/v1/enroll/{name}/adapt/events"),
        ("/v1/enroll/anna/unknown", "/v1/enroll/{name}"),
        ("/v1/enroll/anna\nb/report", "/v1/enroll/{name}/report"),
        ("/v1/profiles/../anna/report", "/v1/profiles/{name}/report"),
        ("/v1/profiles/anna/", "/v1/profiles/{name}"),
        ("/proxy/v1/profiles/anna", "/proxy/v1/profiles/{name}"),
        ("/v1/profiles/active", "/v1/profiles/active"),
        ("/v1/profiles", "/v1/profiles"),
        ("/v1/enroll", "/v1/enroll"),
        ("/v1/models", "/v1/models"),
    ],
)
def test_names_are_masked(path: str, logged: str) -> None:
    assert _path({"path": path}) == logged


def test_no_name_in_the_log_of_what_is_refused(
    start_server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(profiles=tmp_path, token=TOKEN)
    with caplog.at_level("INFO", logger="whisperfold"), httpx.Client(base_url=server.http, timeout=30) as client:
        elsewhere = client.get("/v1/enroll/anna/recordings/0001.flac", headers={"X-Forwarded-For": "192.168.1.9"})
        other_site = client.delete("/v1/profiles/anna", headers={"Origin": "https://evil.example"})
        no_route = client.get("/v1/enroll/anna/nothing")
        client.get("/v1/models")  # the lines of what went before are written
    assert [answer.status_code for answer in (elsewhere, other_site, no_route)] == [401, 403, 404]
    lines = [record.getMessage() for record in caplog.records if "event=request" in record.getMessage()]
    assert len(lines) >= 3 and not any("anna" in line for line in lines)
