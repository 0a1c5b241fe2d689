"""Audio files and arrays -> mono float32 at 16 kHz.

Anything libsndfile reads (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF ...), any rate, any number of channels:
channels are averaged, soxr resamples. `stream_audio` does it block by block, so a three-hour file needs
no more memory than a three-second one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO

import numpy as np
import soundfile as sf
import soxr

from whisperfold.runtime.errors import AudioError

SAMPLE_RATE = 16_000
"""Hz, what Whisper, the VAD and every array in this package use."""
MAX_ABS = 16.0
"""Largest plausible |sample|: floats overshoot 1 a little, integer PCM passed as float by thousands."""

AudioSource = str | PathLike[str] | IO[bytes]
_FORMATS = "WAV, FLAC, Ogg, Opus, MP3 or AIFF"


def check_samples(samples: np.ndarray) -> np.ndarray:
    """Return samples if they can be transcribed.

    Args:
        samples: float32 (n_samples,), mono, 16 kHz, in [-1, 1].

    Returns:
        The same array.

    Raises:
        AudioError: not a float32 vector, empty, or holding NaN, infinity or integer-sized values.
    """
    if not isinstance(samples, np.ndarray):
        raise AudioError(f"samples: {type(samples).__name__}, expected a numpy float32 array (n_samples,)")
    if samples.dtype != np.float32:
        how = "samples.astype(np.float32)"
        if samples.dtype.kind in "iu":
            how += f" / {2 ** (8 * samples.dtype.itemsize - 1)}"
        raise AudioError(f"samples: dtype {samples.dtype}, expected float32 in [-1, 1]; convert with {how}")
    if samples.ndim != 1:
        raise AudioError(
            f"samples: shape {samples.shape}, expected mono (n_samples,); average the channels first, "
            "e.g. samples.mean(axis=-1)"
        )
    if samples.size == 0:
        raise AudioError("samples: empty, expected at least one sample at 16 kHz; check the recording")
    peak = max(float(samples.max()), -float(samples.min()))
    if not np.isfinite(peak):
        n_bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise AudioError(
            f"samples: {n_bad} of {samples.size} are NaN or infinite, expected finite values in [-1, 1]; "
            "clean them with np.nan_to_num or record again"
        )
    if peak > MAX_ABS:
        raise AudioError(f"samples: peak {peak:.0f}, expected [-1, 1]; integer PCM must be divided by 32768")
    return samples


def load_audio(source: AudioSource) -> np.ndarray:
    """Read a whole audio file.

    Args:
        source: path, or a binary file object (it need not be seekable).

    Returns:
        float32 (n_samples,), mono, 16 kHz.

    Raises:
        AudioError: the file is missing, empty, not audio, damaged, or holds NaN.
    """
    with _opened(source) as (file, name):
        with _reading(name):
            samples = file.read(dtype="float32", always_2d=True)
        rate_hz = file.samplerate
    mono = _to_mono(samples)
    if mono.size == 0:
        raise AudioError(f"{name}: no samples in the file, expected audio; check the recording")
    if rate_hz != SAMPLE_RATE:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE).astype(np.float32, copy=False)
    return _checked(mono, name)


def stream_audio(source: AudioSource, block_s: float = 30.0) -> Iterator[np.ndarray]:
    """Read an audio file block by block, with memory that does not depend on its length.

    Args:
        source: path, or a binary file object.
        block_s: seconds of the file per block.

    Yields:
        float32 (n,), mono, 16 kHz, in order and without gaps.

    Raises:
        AudioError: as `load_audio`; a damaged file raises when the damage is reached.
    """
    n_samples = 0
    with _opened(source) as (file, name):
        rate_hz = file.samplerate
        resampler = None if rate_hz == SAMPLE_RATE else soxr.ResampleStream(rate_hz, SAMPLE_RATE, 1, "float32")
        n_block = max(1, round(block_s * rate_hz))
        while True:
            with _reading(name):
                samples = file.read(n_block, dtype="float32", always_2d=True)
            mono = _to_mono(samples)
            is_last = mono.size < n_block
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=is_last)
            n_samples += mono.size
            if mono.size:
                yield _checked(mono, name)
            if is_last:
                break
    if n_samples == 0:
        raise AudioError(f"{name}: no samples in the file, expected audio; check the recording")


def duration_s(source: str | PathLike[str]) -> float:
    """Return the length that the file's header states, in seconds (0 when it states none)."""
    with _opened(source) as (file, _):
        return max(0, file.frames) / file.samplerate


def _to_mono(samples: np.ndarray) -> np.ndarray:
    """(n, channels) -> float32 (n,)."""
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def _checked(samples: np.ndarray, name: str) -> np.ndarray:
    """`check_samples` with the file's name in the message."""
    try:
        return check_samples(np.ascontiguousarray(samples))
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from None


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn libsndfile's decoding errors into AudioError."""
    try:
        yield
    except (sf.LibsndfileError, RuntimeError, OSError) as error:
        raise AudioError(f"{name}: damaged audio ({error}); copy or record it again") from error


@contextmanager
def _opened(source: AudioSource) -> Iterator[tuple[sf.SoundFile, str]]:
    """Open a path or a file object as libsndfile file, with a name for messages."""
    handle: str | IO[bytes]
    if isinstance(source, str | PathLike):
        name = str(source)
        path = Path(source)
        if not path.exists():
            raise AudioError(f"{name}: no such file; expected the path of an audio file ({_FORMATS})")
        if path.is_dir():
            raise AudioError(f"{name}: a directory, expected an audio file ({_FORMATS})")
        if path.is_file() and path.stat().st_size == 0:
            raise AudioError(f"{name}: 0 bytes, expected an audio file ({_FORMATS}); copy or record it again")
        handle = name
    else:
        name = str(getattr(source, "name", "<stream>"))
        handle = source if source.seekable() else io.BytesIO(source.read())
    try:
        file = sf.SoundFile(handle)
    except (sf.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise AudioError(f"{name}: not readable audio ({error}); expected {_FORMATS}, convert it first") from error
    with file:
        yield file, name
