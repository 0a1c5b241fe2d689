"""The original at 30 s: what it says (tokens), and what it computes on the way (the student's targets).

    utterance -> mel padded to 30 s -> encoded frames of the spoken part, tokens, hidden states of every token

The logits are not kept: hidden (n, n_text_state) @ token embedding gives them back, and the embedding is frozen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
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
PART = 64
"""Utterances that are written at a time; a killed run goes on after the last whole part."""


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


def teach(
    checkpoint: Checkpoint,
    utterances: list[Utterance],
    path: Path,
    *,
    key: str = "",
    max_teacher_wer: float = 0.4,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Run the original over the utterances and write its lessons to path, going on from the parts of this key.

    An utterance with a transcript from which the original strays by more than max_teacher_wer is left out.

    Returns:
        Counts: utterances, kept, seconds.
    """
    model = Whisper.from_state(checkpoint.dims, checkpoint.state)
    parts = []
    for begin in range(0, len(utterances), PART):
        part = path.with_name(f"{path.stem}-{key}-{begin}.part")
        parts.append(part)
        chosen = utterances[begin : begin + PART]
        if part.exists():
            for _ in chosen:
                advance()
            continue
        tensors = _teach_part(model, checkpoint, chosen, begin, max_teacher_wer, seed, advance)
        save_file(tensors, part.with_suffix(".tmp"))
        os.replace(part.with_suffix(".tmp"), part)
    tensors = {name: tensor for part in parts for name, tensor in load_file(part).items()}
    save_file(tensors, path)
    for part in parts:
        part.unlink()
    seconds = sum(len(t) for name, t in tensors.items() if name.endswith(".encoded")) / FRAMES_PER_S
    return {"utterances": len(utterances), "kept": len(_kept(tensors)), "seconds": round(seconds)}


@torch.no_grad()
def _teach_part(
    model: Whisper,
    checkpoint: Checkpoint,
    utterances: list[Utterance],
    first: int,
    max_teacher_wer: float,
    seed: int,
    advance: Callable[[], None],
) -> dict[str, Tensor]:
    """Return the tensors of utterances numbered from first on."""
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    normalise = EnglishTextNormalizer()
    tensors: dict[str, Tensor] = {}
    for begin in range(0, len(utterances), BATCH):
        batch = utterances[begin : begin + BATCH]
        audio = [utterance.load(seed + first + begin + i) for i, utterance in enumerate(batch)]
        mel = torch.stack([mel_window(samples, N_SAMPLES, checkpoint.dims.n_mels) for samples in audio])
        encoded = model.encoder(mel)
        texts = greedy(model, encoded, checkpoint.tokens)
        for i, (utterance, samples, text) in enumerate(zip(batch, audio, texts, strict=True)):
            advance()
            hypothesis = normalise(tokenizer.decode(text, skip_special_tokens=True))
            reference = normalise(utterance.text) if utterance.text else ""
            if not text or strays(hypothesis, reference, max_teacher_wer, is_cut_short=utterance.is_cut_short):
                continue
            name = str(first + begin + i)
            for kind, ids in _sequences(checkpoint, text, len(samples) / SAMPLE_RATE).items():
                hidden, _ = model.decoder(ids[None, :-1], model.decoder.cross_kv(encoded[i : i + 1]))
                tensors[f"{name}.{kind}.tokens"] = ids
                tensors[f"{name}.{kind}.hidden"] = hidden[0].half()
            n_frames = min(encoded.shape[1], math.ceil(len(samples) / SAMPLE_RATE * FRAMES_PER_S))
            tensors[f"{name}.encoded"] = encoded[i, :n_frames].half().clone()
    return tensors


def strays(hypothesis: str, reference: str, max_wer: float, *, is_cut_short: bool) -> bool:
    """Tell whether a text is too far from its reference; where it was cut short, from every beginning of it."""
    words = reference.split()
    if not words:
        return False
    shortest = 1 if is_cut_short else len(words)
    beginnings = (" ".join(words[:n]) for n in range(shortest, len(words) + 1))
    return min(jiwer.wer(beginning, hypothesis) for beginning in beginnings) > max_wer


def _sequences(checkpoint: Checkpoint, text: list[int], duration_s: float) -> dict[str, Tensor]:
    """Return prompt + text + end of text, plain and between timestamps, cut to the model's context."""
    tokens, n = checkpoint.tokens, checkpoint.dims.n_text_ctx
    begin = tokens["timestamp_begin"]
    timed = [
        *prompt(tokens, timestamps=True),
        begin,
        *text,
        begin + round(duration_s * FRAMES_PER_S),
        tokens["eot"],
    ]
    plain = [*prompt(tokens), *text, tokens["eot"]]
    return {"plain": torch.tensor(plain[:n]), "timed": torch.tensor(timed[:n])}


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
