"""The command line: a stand-in for the recogniser where it does not matter, else the packaged bundle."""

import io
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from clips import JFK

from whisperfold.runtime import cli, progress
from whisperfold.runtime.packaged import default_bundle

ROOT = Path(__file__).resolve().parents[2]


def test_transcribe_to_stdout(recogniser, clip, capsys):
    assert cli.main(["transcribe", clip]) == 0
    captured = capsys.readouterr()
    assert captured.out == "16000 samples\n"
    assert captured.err == ""


def test_options_reach_the_recogniser(recogniser, clip):
    arguments = ["--language", "en", "--task", "translate", "--threads", "2", "--word-timestamps"]
    arguments += ["--beam-size", "3", "--prompt", "Kennedy", "--no-vad", "--bundle", "some/bundle"]
    arguments += ["--hotword", "Ada", "--hotword", "New Delhi", "--speaker", "anna", "--profiles", "voices"]
    assert cli.main(["transcribe", clip, *arguments]) == 0
    assert recogniser.opened == [(Path("some/bundle"), "anna", Path("voices"), 2)]
    assert recogniser.options == {
        "language": "en",
        "task": "translate",
        "word_timestamps": True,
        "beam_size": 3,
        "prompt": "Kennedy",
        "hotwords": ("Ada", "New Delhi"),
        "vad": False,
    }


def test_the_bar_is_on_stderr_and_never_in_the_transcript(recogniser, clip, monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_wanted", lambda has_output_files: True)
    assert cli.main(["transcribe", clip]) == 0
    captured = capsys.readouterr()
    assert captured.out == "16000 samples\n"
    assert "16000 samples" not in captured.err


def test_any_rate_and_channels(recogniser, tmp_path, capsys):
    path = tmp_path / "telephone.wav"
    sf.write(path, np.zeros((8000, 2), np.float32), 8000)
    assert cli.main(["transcribe", str(path)]) == 0
    assert capsys.readouterr().out == "16000 samples\n"


def test_stdin(recogniser, clip, monkeypatch, capsys):
    data = Path(clip).read_bytes()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    assert cli.main(["transcribe", "-", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == "-"
    assert document["duration_s"] == 1.0
    assert document["language"] == "en"


def test_output_directory_has_one_file_per_recording(recogniser, clip, tmp_path, capsys):
    other = tmp_path / "other.flac"
    sf.write(other, np.zeros(8000, np.float32), 16000)
    out = tmp_path / "out"
    arguments = ["transcribe", clip, str(other), str(tmp_path / "no.wav"), "--format", "srt", "-o", str(out)]
    assert cli.main(arguments) == 2
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in out.iterdir()) == ["clip.srt", "other.srt"]
    assert "00:00:00,000 --> 00:00:00,500" in (out / "other.srt").read_text()


def test_devices(usb_microphone, capsys):
    assert cli.main(["devices"]) == 0
    assert capsys.readouterr().out == "*  3  USB Mic  (ALSA, 1 channels, 48000 Hz)\n"
    assert cli.main(["devices", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["native_rate_hz"] == 48000 and record["would_use"] is True


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("transcribe", "listen", "serve", "devices", "doctor", "info", "version", "compile", "verify"):
        assert f" {command} " in out


def test_version(capsys):
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("whisperfold ")


def whisperfold(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "whisperfold.runtime.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, cwd=ROOT / ".links")


@pytest.fixture(scope="module")
def packaged_bundle() -> Path:
    if not (default_bundle() / "manifest.json").is_file():
        pytest.skip("no packaged bundle in this tree: run make bundle")
    return default_bundle()


def test_the_sample_clip_for_real(packaged_bundle):
    done = whisperfold("transcribe", str(JFK))
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode().lower()
    assert "ask not what your country can do for you" in text
    assert text.count("\n") == 1


def test_stdin_and_words_for_real(packaged_bundle):
    done = whisperfold("transcribe", "-", "--format", "json", "--word-timestamps", stdin=JFK.read_bytes())
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    words = [word for segment in document["segments"] for word in segment["words"]]
    assert {"country"} <= {word["text"].strip(" ,.").lower() for word in words}
    assert all(0 <= word["start_s"] <= word["end_s"] <= document["duration_s"] + 0.01 for word in words)
    assert all(0 < word["probability"] <= 1 for word in words)


def test_clips_without_words_for_real(packaged_bundle, tmp_path):
    short, silent = tmp_path / "short.wav", tmp_path / "silent.wav"
    sf.write(short, np.full(800, 0.1, np.float32), 16000)  # 0.05 s
    sf.write(silent, np.zeros((16000 * 5, 2), np.float32), 8000)
    done = whisperfold("transcribe", str(short), str(silent))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_listen_to_a_file_for_real(packaged_bundle):
    done = whisperfold("listen", "--input", str(JFK), "--as-fast-as-possible", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    finals = [record for record in records if record["type"] == "final"]
    assert "country" in " ".join(record["text"] for record in finals).lower()
    assert all(record["start_s"] < record["end_s"] <= 11.5 for record in finals)


def test_info_for_real(packaged_bundle, capsys):
    assert cli.main(["info"]) == 0
    assert "where the bytes are" in capsys.readouterr().out
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny.en"
