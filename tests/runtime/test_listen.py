import io
import json
import os
import signal
import stat
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import typer

from whisperfold.runtime import listen_command, microphone, speaker
from whisperfold.runtime.errors import AudioError, ConfigError, WhisperfoldError
from whisperfold.runtime.listen import Clock, file_chunks, listen, saved, until
from whisperfold.runtime.stream_event import StreamEvent


class FakeTime:
    """A clock that only moves when somebody sleeps."""

    def __init__(self):
        self.now_s = 100.0
        self.slept = []
        self.clock = Clock(now=lambda: self.now_s, sleep=self.sleep)

    def sleep(self, seconds):
        assert seconds > 0
        self.slept.append(seconds)
        self.now_s += seconds


def event(kind="final", committed="hello", tentative=""):
    return StreamEvent(kind, 0, 1.0, 2.0, committed, tentative, (), "en", -0.1, 0.01, 0.0)


class FakeTranscriber:
    """Its session gives a partial for each chunk and a final at the end."""

    language = "en"

    def __init__(self):
        self.chunks, self.opened = [], []
        self.level_dbfs, self.in_speech = -30.0, True

    def stream(self, options=None, **decoding):
        if "colour" in decoding:
            raise ConfigError("option 'colour': unknown")
        self.opened.append((options, decoding))
        return self

    def accept_chunk(self, samples):
        self.chunks.append(samples)
        return [event("partial", "hello", "world")]

    def finish(self):
        return [event("final", f"{sum(chunk.size for chunk in self.chunks)} samples")]


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    sf.write(path, np.full(16000, 0.1, np.float32), 16000)
    return path


def test_every_chunk_and_the_end_give_events():
    transcriber, told = FakeTranscriber(), []
    chunks = [np.zeros(1600, np.float32), np.zeros(800, np.float32)]
    options = {"language": "en", "hotwords": ("Kennedy",)}
    events = list(listen(transcriber, chunks, options, on_chunk=lambda session, heard_s: told.append(heard_s)))
    assert [each.kind for each in events] == ["partial", "partial", "final"]
    assert events[-1].committed == "2400 samples"
    assert transcriber.opened == [(None, options)]
    assert told == [0.1, 0.15]


def test_wrong_options_are_refused_before_listening():
    def chunks():
        raise AssertionError("was read")
        yield

    with pytest.raises(ConfigError, match="colour"):
        next(listen(FakeTranscriber(), chunks(), {"colour": "red"}))


def test_a_file_is_played_at_the_speed_of_its_sound(tmp_path):
    path = tmp_path / "clip.wav"
    sf.write(path, np.zeros((12345, 2), np.float32), 8000)
    fake = FakeTime()
    started_s, n_samples = fake.now_s, 0
    for chunk in file_chunks(path, clock=fake.clock):
        n_samples += chunk.size
        assert fake.now_s - started_s == pytest.approx(n_samples / 16000)
    assert n_samples == 2 * 12345


def test_a_late_reader_gets_all_that_was_spoken_meanwhile(clip):
    fake, sizes = FakeTime(), []
    for index, chunk in enumerate(file_chunks(clip, clock=fake.clock)):
        sizes.append(chunk.size)
        fake.now_s += 0.35 if index == 0 else 0.0
    assert sizes == [1600, 3 * 1600, *[1600] * 6]
    assert sum(fake.slept) == pytest.approx(1.0 - 0.35)


def test_as_fast_as_possible_never_sleeps(tmp_path):
    path = tmp_path / "clip.wav"
    sf.write(path, np.zeros(16000 * 60, np.float32), 16000)
    fake = FakeTime()
    started_s = time.monotonic()
    assert sum(chunk.size for chunk in file_chunks(path, real_time=False, clock=fake.clock)) == 16000 * 60
    assert fake.slept == []
    assert time.monotonic() - started_s < 5


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(AudioError, match="no such file"):
        next(file_chunks(tmp_path / "none.wav"))


def test_stopping_takes_what_the_source_still_holds():
    stop, held = threading.Event(), [np.zeros(1, np.float32)] * 3
    chunks = until(stop, iter(held), close=lambda: None)
    next(chunks)
    stop.set()
    assert len(list(chunks)) == 2
    assert len(list(until(stop, iter(held)))) == 1


@pytest.mark.parametrize("ending", ["flac", "wav"])
def test_saved_audio_is_what_was_heard_and_private(tmp_path, ending):
    heard = [np.full(1600, 0.25, np.float32), np.full(800, -0.5, np.float32)]
    path = tmp_path / f"heard.{ending}"
    assert [chunk.size for chunk in saved(heard, path)] == [1600, 800]
    samples, rate_hz = sf.read(path, dtype="float32")
    assert rate_hz == 16000
    assert np.abs(samples - np.concatenate(heard)).max() < 1e-4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_recordings_are_not_overwritten_nor_written_in_odd_formats(tmp_path):
    (tmp_path / "old.flac").write_bytes(b"precious")
    for name, message in (("old.flac", "not overwritten"), ("new.mp3", "use .flac or .wav"), ("no/a.flac", "No such")):
        with pytest.raises(ConfigError, match=message):
            saved([], tmp_path / name)
    assert (tmp_path / "old.flac").read_bytes() == b"precious"


@pytest.fixture
def run(monkeypatch):
    """Run the command on a FakeTranscriber; returns exit code, stdout and stderr."""
    fake = FakeTranscriber()
    monkeypatch.setattr(speaker, "open_transcriber", lambda *arguments: fake)
    app = typer.Typer()
    app.command()(listen_command.listen)

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        try:
            app([str(argument) for argument in arguments], standalone_mode=False)
        except WhisperfoldError as error:
            return str(error), out.getvalue(), err.getvalue()
        return "", out.getvalue(), err.getvalue()

    run.transcriber = fake
    return run


def test_text_is_one_line_per_utterance(run, clip):
    assert run("--input", clip, "--as-fast-as-possible")[:2] == ("", "16000 samples\n")


def test_jsonl_has_every_event(run, clip):
    _, out, _ = run("--input", clip, "--as-fast-as-possible", "--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["type"] for record in records] == ["partial"] * 10 + ["final"]


def test_srt_is_numbered_and_timed(run, clip):
    _, out, _ = run("--input", clip, "--as-fast-as-possible", "--format", "srt")
    assert out == "1\n00:00:01,000 --> 00:00:02,000\n16000 samples\n\n"


def test_options_reach_the_stream(run, clip):
    run("--input", clip, "--as-fast-as-possible", "--hotword", "Ada", "--hotword", "Bob", "--policy",
        "attention-frontier", "--prompt", "A.")  # fmt: skip
    ((options, decoding),) = run.transcriber.opened
    assert options.policy == "attention-frontier"
    assert decoding == {"language": None, "task": "transcribe", "prompt": "A.", "hotwords": ("Ada", "Bob")}


def test_recording_is_off_unless_asked_and_says_so(run, clip, tmp_path):
    _, _, err = run("--input", clip, "--as-fast-as-possible")
    assert "RECORDING" not in err and list(tmp_path.iterdir()) == [clip]
    target = tmp_path / "heard.flac"
    _, _, err = run("--input", clip, "--as-fast-as-possible", "--save-audio", target)
    assert f"RECORDING: all that is heard goes to {target}" in err
    assert sf.info(target).frames == 16000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "x.wav", "--device", "usb"), "exclude each other"),
        (("--as-fast-as-possible",), "needs --input FILE"),
        (("--input", "x.wav", "--format", "docx"), "use one of text, txt, jsonl, srt, vtt"),
        (("--input", "x.wav", "--policy", "hope"), "hope"),
    ],
)
def test_what_cannot_be_is_refused_before_the_weights_are_loaded(run, arguments, message):
    error, out, _ = run(*arguments)
    assert message in error and out == ""
    assert run.transcriber.opened == []


class FakeMicrophone:
    """Speaks until it is closed; the first chunk presses Ctrl-C."""

    dropped = 2
    device = SimpleNamespace(name="USB Mic")

    def __init__(self, device, on_status):
        self.on_status, self.is_closed = on_status, False

    def __enter__(self):
        self.on_status(microphone.MicrophoneStatus("listening", "listening to 'USB Mic'", 0.0))
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self.is_closed = True

    def chunks(self):
        yield np.zeros(1600, np.float32)
        os.kill(os.getpid(), signal.SIGINT)
        yield np.zeros(1600, np.float32)
        assert self.is_closed, "Ctrl-C closes the microphone"
        yield np.zeros(800, np.float32)


def test_ctrl_c_finishes_the_open_utterance(run, monkeypatch):
    monkeypatch.setattr(microphone, "Microphone", FakeMicrophone)
    before = signal.getsignal(signal.SIGINT)
    error, out, err = run("--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert error == ""
    assert records[0]["status"] == "listening"
    assert records[-1]["type"] == "final" and records[-1]["committed"] == "4000 samples"
    assert "2 blocks of audio were lost" in err
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_ends_at_once():
    with pytest.raises(KeyboardInterrupt), listen_command._stopping() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(1.0)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_missing_input_is_one_error(run, tmp_path):
    assert "no such file" in run("--input", tmp_path / "none.wav")[0]
