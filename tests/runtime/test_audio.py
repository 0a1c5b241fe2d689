"""Audio files of any kind -> 16 kHz mono float32, and what is said about bad ones."""

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime import audio
from whisperfold.runtime.errors import AudioError


def tone(rate_hz: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    wave = (0.5 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)
    return np.repeat(wave[:, None], channels, axis=1)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channels(tmp_path: Path, rate_hz: int, channels: int) -> None:
    path = tmp_path / "tone.wav"
    sf.write(path, tone(rate_hz, channels=channels), rate_hz, subtype="FLOAT")
    samples = audio.load_audio(path)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(samples.size - 16000) <= 2
    middle = slice(2000, 14000)
    assert np.abs(samples[middle] - tone(16000)[middle, 0]).max() < 0.01


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_any_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    sf.write(path, tone(16000), 16000)
    assert abs(float(np.sqrt(np.mean(audio.load_audio(path) ** 2))) - 0.354) < 0.03


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
def test_stream_equals_load(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "tone.wav"
    sf.write(path, tone(rate_hz, 2.3, 2), rate_hz, subtype="FLOAT")
    blocks = list(audio.stream_audio(path, block_s=0.37))
    whole = audio.load_audio(path)
    assert len(blocks) > 5
    joined = np.concatenate(blocks)
    assert abs(joined.size - whole.size) <= 1
    n = min(joined.size, whole.size)
    assert np.abs(joined[:n] - whole[:n]).max() < 1e-3


def test_stream_keeps_memory_flat(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with sf.SoundFile(path, "w", 16000, 1) as file:
        for _ in range(20):
            file.write(np.zeros(16000 * 60, np.float32))
    tracemalloc.start()
    n_samples = sum(block.size for block in audio.stream_audio(path, 10.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_samples == 20 * 60 * 16000
    assert peak < 8e6  # the whole file would be 77 MB


def test_file_objects(jfk: np.ndarray) -> None:
    buffer = io.BytesIO()
    sf.write(buffer, jfk, 16000, format="WAV", subtype="FLOAT")

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    for source in (io.BytesIO(buffer.getvalue()), Pipe(buffer.getvalue())):
        assert np.array_equal(audio.load_audio(source), jfk)


def test_duration_is_the_headers(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    sf.write(path, tone(8000, 1.5), 8000)
    assert audio.duration_s(path) == 1.5


@pytest.mark.parametrize(
    "read", [audio.load_audio, lambda path: list(audio.stream_audio(path))], ids=["load", "stream"]
)
class TestBadFiles:
    def test_missing(self, tmp_path: Path, read: object) -> None:
        with pytest.raises(AudioError, match="no such file"):
            read(tmp_path / "gone.wav")

    def test_directory(self, tmp_path: Path, read: object) -> None:
        with pytest.raises(AudioError, match="a directory"):
            read(tmp_path)

    def test_zero_bytes(self, tmp_path: Path, read: object) -> None:
        (tmp_path / "empty.wav").touch()
        with pytest.raises(AudioError, match="0 bytes"):
            read(tmp_path / "empty.wav")

    def test_not_audio(self, tmp_path: Path, read: object) -> None:
        (tmp_path / "notes.wav").write_text("not audio at all" * 100)
        with pytest.raises(AudioError, match="not readable audio"):
            read(tmp_path / "notes.wav")

    def test_header_without_samples(self, tmp_path: Path, read: object) -> None:
        sf.write(tmp_path / "none.wav", np.zeros((0, 1), np.float32), 16000)
        with pytest.raises(AudioError, match="no samples"):
            read(tmp_path / "none.wav")

    def test_nan(self, tmp_path: Path, read: object) -> None:
        bad = tone(16000)
        bad[100] = np.nan
        sf.write(tmp_path / "nan.wav", bad, 16000, subtype="FLOAT")
        with pytest.raises(AudioError, match="nan.wav: samples: 1 of 16000 are NaN"):
            read(tmp_path / "nan.wav")

    def test_truncated(self, tmp_path: Path, read: object) -> None:
        whole = tmp_path / "whole.flac"
        sf.write(whole, np.random.default_rng(0).uniform(-0.5, 0.5, 64000).astype(np.float32), 16000)
        cut = tmp_path / "cut.flac"
        cut.write_bytes(whole.read_bytes()[:30])
        with pytest.raises(AudioError, match="cut.flac: "):
            read(cut)


def test_truncated_wav_gives_what_is_there(tmp_path: Path) -> None:
    whole = tmp_path / "whole.wav"
    sf.write(whole, tone(16000), 16000)
    (tmp_path / "cut.wav").write_bytes(whole.read_bytes()[:16044])
    assert audio.load_audio(tmp_path / "cut.wav").size == 8000


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros((2, 10), np.float32), r"shape \(2, 10\), expected mono"),
        (np.zeros(10, np.int16), r"dtype int16.*/ 32768"),
        (np.zeros(10, np.float64), "dtype float64, expected float32"),
        (np.array([0.0, np.nan, 0.0], np.float32), "1 of 3 are NaN"),
        (np.array([0.0, -np.inf], np.float32), "1 of 2 are NaN or infinite"),
        (np.array([0.0, 12000.0], np.float32), "peak 12000.*divided by 32768"),
        ([0.0, 0.1], "list, expected a numpy"),
    ],
)
def test_check_samples_says_what_is_wrong(samples: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.check_samples(samples)


def test_check_samples_returns_the_same_array(jfk: np.ndarray) -> None:
    assert audio.check_samples(jfk) is jfk
