"""What the command line opens instead of the recogniser, where it does not matter what was said."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Segment:
    """A line of the transcript."""

    start_s: float
    end_s: float
    text: str
    avg_logprob: float = -0.2
    no_speech_prob: float = 0.0
    words: list = field(default_factory=list)
    language: str = "en"


class FakeTranscriber:
    """Reads all blocks; says how long they were."""

    language = "en"

    def __init__(self):
        self.opened: list = []
        self.options = None

    def transcribe_blocks(self, blocks, **options):
        self.options = options
        total_s = 0.0
        for block in blocks:
            assert block.dtype == np.float32 and block.ndim == 1
            yield Segment(total_s, total_s + len(block) / 16000, f" {len(block)} samples")
            total_s += len(block) / 16000
