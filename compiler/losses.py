"""What the student is judged by: the original's words and frames, a person's transcripts, and silence.

distillation   mean KL(teacher || student) per token + relative squared distance of the encoder's frames
transcripts    label-smoothed cross-entropy of written-down words
non-speech     no-speech after the start token, end of text after the prompt
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whisperfold.compiler.calibrate import short_window
from whisperfold.compiler.teacher import N_SAMPLES, Lesson, mel_window, prompt
from whisperfold.compiler.utterances import add_noise, non_speech
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.audio import SAMPLE_RATE

NOISE_SHARE = 0.35
"""Share of lessons heard with noise; the teacher always heard the clean ones."""
SNR_DB = (8.0, 35.0)
TIMED_SHARE = 0.25
"""Share of lessons between timestamps."""


@dataclass(frozen=True)
class Batch:
    """Padded inputs of one step."""

    mel: Tensor
    """float32 (batch, n_mels, frames)."""
    tokens: Tensor
    """int64 (batch, n), padded with end of text."""
    real: Tensor
    """bool (batch, n): the positions that count."""


def make_batch(
    audio: list[np.ndarray], sequences: list[Tensor], n_mels: int, eot: int, tail_s: float, full: bool
) -> Batch:
    """Pad audio to its longest clip and a tail (30 s where full), sequences to the longest; the last is a label."""
    longest_s = max(len(samples) for samples in audio) / SAMPLE_RATE
    n_samples = N_SAMPLES if full else short_window(longest_s, tail_s)
    mel = torch.stack([mel_window(samples, n_samples, n_mels) for samples in audio])
    n = max(len(sequence) for sequence in sequences) - 1
    tokens = torch.full((len(sequences), n), eot)
    real = torch.zeros(len(sequences), n, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence) - 1] = sequence[:-1]
        real[row, : len(sequence) - 1] = True
    return Batch(mel, tokens, real)


def student_hidden(model: Whisper, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return encoded (batch, T, n_audio_state) and the hidden states of the real positions (N, n_text_state)."""
    encoded = model.encoder(batch.mel)
    return encoded, decoder_hidden(model, encoded, batch)


def decoder_hidden(model: Whisper, encoded: Tensor, batch: Batch) -> Tensor:
    """Return the hidden states (N, n_text_state) of the real positions, given encoded (batch, T, n_audio_state)."""
    hidden, _ = model.decoder(batch.tokens, model.decoder.cross_kv(encoded))
    return hidden[batch.real]


def heard(lessons: list[Lesson], rng: np.random.Generator) -> tuple[list[np.ndarray], list[bool]]:
    """Return the lessons' audio, some of it with noise, and which of them are written between timestamps."""
    audio = [
        add_noise(rng, lesson.samples, SNR_DB) if rng.random() < NOISE_SHARE else lesson.samples for lesson in lessons
    ]
    return audio, [bool(rng.random() < TIMED_SHARE) for _ in lessons]


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the log-probabilities (n, n_vocab) of logits, float32 whatever those are."""
    return logits.float().log_softmax(-1)


def mean_kl(expected: Tensor, found: Tensor) -> Tensor:
    """Return the mean KL(expected || found), nats, of log-probabilities (n, n_vocab)."""
    return (expected.exp() * (expected - found)).sum(-1).mean()


def distillation(
    model: Whisper,
    lessons: list[Lesson],
    rng: np.random.Generator,
    eot: int,
    tail_s: tuple[float, float],
    full: bool,
    embedding: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean KL per token and the relative distance of the encoder's frames for one batch of lessons.

    The original's logits are its hidden states times embedding (n_vocab, n_text_state); None is the model's own.
    """
    audio, timed = heard(lessons, rng)
    chosen = [lesson.sequences[kind] for lesson, kind in zip(lessons, timed, strict=True)]
    batch = make_batch(audio, [c[0] for c in chosen], model.dims.n_mels, eot, rng.uniform(*tail_s), full)
    encoded, hidden = student_hidden(model, batch)
    with torch.no_grad():
        table = model.decoder.token_embedding.weight if embedding is None else embedding
        expected = log_probabilities(torch.cat([c[1].float() for c in chosen]) @ table.T)
    found = log_probabilities(model.decoder.logits(hidden))
    return mean_kl(expected, found), _frame_distance(encoded, [lesson.encoded for lesson in lessons])


def _frame_distance(encoded: Tensor, expected: list[Tensor]) -> Tensor:
    """Return the squared distance over the spoken frames, relative to the teacher's own variance."""
    distance, scale = encoded.new_zeros(()), 0.0
    for row, frames in enumerate(expected):
        target = frames[: encoded.shape[1]].float()
        distance = distance + (encoded[row, : len(target)] - target).square().sum()
        scale += float((target - target.mean(0)).square().sum())
    return distance / scale


def transcripts(
    model: Whisper,
    audio: list[np.ndarray],
    sequences: list[Tensor],
    n_prompt: int,
    eot: int,
    tail_s: float,
    full: bool,
    smoothing: float = 0.1,
) -> Tensor:
    """Return the mean cross-entropy of sequences (prompt, text, eot); the prompt itself is not judged."""
    batch = make_batch(audio, sequences, model.dims.n_mels, eot, tail_s, full)
    _, hidden = student_hidden(model, batch)
    labels = torch.cat([sequence[1:] for sequence in sequences])
    judged = torch.cat([torch.arange(1, len(sequence)) >= n_prompt for sequence in sequences])
    return F.cross_entropy(model.decoder.logits(hidden[judged]), labels[judged], label_smoothing=smoothing)


def silence(model: Whisper, rng: np.random.Generator, tokens: dict[str, Any], n: int, full: bool) -> Tensor:
    """Return the cross-entropy of "no speech" and of an empty transcript on n made-up clips without speech."""
    start = prompt(tokens)
    sequence = torch.tensor([*start, tokens["eot"]])
    audio = [non_speech(rng) for _ in range(n)]
    batch = make_batch(audio, [sequence] * n, model.dims.n_mels, tokens["eot"], rng.uniform(0.2, 1.0), full)
    _, hidden = student_hidden(model, batch)
    logits = model.decoder.logits(hidden.unflatten(0, (n, len(start)))).float()
    first = F.cross_entropy(logits[:, 0], torch.full((n,), tokens["no_speech"]))
    return first + F.cross_entropy(logits[:, -1], torch.full((n,), tokens["eot"]))
