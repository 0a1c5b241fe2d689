"""float32 samples -> log-mel frames; whole clip and incremental give the same numbers.

    frame t = samples[160 t - 200 : 160 t + 200]          (mirrored at both ends)
    power   = |rfft(hann * frame)|^2                      (201,)
    mel     = log10(max(filters @ power, 1e-10))          (n_mels,)
    out     = (max(mel, mel.max() - 8) + 4) / 4           (the maximum is over the whole window)

The first three lines know nothing of the rest of the window, so `MelStream` computes them once per
frame; the last one is repeated whenever the window has grown.

Source: openai/whisper audio.py. The filters are the Slaney mel scale with Slaney normalisation that
librosa.filters.mel makes, computed here in float64 at first use.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import AudioError

HOP_LENGTH = 160
"""Samples between frames: 10 ms."""
N_FFT = 400
"""Samples in a frame: 25 ms."""
_BATCH_FRAMES = 1024
"""Frames per FFT batch; keeps the intermediate arrays (1.6 kB a frame each) small."""


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney: linear below 1 kHz (200/3 Hz a mel), logarithmic above (27 mels per factor 6.4)."""
    linear = hz * 3.0 / 200.0
    return np.where(hz < 1000.0, linear, 15.0 + np.log(np.maximum(hz, 1e-9) / 1000.0) * 27.0 / np.log(6.4))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `_hz_to_mel`."""
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))


@lru_cache(maxsize=4)
def mel_filters(n_mels: int = 80) -> np.ndarray:
    """Return the triangular mel filterbank, float32 (n_mels, N_FFT // 2 + 1), 0 to 8000 Hz.

    Raises:
        AudioError: n_mels is not positive.
    """
    if n_mels < 1:
        raise AudioError(f"n_mels={n_mels}: expected 80 (Whisper up to large-v2) or 128 (large-v3)")
    bins_hz = np.fft.rfftfreq(N_FFT, 1.0 / SAMPLE_RATE)
    top_mel = _hz_to_mel(np.array(SAMPLE_RATE / 2.0))
    edges_hz = _mel_to_hz(np.linspace(0.0, top_mel, n_mels + 2))
    slope_hz = np.diff(edges_hz)
    distance = edges_hz[:, None] - bins_hz[None, :]
    rising = -distance[:-2] / slope_hz[:-1, None]
    falling = distance[2:] / slope_hz[1:, None]
    area = 2.0 / (edges_hz[2:] - edges_hz[:-2])
    filters = (np.maximum(0.0, np.minimum(rising, falling)) * area[:, None]).astype(np.float32)
    filters.setflags(write=False)
    return filters


@lru_cache(maxsize=4)
def _bands(n_mels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The filterbank without its zeros (391 of 16,080 weights are left of 80 filters).

    Returns:
        bins int64 (n,), weights float32 (n, 1), and where each filter starts among them, int64 (n_mels,).
    """
    rows = [np.flatnonzero(row) if row.any() else np.zeros(1, np.int64) for row in mel_filters(n_mels)]
    bins = np.concatenate(rows)
    weights = np.concatenate([mel_filters(n_mels)[i, row] for i, row in enumerate(rows)])
    starts = np.cumsum([0, *(row.size for row in rows[:-1])])
    return bins, weights[:, None], starts


@lru_cache(maxsize=1)
def _hann() -> np.ndarray:
    """Periodic Hann window, float32 (N_FFT,)."""
    window = (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
    window.setflags(write=False)
    return window


def _mirror(samples: np.ndarray, left: int, right: int) -> np.ndarray:
    """Reflect-pad like torch.stft(center=True); clips shorter than the padding reflect repeatedly."""
    return np.pad(samples, (left, right), mode="reflect") if samples.size else samples


def log10_frames(padded: np.ndarray, n_frames: int, n_mels: int) -> np.ndarray:
    """Return the un-normalised log10 mel energies of n_frames frames.

    Args:
        padded: float32 (n,), n >= (n_frames - 1) * HOP_LENGTH + N_FFT; frame t starts at t * HOP_LENGTH.
        n_frames: how many frames to compute.
        n_mels: rows of the filterbank.

    Returns:
        float32 (n_frames, n_mels), not below -10.
    """
    out = np.empty((n_frames, n_mels), np.float32)
    if n_frames == 0:
        return out
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH]
    bins, weights, starts = _bands(n_mels)
    for first in range(0, n_frames, _BATCH_FRAMES):
        last = min(first + _BATCH_FRAMES, n_frames)
        spectrum = np.fft.rfft(frames[first:last] * _hann(), axis=-1)
        power = spectrum.real**2 + spectrum.imag**2
        # No matrix product: BLAS threads spin for tens of ms after one, and the encoder took 45 ms instead of 26.
        out[first:last] = np.add.reduceat(power.T[bins] * weights, starts, axis=0).T
    np.maximum(out, 1e-10, out=out)
    return np.log10(out, out=out)


def normalise(frames: np.ndarray) -> np.ndarray:
    """Return log10 frames (n_frames, n_mels) as Whisper's input, float32 (n_mels, n_frames), contiguous."""
    if frames.shape[0] == 0:
        return np.empty((frames.shape[1], 0), np.float32)
    out = frames.T.copy(order="C")
    np.maximum(out, out.max() - 8.0, out=out)
    out += 4.0
    out *= 0.25
    return out


def log_mel(samples: np.ndarray, n_mels: int = 80) -> np.ndarray:
    """Return the log-mel spectrogram that Whisper was trained on.

    Args:
        samples: float32 (n_samples,), mono, 16 kHz, in [-1, 1]; the caller pads (tail or 30 s) with zeros.
        n_mels: rows of the filterbank, 80 or 128.

    Returns:
        float32 (n_mels, n_frames), one frame per 10 ms, n_frames = n_samples // HOP_LENGTH.

    Raises:
        AudioError: samples is not one-dimensional float32.

    Source: openai/whisper audio.py; differs by at most 5e-5 (tests/runtime/test_mel.py).
    """
    _check(samples)
    n_frames = samples.size // HOP_LENGTH
    padded = _mirror(samples, N_FFT // 2, N_FFT // 2)
    return normalise(log10_frames(padded, n_frames, n_mels))


class MelStream:
    """Log-mel of audio that is still arriving: each frame is computed once, when its samples are there.

    `window()` equals `log_mel` of everything pushed so far plus the tail of zeros.
    """

    def __init__(self, n_mels: int = 80) -> None:
        self.n_mels = n_mels
        self.n_samples = 0
        self._frames = np.empty((256, n_mels), np.float32)
        self._n_frames = 0
        self._rest = np.empty(0, np.float32)  # samples from _rest_start on, mirrored on the left at first
        self._started = False

    @property
    def n_frames(self) -> int:
        """Frames that no later sample can change."""
        return self._n_frames

    def push(self, samples: np.ndarray) -> int:
        """Take float32 (n,) samples at 16 kHz; return how many frames became final.

        Raises:
            AudioError: samples is not one-dimensional float32.
        """
        _check(samples)
        self.n_samples += samples.size
        self._rest = np.concatenate([self._rest, samples])
        if not self._started:
            if self._rest.size <= N_FFT // 2:  # the mirror needs samples 1..200
                return 0
            self._rest = _mirror(self._rest, N_FFT // 2, 0)
            self._started = True
        n_new = max(0, (self._rest.size - N_FFT) // HOP_LENGTH + 1)
        if n_new:
            self._append(log10_frames(self._rest, n_new, self.n_mels))
            self._rest = self._rest[n_new * HOP_LENGTH :].copy()
        return n_new

    def window(self, tail_samples: int = 0) -> np.ndarray:
        """Return float32 (n_mels, (n_samples + tail_samples) // HOP_LENGTH), as `log_mel` would."""
        if not self._started:
            return log_mel(np.concatenate([self._rest, np.zeros(tail_samples, np.float32)]), self.n_mels)
        n_missing = (self.n_samples + tail_samples) // HOP_LENGTH - self._n_frames
        if n_missing <= 0:
            return normalise(self._frames[: (self.n_samples + tail_samples) // HOP_LENGTH])
        rest = np.concatenate([self._rest, np.zeros(tail_samples, np.float32)])
        last = log10_frames(_mirror(rest, 0, N_FFT // 2), n_missing, self.n_mels)
        return normalise(np.concatenate([self._frames[: self._n_frames], last]))

    def _append(self, frames: np.ndarray) -> None:
        """Add final frames, doubling the store when it is full."""
        n_total = self._n_frames + frames.shape[0]
        if n_total > self._frames.shape[0]:
            grown = np.empty((max(n_total, 2 * self._frames.shape[0]), self.n_mels), np.float32)
            grown[: self._n_frames] = self._frames[: self._n_frames]
            self._frames = grown
        self._frames[self._n_frames : n_total] = frames
        self._n_frames = n_total


def _check(samples: np.ndarray) -> None:
    """One-dimensional float32, or an AudioError that says how to get there."""
    if samples.ndim != 1 or samples.dtype != np.float32:
        raise AudioError(
            f"samples: {samples.dtype} {samples.shape}, expected float32 (n_samples,) mono at 16 kHz; "
            "convert int16 with samples.astype(np.float32) / 32768"
        )
