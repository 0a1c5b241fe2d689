"""The whole way through real audio plumbing: paplay -> PulseAudio -> ALSA -> PortAudio -> `whisperfold listen`.

A private PulseAudio with a null sink as loudspeaker, and its monitor, remapped, as microphone: nothing of it
touches the sound of the machine that runs the tests.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime.audio import load_audio
from whisperfold.runtime.transcribe import Transcriber

ROOT = Path(__file__).resolve().parents[2]
JFK = ROOT / "runtime" / "samples" / "jfk.flac"
LISTEN = [sys.executable, "-m", "whisperfold.runtime.cli", "listen", "--format", "jsonl", "--threads", "2"]
MAX_WORDS_WRONG = 3
Record = dict[str, Any]

MISSING = [name for name in ("pulseaudio", "pactl", "paplay") if shutil.which(name) is None]
for name, pattern in (
    ("libportaudio2", "libportaudio.so.2"),
    ("libasound2-plugins", "alsa-lib/libasound_module_pcm_pulse.so"),
):
    MISSING += [] if [*Path("/usr/lib").glob(f"*/{pattern}"), *Path("/usr/lib").glob(pattern)] else [name]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"missing {', '.join(MISSING)}: deploy/system-packages.sh --test")


class Sound:
    """A private PulseAudio; `plug_in` and `unplug` are its microphone's."""

    def __init__(self, folder: Path) -> None:
        (folder / "alsa.conf").write_text(
            "</usr/share/alsa/alsa.conf>\npcm.!default { type pulse }\nctl.!default { type pulse }\n"
        )
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "PULSE_RUNTIME_PATH": str(folder),
            "PULSE_SERVER": f"unix:{folder}/native",
            "ALSA_CONFIG_PATH": str(folder / "alsa.conf"),
        }
        options = "--daemonize=no --exit-idle-time=-1 --use-pid-file=no --resample-method=speex-float-10".split()
        native = f"module-native-protocol-unix auth-anonymous=1 socket={folder}/native"
        self._daemon = subprocess.Popen(
            ["pulseaudio", "-n", *options, f"--load={native}"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._modules: list[str] = []
        self.plug_in()

    def plug_in(self) -> None:
        """Loudspeaker, and the microphone that hears it."""
        sink = "module-null-sink sink_name=vspk"
        microphone = "module-remap-source master=vspk.monitor source_name=vmic"
        self._modules = [self._pactl("load-module", *module.split()) for module in (sink, microphone)]
        self._pactl("set-default-source", "vmic")

    def unplug(self) -> None:
        """Both are gone, and what was playing or recording with them."""
        while self._modules:
            self._pactl("unload-module", self._modules.pop())

    def play(self, path: Path) -> subprocess.Popen[bytes]:
        """Play a file in real time; ends when it has been heard."""
        command = ["paplay", "-d", "vspk", str(path)]
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        """End the daemon."""
        self._daemon.terminate()
        self._daemon.wait(10)

    def _pactl(self, *arguments: str, timeout_s: float = 10.0) -> str:
        """Run pactl, waiting for the daemon to answer."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            done = subprocess.run(["pactl", *arguments], env=self.environment, capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout.strip()
            assert self._daemon.poll() is None, "pulseaudio has ended"
            assert time.monotonic() < deadline_s, f"pactl {' '.join(arguments)}: {done.stderr}"
            time.sleep(0.05)


class Listener:
    """`whisperfold listen` in a process of its own, and what it has said so far."""

    def __init__(self, sound: Sound) -> None:
        self._process = subprocess.Popen(
            LISTEN,
            env=sound.environment,
            cwd=ROOT / ".links",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.records: list[Record] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def find(self, condition: Callable[[Record], bool]) -> Record | None:
        """Return the first record of all that fits, waiting for it if need be."""
        return next(filter(condition, self.records), None) or self.wait(condition)

    def wait(self, condition: Callable[[Record], bool], timeout_s: float = 20.0) -> Record | None:
        """Read on until a record fits; None when none came in time."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left_s)
            except queue.Empty:
                break
            assert line is not None, f"listen has ended: {self._process.stderr.read()}"
            self.records.append(json.loads(line))
            if condition(self.records[-1]):
                return self.records[-1]
        return None

    def wait_for_status(self, status: str) -> Record:
        """Read on until the microphone is in this state."""
        found = self.wait(lambda record: record.get("status") == status)
        assert found is not None, f"never {status!r}: {self.records}"
        return found

    def wait_for_text(self, expected: str, first: int = 0, timeout_s: float = 8.0) -> None:
        """Read on until the finals from record `first` on say what was expected."""

        def is_said(record: Record) -> bool:
            return record["type"] == "final" and words_wrong(expected, self.text(first)) <= MAX_WORDS_WRONG

        said = self.wait(is_said, timeout_s)
        assert said is not None, f"expected {expected!r}, got {self.text(first)!r}"

    def text(self, first: int = 0) -> str:
        """All finals from record `first` on."""
        return " ".join(record["committed"] for record in self.records[first:] if record["type"] == "final")

    def stop(self) -> int:
        """Ctrl-C; returns the exit code after everything was read."""
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(20)
        while (line := self._lines.get(timeout=5)) is not None:
            self.records.append(json.loads(line))
        return code

    def kill(self) -> None:
        """End it whatever it does."""
        self._process.kill()
        self._process.wait(10)

    def _read(self) -> None:
        """Lines of stdout, then None."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


@pytest.fixture
def sound() -> Iterator[Sound]:
    with tempfile.TemporaryDirectory(prefix="wf") as folder:  # short: a socket's path has at most 107 bytes
        sound = Sound(Path(folder))
        yield sound
        sound.close()


@pytest.fixture
def listener(sound: Sound, bundle_path: Path) -> Iterator[Listener]:
    listener = Listener(sound)
    try:
        listener.wait_for_status("listening")
        yield listener
    finally:
        listener.kill()


def words_wrong(expected: str, said: str) -> int:
    """Words substituted, left out or added."""
    plain = [re.sub(r"[^a-z' ]", " ", text.lower()) for text in (expected, said)]
    if not plain[1].strip():
        return len(plain[0].split())
    found = jiwer.process_words(*plain)
    return int(found.substitutions + found.deletions + found.insertions)


def check_commits(records: list[Record]) -> None:
    """Committed text only grows, and the clock never goes back."""
    committed: dict[int, str] = {}
    last_s = 0.0
    for record in records:
        if record["type"] == "status":
            continue
        before = committed.get(record["utterance"], "")
        now = record.get("committed", "")  # a start has no text
        assert now.startswith(before), f"{before!r} became {now!r}"
        committed[record["utterance"]] = now
        assert record["end_s"] >= record["start_s"] >= 0.0
        if record["type"] == "start":
            assert record["start_s"] >= last_s - 0.5, "an utterance begins before the last one ended"
        last_s = max(last_s, record["end_s"])


def clips(speech: Path) -> list[Path]:
    """The packaged clip, and one of LibriSpeech where it is at hand."""
    table = speech / "librispeech-other-dev.jsonl"
    if not table.is_file():
        return [JFK]
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    return [JFK, speech / next(row["audio"] for row in rows if 5.0 < row["duration_s"] < 8.0)]


def test_what_is_played_is_transcribed(listener: Listener, sound: Sound, transcriber: Transcriber) -> None:
    for clip in clips(ROOT.parent / "shared" / "speech"):
        expected = transcriber.transcribe(load_audio(clip)).text
        first = len(listener.records)
        assert sound.play(clip).wait(30) == 0
        listener.wait_for_text(expected, first)
    assert listener.stop() == 0
    check_commits(listener.records)


def test_a_microphone_that_is_unplugged_and_comes_back(
    listener: Listener, sound: Sound, transcriber: Transcriber, jfk: np.ndarray, tmp_path: Path
) -> None:
    first_clip, second_clip = tmp_path / "first.wav", tmp_path / "second.wav"
    sf.write(first_clip, jfk[int(5.2 * 16000) :], 16000)  # what your country can do for you, ask ...
    sf.write(second_clip, jfk[: int(3.0 * 16000)], 16000)  # And so, my fellow Americans
    player = sound.play(first_clip)
    open_one = listener.wait(lambda record: record["type"] == "partial" and len(record["committed"].split()) >= 2)
    assert open_one is not None, f"nothing committed: {listener.records}"
    sound.unplug()
    player.wait(10)
    listener.wait_for_status("lost")
    final = listener.find(lambda record: record["type"] == "final" and record["utterance"] == open_one["utterance"])
    assert final is not None, "the open utterance does not end with the microphone"
    assert final["committed"].startswith(open_one["committed"]), "what was committed is still there"

    sound.plug_in()
    back = listener.wait_for_status("back")
    first = len(listener.records)
    assert sound.play(second_clip).wait(30) == 0
    listener.wait_for_text(transcriber.transcribe(load_audio(second_clip)).text, first)
    assert listener.records[-1]["start_s"] >= back["at_s"] - 0.5, "time went on while it was away"
    assert listener.stop() == 0
    check_commits(listener.records)
