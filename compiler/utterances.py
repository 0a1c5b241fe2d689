"""Manifest items -> training utterances: clips of one speaker joined, some cut short; noise; clips without speech.

A stream hears every window before its last word is over. What is cut short here teaches the compact model to end there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from whisperfold.compiler.manifests import Item
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.augment import coloured_noise

MAX_S = 28.0
"""Longer utterances are left out: with a tail they must fit Whisper's 30 s."""
GAP_S = (0.15, 0.6)
"""Silence between joined clips, seconds."""
CUT_SHORT = (0.2, 0.95)
"""What is left of an utterance that is cut short, of its length."""
MIN_CUT_S = 1.0


@dataclass(frozen=True)
class Utterance:
    """One or more clips of one speaker, heard as one."""

    items: tuple[Item, ...]
    duration_s: float
    is_cut_short: bool = False
    """It ends at duration_s, in the middle of a word or not."""

    @property
    def text(self) -> str | None:
        """The transcript, where every clip has one; of all that is said, where the utterance is cut short too."""
        texts = [item.text for item in self.items]
        return None if None in texts else " ".join(t for t in texts if t)

    def load(self, seed: int) -> np.ndarray:
        """Return float32 (n_samples,); seed fixes the gaps between joined clips."""
        rng = np.random.default_rng(seed)
        parts: list[np.ndarray] = []
        for item in self.items:
            if parts:
                parts.append(np.zeros(int(rng.uniform(*GAP_S) * SAMPLE_RATE), np.float32))
            parts.append(item.load())
        samples = np.concatenate(parts)
        return samples[: round(self.duration_s * SAMPLE_RATE)] if self.is_cut_short else samples


def join_clips(items: list[Item], join_s: tuple[float, float], seed: int) -> list[Utterance]:
    """Join neighbouring clips of one speaker until a length drawn from join_s (seconds) is reached.

    Clips without a speaker, and those that are long enough alone, stay alone.
    """
    rng = np.random.default_rng(seed)
    utterances: list[Utterance] = []
    group: list[Item] = []
    total_s, goal_s = 0.0, rng.uniform(*join_s)

    def close() -> None:
        nonlocal group, total_s, goal_s
        if group:
            utterances.append(Utterance(tuple(group), total_s))
        group, total_s, goal_s = [], 0.0, rng.uniform(*join_s)

    for item in items:
        length_s = item.duration_s or len(item.load()) / SAMPLE_RATE
        if length_s > MAX_S:
            continue
        if group and (item.speaker is None or item.speaker != group[0].speaker or total_s + length_s > MAX_S - 1):
            close()
        group.append(item)
        total_s += length_s + (GAP_S[1] if len(group) > 1 else 0)
        if total_s >= goal_s or item.speaker is None:
            close()
    close()
    return utterances


def cut_short(utterances: list[Utterance], share: float, seed: int) -> list[Utterance]:
    """Return the utterances, a share of them ending somewhere before their end."""
    rng = np.random.default_rng(seed)

    def cut(utterance: Utterance) -> Utterance:
        length_s = max(MIN_CUT_S, utterance.duration_s * rng.uniform(*CUT_SHORT))
        return replace(utterance, duration_s=length_s, is_cut_short=True)

    return [cut(utterance) if rng.random() < share else utterance for utterance in utterances]


def add_noise(rng: np.random.Generator, samples: np.ndarray, snr_db: tuple[float, float]) -> np.ndarray:
    """Return samples plus coloured noise at a signal-to-noise ratio drawn from snr_db."""
    level = samples.std() * 10 ** (-rng.uniform(*snr_db) / 20)
    noisy = samples + level * coloured_noise(rng, samples.size, rng.uniform(0, 2))
    return np.clip(noisy, -1, 1).astype(np.float32)


def non_speech(rng: np.random.Generator) -> np.ndarray:
    """Return 1 to 10 s without speech: silence, coloured noise, mains hum, tones, clicks; at any level."""
    n_samples = int(rng.uniform(1, 10) * SAMPLE_RATE)
    level = 10 ** (rng.uniform(-70, -10) / 20)
    time_s = np.arange(n_samples) / SAMPLE_RATE
    kind = rng.integers(5)
    if kind == 0:
        return np.zeros(n_samples, np.float32)
    if kind == 1:
        mains = rng.choice([50.0, 60.0])
        hum = sum(np.sin(2 * np.pi * mains * k * time_s) / k for k in range(1, 2 + rng.integers(8)))
        return (level * hum).astype(np.float32)
    if kind == 2:
        swing = 1 + rng.uniform(0, 0.9) * np.sin(2 * np.pi * rng.uniform(0.1, 8) * time_s)
        tone = np.sin(2 * np.pi * rng.uniform(80, 4000) * time_s) * swing
        return np.clip(level * tone, -1, 1).astype(np.float32)
    if kind == 3:
        clicks = np.zeros(n_samples, np.float32)
        clicks[rng.integers(0, n_samples, 1 + rng.integers(30))] = rng.uniform(0.1, 1)
        return clicks + level * 0.1 * coloured_noise(rng, n_samples, 1.0)
    return np.clip(level * coloured_noise(rng, n_samples, rng.uniform(0, 2.5)), -1, 1)
