"""Nothing leaves the device: a transcription opens no network socket and leaves nothing in the home directory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "runtime" / "samples" / "jfk.flac"
PROGRAM = f"""
from whisperfold.runtime import Transcriber, load_audio
print(Transcriber.open().transcribe(load_audio({str(SAMPLE)!r})).text)
"""


def run(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    return subprocess.run(command, env={**environment, "HOME": str(home)}, capture_output=True, text=True, timeout=120)


def test_a_transcription_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run([sys.executable, "-c", PROGRAM], tmp_path)
    assert "country" in done.stdout, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_transcription_opens_no_network_socket(tmp_path: Path) -> None:
    trace = ["strace", "-f", "-qq", "-e", "trace=socket", sys.executable, "-c", PROGRAM]
    done = run(trace, tmp_path)
    assert "country" in done.stdout, done.stderr
    assert not [line for line in done.stderr.splitlines() if "AF_INET" in line]
