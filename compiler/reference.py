"""The original checkpoint as a transcriber at 30 s, greedy: what every bundle is measured against."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer

from whisperfold.compiler.teacher import N_SAMPLES, greedy, mel_window
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper


class OriginalTranscriber:
    """The uncut, unquantised model in torch."""

    def __init__(self, checkpoint: Checkpoint, language: str = "en") -> None:
        """Build the model from the checkpoint."""
        self.checkpoint, self.language = checkpoint, language
        self.model = Whisper.from_state(checkpoint.dims, checkpoint.state)
        self.tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))

    @torch.no_grad()
    def transcribe_window(self, samples: np.ndarray) -> str:
        """Return the text of float32 (n_samples,) at 16 kHz, at most 30 s, padded to 30 s."""
        mel = mel_window(samples, N_SAMPLES, self.checkpoint.dims.n_mels)
        text = greedy(self.model, self.model.encoder(mel[None]), self.checkpoint.tokens, self.language)[0]
        return str(self.tokenizer.decode(text, skip_special_tokens=True)).strip()
