"""Raw PCM of a client, in pieces of any length -> mono float32 at 16 kHz.

    bytes, e.g. 48 kHz, 3 bytes, 2 channels -> float32 / full scale -> mean of the channels -> soxr -> float32 (n,)

Little endian; one byte is unsigned (as in WAV), more are signed. A frame cut between two pieces is put together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import AudioError

_RANGES = {"rate_hz": (4_000, 384_000), "width_bytes": (1, 4), "channels": (1, 32)}


@dataclass(frozen=True)
class PcmFormat:
    """How a client's bytes are to be read."""

    rate_hz: int
    width_bytes: int
    """Bytes of one sample of one channel, 1 to 4."""
    channels: int

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise AudioError(f"PCM {name}={str(value)[:20]}: expected a whole number from {low} to {high}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.width_bytes * self.channels


class PcmStream:
    """Converts one stream; keeps cut frames and the resampler's state."""

    def __init__(self, pcm_format: PcmFormat) -> None:
        self.format = pcm_format
        self._rest = b""
        self._resampler = (
            None
            if pcm_format.rate_hz == SAMPLE_RATE
            else soxr.ResampleStream(pcm_format.rate_hz, SAMPLE_RATE, 1, dtype="float32")
        )

    def convert(self, data: bytes) -> np.ndarray:
        """Return what these bytes add, float32 (n,) at 16 kHz; n may be 0."""
        data = self._rest + data
        n_bytes = len(data) - len(data) % self.format.frame_bytes
        self._rest = data[n_bytes:]
        mono = _to_float(data[:n_bytes], self.format.width_bytes).reshape(-1, self.format.channels)
        return self._resampled(mono.mean(axis=1, dtype=np.float32), is_last=False)

    def finish(self) -> np.ndarray:
        """Return what the resampler still holds, float32 (n,); a cut frame at the end is dropped."""
        return self._resampled(np.zeros(0, np.float32), is_last=True)

    def _resampled(self, mono: np.ndarray, is_last: bool) -> np.ndarray:
        """Mono at 16 kHz."""
        if self._resampler is None:
            return mono
        samples: np.ndarray = self._resampler.resample_chunk(mono, last=is_last)
        return samples


def _to_float(data: bytes, width_bytes: int) -> np.ndarray:
    """Interleaved integers as float32 in [-1, 1)."""
    if width_bytes == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width_bytes == 3:
        high = np.zeros((len(data) // 3, 4), np.uint8)  # the low byte stays 0: 24 bits as the top of 32
        high[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width_bytes = high.tobytes(), 4
    return np.frombuffer(data, f"<i{width_bytes}").astype(np.float32) / np.float32(2 ** (8 * width_bytes - 1))
