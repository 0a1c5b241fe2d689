"""Graphs against the torch model they came from: on the same speech, the same next-token distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch

from whisperfold.compiler.calibrate import window_of
from whisperfold.compiler.teacher import Lesson, mel_window
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import CompileError

TOLERANCE = 1e-3
"""Largest logit difference between torch and fp32 graphs."""


@dataclass(frozen=True)
class Parity:
    """How far graphs are from torch."""

    max_difference: float
    """Largest absolute difference of a logit."""
    kl: float
    """Mean KL(torch || graphs) per token, nats."""


def compare(model: Whisper, files: dict[str, bytes], lessons: list[Lesson], kind: str, tail_s: float) -> Parity:
    """Run both over the lessons' tokens, the graphs in one step from an empty past."""
    encoder, decoder = (ort.InferenceSession(files[f"{name}.onnx"]) for name in ("encoder", "decoder"))
    past = empty_past(decoder)
    cross_names = [output.name for output in encoder.get_outputs()]
    worst, total, n_tokens = 0.0, 0.0, 0
    for lesson in lessons:
        mel = mel_window(lesson.samples, window_of(lesson, kind, tail_s), model.dims.n_mels)[None]
        tokens = lesson.sequences[0][0][None, :-1]
        with torch.no_grad():
            expected = model(mel, tokens)[0]
        feed = dict(zip(cross_names, encoder.run(None, {"mel": mel.numpy()}), strict=True)) | past
        feed |= {"tokens": tokens.numpy(), "logit_positions": np.arange(tokens.shape[1])}
        found = torch.from_numpy(decoder.run(["logits"], feed)[0][0])
        worst = max(worst, float((found - expected).abs().max()))
        expected, found = expected.log_softmax(-1), found.log_softmax(-1)
        total += float((expected.exp() * (expected - found)).sum())
        n_tokens += tokens.shape[1]
    return Parity(worst, total / n_tokens)


def empty_past(decoder: ort.InferenceSession) -> dict[str, np.ndarray]:
    """Return the decoder's past_ inputs before the first token, batch 1."""
    return {
        item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
        for item in decoder.get_inputs()
        if item.name.startswith("past_")
    }


def check(parity: Parity) -> None:
    """Raise CompileError where fp32 graphs are not the torch model."""
    if parity.max_difference > TOLERANCE:
        raise CompileError(
            f"export: logits differ by {parity.max_difference:.2g} from torch, expected at most {TOLERANCE}; "
            "this is a bug: please report it with the checkpoint's name"
        )
