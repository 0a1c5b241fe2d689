"""A seeded two-layer Whisper for tests: the real code on weights that need no download."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from whisperfold.models.dims import ModelDimensions
from whisperfold.models.sources import Checkpoint, special_tokens
from whisperfold.models.whisper import Whisper

DIMS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=64,
    n_audio_head=2,
    n_audio_layer=2,
    n_vocab=51864,
    n_text_ctx=448,
    n_text_state=64,
    n_text_head=2,
    n_text_layer=1,
)
"""Encoder and decoder differ in depth, as in Distil-Whisper."""


def tiny_checkpoint(folder: Path, seed: int = 0, dims: ModelDimensions = DIMS) -> Checkpoint:
    """Return a random checkpoint whose tokenizer.json (an English-only Whisper's) lies in folder."""
    torch.manual_seed(seed)
    model = Whisper(dims)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
            elif name.endswith("bias"):
                parameter.normal_(std=0.02)
    tokens = special_tokens(Tokenizer.from_file(str(folder / "tokenizer.json")), {}, dims)
    heads = [[layer, head] for layer in range(dims.n_text_layer) for head in range(dims.n_text_head)]
    provenance = {
        "name": "tiny-random",
        "revision": "",
        "sha256": f"seed-{seed}",
        "licence": "MIT",
        "origin": "made here",
    }
    return Checkpoint("tiny-random", folder, dims, model.state_dict(), tokens, heads, provenance)
