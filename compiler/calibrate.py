"""Speech -> second moments at every place where a twin can be cut, at the windows that will be used.

Per attention, with queries from x and keys and values from y (both after their norm, width d, H heads):

    query (d + 1, d + 1)  E[x~ x~^T], x~ = [x, 1]: the query's bias is a row of the twin
    key   (d, d)          E[(y - mean)(y - mean)^T], mean per utterance: softmax ignores what all keys share
    value (H, d, d)       E[(P_h y)(P_h y)^T] under the attention weights P_h

Per feed-forward: neurons (n, n) = E[h h^T] after GELU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from whisperfold.compiler.teacher import FRAMES_PER_S, N_SAMPLES, Lesson, mel_window
from whisperfold.models.whisper import Attention, FeedForward, Whisper, causal_mask
from whisperfold.runtime.audio import SAMPLE_RATE

Moments = dict[str, Tensor]
"""Site ("encoder.layers.0.attn", "decoder.layers.1.ffn") + ".query", ".key", ".value" or ".neurons" -> moments."""


def short_window(samples_s: float, tail_s: float) -> int:
    """Return the samples of a window holding samples_s seconds and a tail, a whole number of encoder frames."""
    frames = min(30 * FRAMES_PER_S, round((samples_s + tail_s) * FRAMES_PER_S))
    return frames * SAMPLE_RATE // FRAMES_PER_S


def window_of(lesson: Lesson, kind: str, tail_s: float) -> int:
    """Return the samples of the lesson's window: 30 s where kind is "full", else the speech and a tail."""
    return N_SAMPLES if kind == "full" else short_window(len(lesson.samples) / SAMPLE_RATE, tail_s)


@torch.no_grad()
def calibrate(
    model: Whisper,
    lessons: list[Lesson],
    kind: str,
    tail_s: float,
    advance: Callable[[], None] = lambda: None,
) -> Moments:
    """Return the mean second moments of the uncut model over the lessons."""
    sums: Moments = {}
    counts: dict[str, int] = {}
    for lesson in lessons:
        mel = mel_window(lesson.samples, window_of(lesson, kind, tail_s), model.dims.n_mels)
        _encoder_moments(model, mel[None], sums, counts)
        encoded = model.encoder(mel[None])
        _decoder_moments(model, lesson.sequences[0][0][None, :-1], encoded, sums, counts)
        advance()
    return {name: (total / counts[name]).float() for name, total in sums.items()}


def _add(sums: Moments, counts: dict[str, int], name: str, rows: Tensor) -> None:
    """Add rows^T rows of (..., n, width); a leading head axis is kept."""
    rows = rows.double()
    product = rows.transpose(-1, -2) @ rows
    sums[name] = sums[name] + product if name in sums else product
    counts[name] = counts.get(name, 0) + rows.shape[-2]


def _attention(
    attn: Attention,
    name: str,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    sums: Moments,
    counts: dict[str, int],
) -> None:
    """Add one utterance's moments for queries x (1, n, d) over y (1, m, d)."""
    _add(sums, counts, f"{name}.query", torch.cat([x[0], torch.ones(x.shape[1], 1)], 1))
    _add(sums, counts, f"{name}.key", y[0] - y[0].mean(0))
    weights = attn.weights(x, attn.kv(y)[0], mask)
    _add(sums, counts, f"{name}.value", (weights @ y[:, None])[0])


def _feed_forward(ffn: FeedForward, name: str, x: Tensor, sums: Moments, counts: dict[str, int]) -> None:
    _add(sums, counts, f"{name}.neurons", F.gelu(ffn.fc1(x))[0])


def _encoder_moments(model: Whisper, mel: Tensor, sums: Moments, counts: dict[str, int]) -> None:
    x = model.encoder.embed(mel)
    for i, layer in enumerate(model.encoder.layers):
        name, y = f"encoder.layers.{i}", layer.attn_ln(x)
        _attention(layer.attn, f"{name}.attn", y, y, None, sums, counts)
        middle = x + layer.attn(y, layer.attn.kv(y))
        _feed_forward(layer.ffn, f"{name}.ffn", layer.ffn_ln(middle), sums, counts)
        x = layer(x)


def _decoder_moments(model: Whisper, tokens: Tensor, encoded: Tensor, sums: Moments, counts: dict[str, int]) -> None:
    decoder = model.decoder
    x = decoder.token_embedding(tokens) + decoder.positions[: tokens.shape[1]]
    mask = causal_mask(tokens.shape[1])
    for i, layer in enumerate(decoder.layers):
        name, y = f"decoder.layers.{i}", layer.attn_ln(x)
        _attention(layer.attn, f"{name}.attn", y, y, mask, sums, counts)
        x = x + layer.attn(y, layer.attn.kv(y), mask)
        y = layer.cross_ln(x)
        _attention(layer.cross, f"{name}.cross", y, encoded, None, sums, counts)
        x = x + layer.cross(y, layer.cross.kv(encoded))
        y = layer.ffn_ln(x)
        _feed_forward(layer.ffn, f"{name}.ffn", y, sums, counts)
        x = x + layer.ffn(y)


def save_moments(moments: Moments, path: Path) -> None:
    """Write moments as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in moments.items()}, path)


def load_moments(path: Path) -> Moments:
    """Read what `save_moments` wrote."""
    return dict(load_file(path))
