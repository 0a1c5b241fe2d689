"""Speech or silence, with hysteresis: Silero VAD 6.2 in onnxruntime (silero/, MIT; from the silero-vad wheel 6.2.3).

    512 samples (32 ms) -> probability of speech -> on above 0.5, off below 0.35
    on for 0.25 s -> "start" (dated back); off for 0.3 s -> "end" (dated back)

0.25 s because 8 chunks in a row never happen on the noise clips (at most 3 do), while the shortest of 270
development utterances has 19.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import AudioError, ConfigError

CHUNK_SAMPLES = 512
"""The model's step, 32 ms."""
CHUNK_S = CHUNK_SAMPLES / SAMPLE_RATE
CONTEXT_SAMPLES = 64
"""Of the chunk before, which the model sees again."""
SILENCE_PEAK = 3e-4
"""Peak below which there is nothing to hear: 10 steps of 16-bit PCM, -70 dBFS."""


_MODEL = Path(__file__).with_name("silero") / "silero_vad_16k_sequence.onnx"
_STEP_SAMPLES = 16 * CHUNK_SAMPLES
"""`has_speech` looks for a start this often, 0.5 s."""


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

    All chunks of a push are one run, and the numbers do not depend on how the stream was divided. A chunk below
    the energy gate is silence without asking the model: digital silence costs nothing.
    """

    def __init__(self) -> None:
        self._session = _silero()
        self._heard: np.ndarray
        self._h: np.ndarray
        self._c: np.ndarray
        self.reset()

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take float32 (n,) samples at 16 kHz; return float32 (n_chunks,), one per completed chunk."""
        heard = np.concatenate([self._heard, samples])
        n_chunks = (heard.size - CONTEXT_SAMPLES) // CHUNK_SAMPLES
        self._heard = heard[n_chunks * CHUNK_SAMPLES :].copy()
        probabilities = np.zeros(n_chunks, np.float32)
        if n_chunks == 0:
            return probabilities
        chunks = np.lib.stride_tricks.sliding_window_view(heard, CONTEXT_SAMPLES + CHUNK_SAMPLES)[::CHUNK_SAMPLES]
        loud = np.abs(chunks[:, CONTEXT_SAMPLES:]).max(axis=1) >= SILENCE_PEAK
        if loud.any():
            feed = {"input": chunks[loud], "h": self._h, "c": self._c}
            probabilities[loud], self._h, self._c = self._session.run(None, feed)
        return probabilities

    def reset(self) -> None:
        """Forget the stream."""
        self._heard = np.zeros(CONTEXT_SAMPLES, np.float32)
        self._h = np.zeros((1, 1, 128), np.float32)
        self._c = np.zeros((1, 1, 128), np.float32)


@lru_cache(maxsize=1)
def _silero() -> ort.InferenceSession:
    """The model, loaded once: it holds no stream's state."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    return ort.InferenceSession(str(_MODEL), options, providers=["CPUExecutionProvider"])


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
    def is_voiced(self) -> bool:
        """Whether the last chunk sounded like speech; `in_speech` wants more of them in a row."""
        return self._is_on

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
            event = self._advance(float(probability))
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
    """Whether a clip holds any speech; stops at the first."""
    if is_silent(samples):
        return False
    detector = VoiceDetector(options)
    return any(detector.push(samples[first : first + _STEP_SAMPLES]) for first in range(0, samples.size, _STEP_SAMPLES))


def is_silent(samples: np.ndarray) -> bool:
    """Whether no sample rises above the energy gate."""
    return samples.size == 0 or max(float(samples.max()), -float(samples.min())) < SILENCE_PEAK
