"""Log-mel: equal to Whisper's, and incremental = whole."""

import numpy as np
import pytest

from whisperfold.runtime.errors import AudioError
from whisperfold.runtime.mel import HOP_LENGTH, MelStream, log_mel, mel_filters

TOLERANCE = 5e-5


def noisy(n_samples: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    time_s = np.arange(n_samples) / 16000
    voice = 0.3 * np.sin(2 * np.pi * 220 * time_s) * np.sin(2 * np.pi * 1.5 * time_s)
    return (voice + 0.01 * random.standard_normal(n_samples)).astype(np.float32)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("clip", ["jfk", "noisy", "silence"])
def test_equals_transformers(n_mels: int, clip: str, jfk: np.ndarray) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    samples = {"jfk": jfk, "noisy": noisy(160_000), "silence": np.zeros(48_000, np.float32)}[clip]
    window = np.zeros(480_000, np.float32)
    window[: samples.size] = samples
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    expected = extractor(window, sampling_rate=16000, return_tensors="np")["input_features"][0]
    found = log_mel(window, n_mels)
    assert found.shape == (n_mels, 3000) and found.dtype == np.float32
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filters_equal_transformers(n_mels: int) -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    expected = audio_utils.mel_filter_bank(201, n_mels, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    assert np.abs(mel_filters(n_mels) - expected.T).max() < 1e-8


@pytest.mark.parametrize("chunk", [1, 7, 160, 201, 1000, 4096, 50_000])
@pytest.mark.parametrize("tail", [0, 8000])
def test_incremental_equals_whole(chunk: int, tail: int) -> None:
    samples = noisy(3_333 if chunk == 1 else 20_011)
    stream = MelStream()
    for first in range(0, samples.size, chunk):
        stream.push(samples[first : first + chunk])
        if first % 3 == 0:
            stream.window(tail)  # looking must not change anything
    whole = log_mel(np.concatenate([samples, np.zeros(tail, np.float32)]))
    assert stream.window(tail).shape == whole.shape
    assert np.abs(stream.window(tail) - whole).max() <= 1e-6


def test_windows_on_the_way_equal_whole() -> None:
    samples, stream = noisy(9_000), MelStream()
    for first in range(0, samples.size, 777):
        stream.push(samples[first : first + 777])
        whole = log_mel(samples[: first + 777])
        assert np.abs(stream.window() - whole).max() <= 1e-6


@pytest.mark.parametrize("n_samples", [1, 2, 100, 159, 160, 200, 201, 320, 399, 401])
def test_short_clips_have_a_mel(n_samples: int) -> None:
    samples = noisy(n_samples)
    stream = MelStream()
    stream.push(samples)
    assert log_mel(samples).shape == (80, n_samples // HOP_LENGTH)
    assert np.isfinite(log_mel(samples)).all()
    assert np.abs(stream.window() - log_mel(samples)).max(initial=0.0) <= 1e-6


def test_frames_are_computed_once() -> None:
    stream = MelStream()
    assert stream.push(noisy(16_000)) == stream.n_frames == 99
    assert stream.push(np.zeros(0, np.float32)) == 0


@pytest.mark.parametrize(
    "samples", [np.zeros(1000, np.int16), np.zeros(1000), np.zeros((2, 1000), np.float32)], ids=str
)
def test_refuses_what_is_not_float32_mono(samples: np.ndarray) -> None:
    with pytest.raises(AudioError, match=r"expected float32 \(n_samples,\)"):
        log_mel(samples)
    with pytest.raises(AudioError, match=r"expected float32 \(n_samples,\)"):
        MelStream().push(samples)


def test_refuses_no_mel_rows() -> None:
    with pytest.raises(AudioError, match="n_mels=0"):
        mel_filters(0)
