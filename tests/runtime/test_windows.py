"""Recordings of any length -> windows."""

import tracemalloc

import numpy as np
import pytest

from whisperfold.runtime.errors import AudioError
from whisperfold.runtime.manifest import Window
from whisperfold.runtime.windows import cut_windows, max_samples, pad, padded_samples, quietest_sample

SHORT = Window(kind="short", tail_s=0.5, min_s=1.0, max_s=20.0)
FULL = Window(kind="full", tail_s=0.0, min_s=1.0, max_s=30.0)


def test_padding() -> None:
    assert padded_samples(1, SHORT) == 16_000
    assert padded_samples(48_000, SHORT) == 56_000
    assert padded_samples(48_001, SHORT) % 320 == 0 and padded_samples(48_001, SHORT) >= 56_001
    assert padded_samples(480_000, SHORT) == padded_samples(1, FULL) == 480_000
    padded = pad(np.ones(1000, np.float32), SHORT)
    assert padded.size == 16_000 and padded.sum() == 1000 and padded.dtype == np.float32
    assert pad(np.ones(500_000, np.float32), FULL).size == 480_000


def test_limit_leaves_room_for_the_tail() -> None:
    assert max_samples(SHORT) == 320_000
    assert max_samples(Window(kind="short", tail_s=0.5, max_s=30.0)) == 472_000
    assert max_samples(FULL) == 480_000


def test_a_short_clip_is_one_window_as_it_is(jfk: np.ndarray) -> None:
    whole = list(cut_windows([jfk], SHORT))
    blocks = list(cut_windows(np.array_split(jfk, 7), SHORT))
    assert len(whole) == len(blocks) == 1
    assert np.array_equal(whole[0].samples, jfk) and np.array_equal(blocks[0].samples, jfk)


def test_nothing_gives_nothing() -> None:
    assert list(cut_windows([], SHORT)) == []
    assert list(cut_windows([np.zeros(0, np.float32)], SHORT)) == []
    assert list(cut_windows([np.zeros(16_000, np.float32)] * 100, SHORT)) == []


def test_long_audio_is_cut_at_pauses(jfk: np.ndarray) -> None:
    silence = np.zeros(16_000 * 5, np.float32)
    recording = np.concatenate([silence, jfk, silence, jfk, silence, silence, jfk])
    windows = list(cut_windows([recording], SHORT))
    assert all(window.samples.size <= 320_000 for window in windows)
    covered = np.zeros(recording.size, bool)
    for window in windows:
        first = round(window.start_s * 16_000)
        assert np.array_equal(recording[first : first + window.samples.size], window.samples)
        assert not covered[first : first + window.samples.size].any()
        covered[first : first + window.samples.size] = True
    speech = np.concatenate([np.zeros(80_000), jfk, np.zeros(80_000), jfk, np.zeros(160_000), jfk])
    assert np.abs(speech[~covered]).max() < 0.1
    assert covered.sum() < 0.8 * recording.size


@pytest.mark.parametrize("size", [1000, 4001, 160_000])
def test_blocks_do_not_matter(jfk: np.ndarray, size: int) -> None:
    recording = np.concatenate([jfk, jfk, np.zeros(30_000, np.float32), jfk])
    whole = list(cut_windows([recording], SHORT))
    parts = list(cut_windows((recording[i : i + size] for i in range(0, recording.size, size)), SHORT))
    shift_s = max(abs(a.start_s - b.start_s) for a, b in zip(whole, parts, strict=True))
    assert shift_s < 0.3


def test_without_vad_nothing_is_lost() -> None:
    recording = np.random.default_rng(0).uniform(-0.1, 0.1, 16_000 * 65).astype(np.float32)
    windows = list(cut_windows([recording], SHORT, vad=False))
    assert np.array_equal(np.concatenate([window.samples for window in windows]), recording)
    assert all(160_000 <= window.samples.size <= 320_000 for window in windows[:-1])


def test_endless_speech_is_cut_at_the_quietest_point() -> None:
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, 48_000).astype(np.float32)
    samples[30_000:34_000] *= 0.01
    assert 30_000 <= quietest_sample(samples, 16_000) <= 34_000


def test_memory_stays_flat() -> None:
    """An hour of silence and noise goes by in less memory than one minute of it takes."""
    random = np.random.default_rng(0)
    noise = random.uniform(-1e-5, 1e-5, 16_000 * 10).astype(np.float32)
    tracemalloc.start()
    list(cut_windows((noise for _ in range(30)), SHORT, vad=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_bad_block() -> None:
    with pytest.raises(AudioError, match="int16"):
        list(cut_windows([np.zeros(16_000, np.int16)], SHORT))
