"""The guided flow: real audio plays a person, through a studio of files, and through a terminal and a microphone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.enroll_terminal import Studio, read_aloud, record
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recordings import RecordingStore
from whisperfold.runtime.transcribe import Transcriber

REPOSITORY = Path(__file__).parents[2]
FELLOWS, ASK = "And so, my fellow Americans.", "Ask what you can do for your country."


def load_live_audio() -> ModuleType:
    """test_live_audio.py, whose private PulseAudio is used here too."""
    spec = importlib.util.spec_from_file_location("live_audio", Path(__file__).with_name("test_live_audio.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LIVE_AUDIO = load_live_audio()


class Person:
    """Somebody who says one take after the other, 0.5 s after the microphone opens, and types answers."""

    def __init__(self, takes: Sequence[np.ndarray], answers: Sequence[str]) -> None:
        self._takes, self._answers = iter(takes), iter(answers)
        self.asked: list[str] = []
        self.shown: list[str] = []
        self.played: list[np.ndarray] = []

    def studio(self) -> Studio:
        return Studio(self._chunks, self._ask, self.shown.append, self.played.append)

    def _chunks(self) -> Iterator[np.ndarray]:
        sound = np.concatenate([np.zeros(8000, np.float32), next(self._takes), np.zeros(32000, np.float32)])
        yield from np.array_split(sound, sound.size // 1600)

    def _ask(self, line: str) -> str:
        self.asked.append(line)
        return next(self._answers)


@pytest.fixture
def fellows(jfk: np.ndarray) -> np.ndarray:
    return jfk[: 3 * 16000]


@pytest.fixture
def ask(jfk: np.ndarray) -> np.ndarray:
    return jfk[8 * 16000 :]


def test_a_recording_ends_with_the_pause_after_speech(fellows: np.ndarray) -> None:
    samples = record(Person([fellows[:32000]], []).studio(), 20.0)
    assert 1.5 < samples.size / 16000 < 3.5
    quiet = record(Person([np.zeros(20 * 16000, np.float32)], []).studio(), 20.0)
    assert quiet.size / 16000 == pytest.approx(15.0, abs=0.2)
    long = record(Person([np.tile(fellows, 8)], []).studio(), 10.0)
    assert 9.0 < long.size / 16000 <= 10.0


def test_enter_ends_a_recording(fellows: np.ndarray) -> None:
    person, pressed = Person([fellows], []), iter([False] * 14 + [True])
    studio = Studio(person._chunks, person._ask, person.shown.append, person.played.append, lambda: next(pressed))
    assert record(studio, 20.0).size <= 15 * 1600


def test_keep_play_and_record_again(
    transcriber: Transcriber, tmp_path: Path, fellows: np.ndarray, ask: np.ndarray
) -> None:
    store = RecordingStore(tmp_path)
    person = Person([fellows, fellows[:-1600], ask], ["", "p", "r", "", "", "", "p", ""])
    assert read_aloud([FELLOWS, ASK], store, transcriber, person.studio())
    kept = store.all()
    assert [item.text for item in kept] == [FELLOWS, ASK] and len(person.played) == 2
    assert "fellow" in transcriber.transcribe(store.load(kept[0])).text
    assert "country" in transcriber.transcribe(store.load(kept[1])).text
    assert np.abs(person.played[1] - store.load(kept[1])).max() < 1e-4, "what is played is what is kept"
    assert person.shown.count("  good") == 3
    assert person.shown[0] == f"\n[1/2] {FELLOWS}" and f"\n[2/2] {ASK}" in person.shown


def test_what_is_wrong_is_told_and_asked_again(
    transcriber: Transcriber, tmp_path: Path, fellows: np.ndarray, ask: np.ndarray
) -> None:
    store = RecordingStore(tmp_path)
    takes = [ask, np.zeros(16 * 16000, np.float32), np.clip(fellows * 12, -1, 1), fellows]
    person = Person(takes, ["", "", "", "", ""])
    assert read_aloud([FELLOWS], store, transcriber, person.studio())
    problems = [line.strip() for line in person.shown[1:]]
    assert [problem.split(":")[0].split(" (")[0] for problem in problems] == [
        "this is not what the text says",
        "no speech in it",
        "clipped",
        "good",
    ]
    assert len(store.all()) == 1


def test_skip_quit_and_go_on_later(
    transcriber: Transcriber, tmp_path: Path, fellows: np.ndarray, ask: np.ndarray
) -> None:
    store, sentences = RecordingStore(tmp_path), ["Skipped.", FELLOWS, ASK]
    person = Person([fellows, ask], ["s", "", "", "", "q"])
    assert not read_aloud(sentences, store, transcriber, person.studio())
    assert [item.text for item in store.all()] == [FELLOWS, ASK], "q after a good recording keeps it"
    later = Person([], ["s"])
    assert read_aloud(sentences, store, transcriber, later.studio())
    assert later.shown == ["\n[1/1] Skipped."]
    assert read_aloud([FELLOWS], store, transcriber, Person([], []).studio())  # nothing left to read


def test_ctrl_c_loses_one_recording_at_most(transcriber: Transcriber, tmp_path: Path, fellows: np.ndarray) -> None:
    store, person = RecordingStore(tmp_path), Person([fellows], ["", ""])
    studio = person.studio()

    def ask_or_leave(line: str) -> str:
        if len(person.asked) == 2:
            raise KeyboardInterrupt
        return person._ask(line)

    with pytest.raises(KeyboardInterrupt):
        read_aloud([FELLOWS, ASK], store, transcriber, Studio(studio.chunks, ask_or_leave, studio.say, studio.play))
    assert [item.text for item in store.all()] == [FELLOWS]


class Terminal:
    """`whisperfold enroll anna` at a terminal of its own, and what it has shown."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self._keyboard, screen = pty.openpty()
        command = [sys.executable, "-m", "whisperfold.runtime.cli", "enroll", "anna", "--threads", "2", *arguments]
        self.process = subprocess.Popen(
            command,
            env={**environment, "TERM": "dumb"},
            cwd=REPOSITORY / ".links",
            stdin=screen,
            stdout=screen,
            stderr=screen,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & leaves it ignored
        )
        os.close(screen)
        self._shown = ""

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        """Read on until the text is shown; what comes before it is done with."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self._shown:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0 and select.select([self._keyboard], [], [], left_s)[0], f"no {text!r}: {self._shown!r}"
            with contextlib.suppress(OSError):  # EIO: it has ended
                self._shown += os.read(self._keyboard, 4096).decode(errors="replace")
                continue
            assert text in self._shown, f"no {text!r}, it has ended: {self._shown!r}"
        self._shown = self._shown.split(text, 1)[1]

    def type(self, line: str) -> None:
        """A line and Enter."""
        os.write(self._keyboard, f"{line}\n".encode())

    def ended(self) -> int:
        """The exit code."""
        return self.process.wait(20)

    def close(self) -> None:
        """End it whatever it does."""
        self.process.kill()
        self.process.wait(10)
        os.close(self._keyboard)


@pytest.mark.skipif(bool(LIVE_AUDIO.MISSING), reason=f"missing {', '.join(LIVE_AUDIO.MISSING)}")
def test_at_a_terminal_with_a_microphone(bundle: Bundle, tmp_path: Path, fellows: np.ndarray, ask: np.ndarray) -> None:
    """Read, keep, misread, leave; go on later; Ctrl-C while recording. The voice is played in real time."""
    voice = {"fellows": tmp_path / "fellows.wav", "ask": tmp_path / "ask.wav"}
    sf.write(voice["fellows"], fellows, 16000)
    sf.write(voice["ask"], ask, 16000)
    store = ProfileStore(bundle, tmp_path / "profiles")
    where = ["--profiles", str(tmp_path / "profiles"), "--bundle", str(bundle.path), "--prompts", "0"]
    sentences = ["--sentence", FELLOWS, "--sentence", ASK]
    with tempfile.TemporaryDirectory(prefix="wf") as folder, contextlib.ExitStack() as stack:
        sound = LIVE_AUDIO.Sound(Path(folder))
        stack.callback(sound.close)
        terminal = Terminal(sound.environment, *where, *sentences)
        stack.callback(terminal.close)
        terminal.wait_for(f"[1/2] {FELLOWS}", 60.0)
        terminal.wait_for("Enter records")
        terminal.type("")
        terminal.wait_for("recording")
        assert sound.play(voice["fellows"]).wait(20) == 0
        terminal.wait_for("good")
        terminal.wait_for("Enter keeps it")
        terminal.type("")
        terminal.wait_for(f"[2/2] {ASK}")
        terminal.type("")
        terminal.wait_for("recording")
        assert sound.play(voice["fellows"]).wait(20) == 0
        terminal.wait_for("this is not what the text says: read it again")
        terminal.type("q")
        terminal.wait_for("1 recordings are kept; go on with: whisperfold enroll anna --add")
        assert terminal.ended() == 0

        terminal = Terminal(sound.environment, *where, *sentences, "--add")
        stack.callback(terminal.close)
        terminal.wait_for(f"[1/1] {ASK}", 60.0)
        terminal.type("")
        terminal.wait_for("recording")
        assert sound.play(voice["ask"]).wait(20) == 0
        terminal.wait_for("Enter keeps it")
        terminal.type("")
        terminal.wait_for("Learn from them now?")
        terminal.type("n")
        terminal.wait_for("later: whisperfold enroll anna --resume")
        assert terminal.ended() == 0
        assert [item.text for item in store.recordings("anna").all()] == [FELLOWS, ASK]

        terminal = Terminal(sound.environment, *where, "--sentence", "Never read.", "--add")
        stack.callback(terminal.close)
        terminal.wait_for("Enter records", 60.0)
        terminal.type("")
        terminal.wait_for("recording")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("2 recordings are kept; go on with: whisperfold enroll anna --add")
        assert terminal.ended() == 130
