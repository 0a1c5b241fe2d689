"""A recording and its text -> what is wrong with it, one line each, for the person who made it.

    level   of the speech, where the voice detector hears it        too quiet, clipped, drowned in noise
    length  against the bundle's window                             too short, too long
    text    what the model hears against what should be there       someone else's text

Accents make errors, so a reading is refused only when half of its letters differ, in order; the A/B check has the
last word anyway.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.error_rate import normalised_words
from whisperfold.runtime.level import CLIPPED, level_dbfs
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.vad import CHUNK_SAMPLES, SpeechProbability

MIN_S = 0.8
MIN_SPEECH_S = 0.3
QUIET_DBFS = -50.0
CLIPPED_SHARE = 0.005
MIN_SNR_DB = 6.0
NOISY_SNR_DB = 15.0
MIN_LIKENESS = 0.5
"""Share of letters in common, in order, below which the text is not what is said."""


@dataclass(frozen=True)
class Check:
    """What a look at a recording has found."""

    problem: str
    """Why it cannot be used, one line; empty when it can."""
    warning: str
    """What could be better."""
    snr_db: float
    likeness: float
    """Of the text and what the model hears, 0 to 1; 1 where it was not compared."""
    heard: str = ""


def check_sound(samples: np.ndarray, max_s: float) -> Check:
    """Look at level, noise and length of float32 (n,) samples at 16 kHz; max_s is the longest that can be used."""
    duration_s = samples.size / SAMPLE_RATE
    if not MIN_S <= duration_s <= max_s:
        return _refused(f"{duration_s:.1f} s long, expected {MIN_S} to {max_s:.0f} s")
    n_chunks = samples.size // CHUNK_SAMPLES
    chunks = samples[: n_chunks * CHUNK_SAMPLES].reshape(n_chunks, CHUNK_SAMPLES)
    voiced = SpeechProbability().push(samples)[:n_chunks] >= 0.5
    if np.count_nonzero(voiced) * CHUNK_SAMPLES < MIN_SPEECH_S * SAMPLE_RATE:
        return _refused("no speech in it: silence or noise")
    speech_dbfs = level_dbfs(chunks[voiced])
    if speech_dbfs < QUIET_DBFS:
        return _refused(f"too quiet ({speech_dbfs:.0f} dBFS): speak up, or turn up the microphone")
    if float(np.mean(np.abs(samples) >= CLIPPED)) > CLIPPED_SHARE:
        return _refused("clipped: speak from further away, or turn down the microphone")
    snr_db = speech_dbfs - _noise_dbfs(chunks, voiced)
    if snr_db < MIN_SNR_DB:
        return _refused(f"too noisy (speech only {snr_db:.0f} dB above the noise): find a quieter place")
    warning = f"noisy: speech is {snr_db:.0f} dB above the noise" if snr_db < NOISY_SNR_DB else ""
    return Check("", warning, snr_db, 1.0)


def check_recording(samples: np.ndarray, text: str, transcriber: Transcriber, language: str | None = None) -> Check:
    """Look at the sound, and at whether the text is what is said.

    Args:
        samples: float32 (n,), mono, 16 kHz.
        text: what should be said.
        transcriber: hears what is said.
        language: of multilingual bundles.
    """
    sound = check_sound(samples, transcriber.bundle.window.max_s)
    if sound.problem:
        return sound
    if not normalised_words(text):
        return _refused("its text has no words")
    heard = transcriber.transcribe(samples, language=language, beam_size=1).text
    close = likeness(text, heard)
    if close < MIN_LIKENESS:
        return Check("this is not what the text says: read it again", sound.warning, sound.snr_db, close, heard)
    return Check("", sound.warning, sound.snr_db, close, heard)


def likeness(text: str, heard: str) -> float:
    """Return the share of letters that two texts have in common, in order, 0 to 1."""
    a, b = ("".join(normalised_words(part)) for part in (text, heard))
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def _refused(problem: str) -> Check:
    """A check that ends here."""
    return Check(problem, "", 0.0, 1.0)


def _noise_dbfs(chunks: np.ndarray, voiced: np.ndarray) -> float:
    """Level of what is not speech: the chunks away from it, or the quietest tenth if that is less.

    A recording that begins in the middle of a word is speech before the detector hears it.
    """
    near = np.convolve(voiced, np.ones(5), mode="same") > 0
    power = np.mean(chunks**2, axis=1)
    quietest = chunks[power <= np.quantile(power, 0.1)]
    away = chunks[~near]
    return min(level_dbfs(quietest), level_dbfs(away)) if len(away) >= 4 else level_dbfs(quietest)
