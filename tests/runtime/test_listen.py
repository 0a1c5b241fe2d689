import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime.audio import load_audio
from whisperfold.runtime.bundle import Window
from whisperfold.runtime.errors import AudioError, ConfigError
from whisperfold.runtime.listen import Clock, file_chunks, listen
from whisperfold.runtime.transcript import Segment, Transcription

SAMPLE = Path(__file__).resolve().parents[2] / "runtime" / "samples" / "jfk.flac"


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


class FakeTranscriber:
    """Answers with the length of the window; takes 0.25 s of fake time for each. Its own session, too."""

    def __init__(self, fake_time=None):
        self.bundle = SimpleNamespace(window=Window(kind="short", tail_s=0.5, min_s=1.0, max_s=20.0))
        self.fake_time = fake_time
        self.windows = []
        self.is_mute = False

    def session(self, **options):
        if "colour" in options:
            raise ConfigError("option 'colour': unknown")
        return self

    def accept_chunk(self, samples):
        self.windows.append(samples)

    def finish(self):
        if self.fake_time is not None:
            self.fake_time.now_s += 0.25
        duration_s = self.windows[-1].size / 16000
        text = "" if self.is_mute else f"{duration_s:.3f} s"
        segments = () if self.is_mute else (Segment(0.0, duration_s, text, -0.1, 0.01),)
        return Transcription(text, segments, "en", duration_s)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """float32 (n,): two seconds of silence, 2.3 s of speech, three of silence, the speech again, silence."""
    samples = load_audio(SAMPLE)
    said, silence = samples[int(0.3 * 16000) : int(2.3 * 16000)], np.zeros(16000, np.float32)
    parts = [silence, silence, said, silence, silence, silence, said, silence, silence]
    return np.concatenate(parts)


def chunked(samples, n=1600):
    return [samples[first : first + n] for first in range(0, samples.size, n)]


def test_one_utterance_per_pause(speech):
    fake = FakeTime()
    transcriber = FakeTranscriber(fake)
    utterances = list(listen(transcriber, chunked(speech), clock=fake.clock))
    assert len(utterances) == 2
    for utterance, expected_s in zip(utterances, (2.0, 7.0), strict=True):
        assert utterance.start_s == pytest.approx(expected_s, abs=0.5)
        assert utterance.end_s == pytest.approx(expected_s + 2.0, abs=0.6)
        assert utterance.processing_s == pytest.approx(0.25)
        assert 0.25 < utterance.delay_s < 2.0


def test_an_utterance_comes_before_the_next_is_heard(speech):
    n_read = itertools.count()
    chunks = ((next(n_read), chunk)[1] for chunk in chunked(speech))
    next(listen(FakeTranscriber(), chunks))
    assert next(n_read) * 0.1 < 7.0


def test_chunk_size_does_not_matter(speech):
    runs = [
        [(u.start_s, u.end_s, u.text) for u in listen(FakeTranscriber(), chunked(speech, n))] for n in (4000, 8000, 160)
    ]
    assert runs[0] == runs[1]
    assert np.allclose([u[:2] for u in runs[0]], [u[:2] for u in runs[2]], atol=0.3)


def test_speech_at_the_end_of_the_stream_is_not_lost(speech):
    utterances = list(listen(FakeTranscriber(), chunked(speech[: int(3.9 * 16000)])))
    assert len(utterances) == 1


def test_silence_and_hum_are_not_even_decoded():
    transcriber = FakeTranscriber()
    hum = 0.2 * np.sin(2 * np.pi * 50 * np.arange(16000 * 10) / 16000).astype(np.float32)
    assert list(listen(transcriber, chunked(np.zeros(16000 * 10, np.float32)) + chunked(hum))) == []
    assert transcriber.windows == []


def test_a_window_without_text_is_no_utterance(speech):
    transcriber = FakeTranscriber()
    transcriber.is_mute = True
    assert list(listen(transcriber, chunked(speech))) == []
    assert len(transcriber.windows) == 2


def test_wrong_options_are_refused_before_listening():
    def chunks():
        raise AssertionError("was read")
        yield

    with pytest.raises(ConfigError, match="colour"):
        next(listen(FakeTranscriber(), chunks(), {"colour": "red"}))


def test_record_is_json_ready(speech):
    record = next(listen(FakeTranscriber(), chunked(speech))).record()
    assert set(record) == {
        "text", "language", "start_s", "end_s", "avg_logprob", "no_speech_prob", "processing_s", "delay_s",
    }  # fmt: skip
    assert record["text"].endswith(" s")


def test_a_file_is_played_at_the_speed_of_its_sound(tmp_path):
    path = tmp_path / "clip.wav"
    sf.write(path, np.zeros((12345, 2), np.float32), 8000)
    fake = FakeTime()
    started_s, n_samples = fake.now_s, 0
    for chunk in file_chunks(path, clock=fake.clock):
        n_samples += chunk.size
        assert fake.now_s - started_s == pytest.approx(n_samples / 16000)
    assert n_samples == 2 * 12345


def test_a_slow_reader_is_not_slowed_down_more(tmp_path):
    path = tmp_path / "clip.wav"
    sf.write(path, np.zeros(16000, np.float32), 16000)
    fake = FakeTime()
    for index, _ in enumerate(file_chunks(path, clock=fake.clock)):
        fake.now_s += 0.35 if index == 0 else 0.0
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
