"""Requests to a live server: a recording in a form, and bytes that no HTTP client would send."""

from __future__ import annotations

import socket
from typing import Any

import httpx

URL = "/v1/audio/transcriptions"


def post(http: httpx.Client, content: bytes = b"", url: str = URL, **fields: Any) -> httpx.Response:
    """Send a recording and the fields of the form."""
    return http.post(url, files={"file": ("clip.wav", content)}, data={"model": "whisper-1", **fields})


def raw(server: Any, data: bytes, limit_s: float = 10.0, end: bytes = b"no end") -> bytes:
    """Send bytes, return everything that comes back until the server closes, or until an end."""
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port)), timeout=limit_s) as peer:
        peer.sendall(data)
        answer = b""
        while end not in answer and (piece := peer.recv(65536)):
            answer += piece
    return answer
