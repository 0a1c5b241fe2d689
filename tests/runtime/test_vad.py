"""Speech or silence: noise is none, speech is found where it is, in any chunks."""

import json
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime import vad
from whisperfold.runtime.audio import load_audio
from whisperfold.runtime.errors import AudioError, ConfigError
from whisperfold.runtime.vad import VadOptions, VoiceDetector, has_speech, speech_segments


def noises() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    time_s = np.arange(16000 * 10) / 16000
    made = {
        "zeros": np.zeros(time_s.size),
        "white": 0.1 * random.standard_normal(time_s.size),
        "quiet white": 0.003 * random.standard_normal(time_s.size),
        "hum": 0.3 * np.sin(2 * np.pi * 50 * time_s),
        "clicks": (np.arange(time_s.size) % 8000 == 0) * 0.9,
    }
    return {name: samples.astype(np.float32) for name, samples in made.items()}


@pytest.mark.parametrize("name", list(noises()))
def test_noise_is_no_speech(name: str) -> None:
    assert speech_segments(noises()[name]) == []
    assert not has_speech(noises()[name])


def test_recorded_noise_is_no_speech(speech_dir: Path) -> None:
    lines = (speech_dir / "noise.jsonl").read_text().splitlines()
    for line in lines:
        samples = load_audio(speech_dir / json.loads(line)["audio"])
        assert speech_segments(samples) == []
        assert not has_speech(samples)


def test_speech_is_found_where_it_is(jfk: np.ndarray) -> None:
    silence = np.zeros(16000 * 3, np.float32)
    segments = speech_segments(np.concatenate([silence, jfk, silence]))
    assert 3.0 < segments[0][0] < 3.7
    assert 13.0 < segments[-1][1] < 14.1
    assert 3 <= len(segments) <= 6
    assert all(start_s < end_s for start_s, end_s in segments)
    assert all(before[1] < after[0] for before, after in zip(segments, segments[1:], strict=False))


def test_has_speech_looks_behind_a_louder_noise(jfk: np.ndarray) -> None:
    bang = np.zeros(8000, np.float32)
    bang[100:200] = 1.0
    assert has_speech(np.concatenate([0.03 * jfk[:60_000], bang]))


@pytest.mark.parametrize("size", [100, 512, 1000, 40_000])
def test_chunks_do_not_matter(jfk: np.ndarray, size: int) -> None:
    detector, events = VoiceDetector(), []
    for first in range(0, jfk.size, size):
        events += detector.push(jfk[first : first + size])
    events += detector.finish()
    found = list(zip(events[::2], events[1::2], strict=True))
    assert [(start.time_s, end.time_s) for start, end in found] == speech_segments(jfk)
    assert not detector.in_speech and detector.finish() == []


def test_reset_starts_again(jfk: np.ndarray) -> None:
    detector = VoiceDetector()
    first = detector.push(jfk)
    detector.reset()
    assert detector.time_s == 0.0
    assert detector.push(jfk) == first


def test_hysteresis(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(probabilities: list[float]) -> list[tuple[str, int]]:
        detector = VoiceDetector()
        monkeypatch.setattr(detector._probability, "push", lambda samples: probabilities)
        events = detector.push(np.zeros(1, np.float32)) + detector.finish()
        return [(event.kind, round(event.time_s / vad.CHUNK_S)) for event in events]

    assert script([0.9] * 7 + [0.0] * 20) == []  # shorter than 0.25 s
    assert script([0.9] * 8 + [0.0] * 20) == [("start", 0), ("end", 8)]
    assert script([0.4] * 30) == []  # never on
    assert script([0.0] * 5 + [0.9] + [0.4] * 9 + [0.0] * 20) == [("start", 5), ("end", 15)]  # stays on
    assert script([0.9] * 8 + [0.0] * 9 + [0.9] * 2) == [("start", 0), ("end", 19)]  # a short pause
    assert script([0.9] * 8 + [0.0] * 3) == [("start", 0), ("end", 8)]  # finish() dates back


def test_bad_samples() -> None:
    with pytest.raises(AudioError, match="expected float32"):
        VoiceDetector().push(np.zeros(512, np.int16))


@pytest.mark.parametrize("limits", [{"on": 0.2}, {"off": 0.0}, {"on": 1.0}])
def test_bad_thresholds(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected 0 < off <= on < 1"):
        VadOptions(**limits)
