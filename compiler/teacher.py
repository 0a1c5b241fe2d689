"""The original at 30 s: what it says (tokens), and what it computes on the way (the student's targets).

    utterance -> mel padded to 30 s -> encoded frames of the spoken part, tokens, hidden states of every token

The logits are not kept: hidden (n, n_text_state) @ token embedding gives them back, and the embedding is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from whisper_normalizer.english import EnglishTextNormalizer

from whisperfold.compiler.utterances import Utterance
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import KV, Whisper
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.mel import log_mel

N_SAMPLES = 30 * SAMPLE_RATE
FRAMES_PER_S = 50
"""Encoder frames per second."""
BATCH = 8


@dataclass(frozen=True)
class Lesson:
    """What the student learns from one utterance."""

    utterance: Utterance
    samples: np.ndarray
    """float32 (n_samples,), 16 kHz."""
    encoded: Tensor
    """float16 (T, n_audio_state): the original's encoder output over the spoken part, computed at 30 s."""
    sequences: list[tuple[Tensor, Tensor]]
    """(tokens int64 (n + 1,), hidden float16 (n, n_text_state)), plain and with timestamps."""


def prompt(tokens: dict[str, Any], language: str = "en", timestamps: bool = False) -> list[int]:
    """Return the tokens before the text: start, for multilingual models language and task, no-timestamps."""
    start = [tokens["sot"]]
    if tokens["multilingual"]:
        start += [tokens["languages"][language], tokens["transcribe"]]
    return start if timestamps else [*start, tokens["no_timestamps"]]


@torch.no_grad()
def greedy(model: Whisper, encoded: Tensor, tokens: dict[str, Any], language: str = "en") -> list[list[int]]:
    """Return the greedy text tokens of each row of encoded (batch, T, n_audio_state), Whisper's filters applied."""
    decoder, start = model.decoder, prompt(tokens, language)
    banned = torch.zeros(model.dims.n_vocab)
    banned[tokens["suppress"]] = float("-inf")
    banned[tokens["timestamp_begin"] :] = float("-inf")
    first = banned.clone()
    first[tokens["suppress_begin"]] = float("-inf")
    cross_kv = decoder.cross_kv(encoded)
    step = torch.tensor([start] * len(encoded))
    past: list[KV] | None = None
    texts: list[list[int]] = [[] for _ in encoded]
    open_rows = set(range(len(encoded)))
    for n in range(model.dims.n_text_ctx // 2):
        hidden, past = decoder(step, cross_kv, past)
        best = (decoder.logits(hidden[:, -1]) + (first if n == 0 else banned)).argmax(-1)
        for row in list(open_rows):
            if best[row] == tokens["eot"]:
                open_rows.remove(row)
            else:
                texts[row].append(int(best[row]))
        if not open_rows:
            break
        step = best[:, None]
    return texts


def mel_window(samples: np.ndarray, n_samples: int, n_mels: int) -> Tensor:
    """Return the log-mel (n_mels, frames) of samples cut or padded with zeros to n_samples."""
    padded = np.zeros(n_samples, np.float32)
    padded[: len(samples)] = samples[:n_samples]
    return torch.from_numpy(log_mel(padded, n_mels))


@torch.no_grad()
def teach(
    checkpoint: Checkpoint,
    utterances: list[Utterance],
    path: Path,
    *,
    max_teacher_wer: float = 0.4,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Run the original over the utterances and write its lessons to path.

    An utterance with a transcript from which the original strays by more than max_teacher_wer is left out.

    Returns:
        Counts: utterances, kept, seconds.
    """
    model = Whisper.from_state(checkpoint.dims, checkpoint.state)
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    normalise = EnglishTextNormalizer()
    tensors: dict[str, Tensor] = {}
    seconds = 0.0
    for begin in range(0, len(utterances), BATCH):
        batch = utterances[begin : begin + BATCH]
        audio = [utterance.load(seed + begin + i) for i, utterance in enumerate(batch)]
        mel = torch.stack([mel_window(samples, N_SAMPLES, checkpoint.dims.n_mels) for samples in audio])
        encoded = model.encoder(mel)
        texts = greedy(model, encoded, checkpoint.tokens)
        for i, (utterance, samples, text) in enumerate(zip(batch, audio, texts, strict=True)):
            advance()
            hypothesis = normalise(tokenizer.decode(text, skip_special_tokens=True))
            reference = normalise(utterance.text) if utterance.text else ""
            if not text or (reference and jiwer.wer(reference, hypothesis) > max_teacher_wer):
                continue
            end = checkpoint.tokens["timestamp_begin"] + round(len(samples) / SAMPLE_RATE * FRAMES_PER_S)
            plain = [*prompt(checkpoint.tokens), *text, checkpoint.tokens["eot"]]
            timed = [*prompt(checkpoint.tokens, timestamps=True), checkpoint.tokens["timestamp_begin"], *text, end]
            cross_kv = model.decoder.cross_kv(encoded[i : i + 1])
            for kind, sequence in (("plain", plain), ("timed", [*timed, checkpoint.tokens["eot"]])):
                ids = torch.tensor(sequence[: checkpoint.dims.n_text_ctx])
                hidden, _ = model.decoder(ids[None, :-1], cross_kv)
                tensors[f"{begin + i}.{kind}.tokens"] = ids
                tensors[f"{begin + i}.{kind}.hidden"] = hidden[0].half()
            n_frames = min(encoded.shape[1], int(np.ceil(len(samples) / SAMPLE_RATE * FRAMES_PER_S)))
            tensors[f"{begin + i}.encoded"] = encoded[i, :n_frames].half().clone()
            seconds += len(samples) / SAMPLE_RATE
    save_file(tensors, path)
    kept = sum(name.endswith(".encoded") for name in tensors)
    return {"utterances": len(utterances), "kept": kept, "seconds": round(seconds)}


def read_lessons(path: Path, utterances: list[Utterance], seed: int = 0) -> list[Lesson]:
    """Read what `teach` wrote, with the audio (seed must be the same)."""
    lessons = []
    with safe_open(path, "pt") as file:
        for i in _kept(file.keys()):
            sequences = [
                (file.get_tensor(f"{i}.{kind}.tokens"), file.get_tensor(f"{i}.{kind}.hidden"))
                for kind in ("plain", "timed")
            ]
            utterance = utterances[i]
            lessons.append(Lesson(utterance, utterance.load(seed + i), file.get_tensor(f"{i}.encoded"), sequences))
    return lessons


def _kept(names: Iterable[str]) -> list[int]:
    return sorted(int(name.split(".")[0]) for name in names if name.endswith(".encoded"))
