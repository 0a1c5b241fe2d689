"""The command in a process of its own: start, signals, errors; and the listeners."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from whisperfold.runtime.errors import ServerError
from whisperfold.runtime.listeners import listening

REPOSITORY = Path(__file__).resolve().parents[2]
JFK = REPOSITORY / "runtime" / "samples" / "jfk.flac"
START = """
import sys, typer
from whisperfold.runtime import cli
from whisperfold.runtime.serve_command import serve
if "serve" not in {command.name or command.callback.__name__ for command in cli.app.registered_commands}:
    cli.app.command()(serve)
sys.exit(cli.main(sys.argv[1:]))
"""


class Process:
    """A server process and what it wrote to stderr."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.lines: list[str] = []
        command = [sys.executable, "-c", START, "serve", "--port", "0", *arguments]
        paths = os.pathsep.join([str(REPOSITORY / ".links"), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths, **environment}
        )

    def read_until(self, part: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if part in line:
                return line
        raise AssertionError(f"{part!r} never came: {''.join(self.lines)}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        assert self.process.stderr is not None
        self.lines.append(self.process.stderr.read())  # communicate() would skip what read_until has read ahead
        return self.process.wait(timeout=20)


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[tuple[Process, str]]:
    process = Process(list(arguments), environment)
    try:
        url = process.read_until("http://").split("/ ")[0]
        yield process, url
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.process.wait()
        assert process.process.stderr is not None
        process.process.stderr.close()


def test_it_serves_reloads_and_leaves(tmp_path: Path, bundle_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("max_connections = 5\n")
    unix = tmp_path / "w.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        arguments = ["--config", str(config), "--unix-socket", str(unix), "--bundle", str(bundle_path)]
        with started(*arguments, NOTIFY_SOCKET=str(tmp_path / "notify")) as (process, url):
            assert b"READY=1" in manager.recv(4096)
            answer = httpx.post(
                f"{url}/v1/audio/transcriptions",
                files={"file": JFK.read_bytes()},
                data={"model": "whisper-1"},
                timeout=30,
            )
            assert "country" in answer.json()["text"]
            config.write_text("max_connections = 7\nport = 1\n")
            process.process.send_signal(signal.SIGHUP)
            assert b"RELOADING=1" in manager.recv(4096) and b"READY=1" in manager.recv(4096)
            config.write_text("nonsense = 7\n")
            process.process.send_signal(signal.SIGHUP)
            assert b"RELOADING=1" in manager.recv(4096) and b"READY=1" in manager.recv(4096)
            assert httpx.get(f"{url}/health").status_code == 200
            assert process.stop() == 0
            assert b"STOPPING=1" in manager.recv(4096)
    log = "".join(process.lines)
    assert f"unix:{unix}" in log and "ws://127.0.0.1" in log and not unix.exists()
    assert "event=reloaded bundle=tiny.en need_restart=none" in log  # the --port flag wins over the file
    assert "event=reload_failed" in log and "event=stopped" in log and "country" not in log


def test_sigterm_lets_a_request_finish(bundle_path: Path) -> None:
    with started("--bundle", str(bundle_path)) as (process, url):
        body = httpx.Request(
            "POST",
            f"{url}/v1/audio/transcriptions",
            files={"file": JFK.read_bytes()},
            data={"model": "whisper-1"},
        )
        content = body.read()
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as peer:
            head = "POST /v1/audio/transcriptions HTTP/1.1\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
            peer.sendall(head.encode() + b"\r\n" + content[:-10])
            end_s = time.monotonic() + 10
            while 'kind="http"} 2.0' not in httpx.get(f"{url}/metrics").text:
                assert time.monotonic() < end_s
            process.process.send_signal(signal.SIGTERM)
            process.read_until("event=stopping")
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{url}/health")
            peer.sendall(content[-10:])
            answer = b""
            while piece := peer.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200") and b"country" in answer
        assert process.process.wait(20) == 0


def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path, bundle_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            f"cannot listen on 127.0.0.1:{port}": ["--port", str(port)],
            "no token is set": ["--host", "0.0.0.0"],
            "no bundle there": ["--bundle", str(tmp_path)[:-1]],
            "no profile 'zoe' for this bundle": ["--port", "0", "--profiles", str(tmp_path), "--speaker", "zoe"],
        }
        for message, arguments in cases.items():
            process = Process(arguments, {})
            _, text = process.process.communicate(timeout=30)
            assert process.process.returncode == 2, text
            assert message in text and text.count("\n") == 1, text


def test_a_dead_servers_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening("127.0.0.1", 0, path) as sockets:
        assert len(sockets) == 2 and path.exists()
        with pytest.raises(ServerError, match="cannot listen on"), listening("127.0.0.1", 0, path):
            pass
        assert path.exists()
    assert not path.exists()


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(ServerError), listening("127.0.0.1", 0, path):
        pass
    assert path.read_text() == "precious"


def test_an_unknown_host() -> None:
    with pytest.raises(ServerError, match="cannot listen on no.such.host.invalid:1"):
        with listening("no.such.host.invalid", 1, None):
            pass


def test_health_names_what_is_wrong(start_server: Any) -> None:
    class Microphone:
        def status(self) -> dict[str, Any]:
            return {"state": "lost", "dropped_blocks": 0}

    server = start_server(microphone=Microphone())
    health = httpx.get(f"{server.http}/health")
    assert health.status_code == 200 and health.json()["status"] == "degraded"
    assert health.json()["why"] == ["microphone"] and json.loads(health.text)["microphone"]["state"] == "lost"
    server.app.state.recognizer._weights.error = "broken"
    health = httpx.get(f"{server.http}/health")
    assert health.status_code == 503 and health.json()["why"] == ["weights", "microphone"]
    assert "broken" not in health.text
