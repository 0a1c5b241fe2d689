"""How exact adapt.onnx is on real speech: its loss and gradients beside torch autograd in float64.

    python tests/compiler/gradient_table.py [tiny.en] [base]        default: tiny.en

tiny.en is the packaged bundle, base is made from the checkpoint (8 bit, nothing cut), or a bundle's directory. All
factors and gains are random and not zero. An error is the largest difference in any tensor, relative to the tensor's
largest value; torch's own float32 gradients are there for comparison.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from reference_adapter import (
    Feed,
    largest_error,
    onnx_gradients,
    random_adapter,
    torch_gradients,
    trainable_bundle,
    trainable_copy,
)
from rich.console import Console
from rich.table import Table

from whisperfold.models.sources import load_source
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.audio import SAMPLE_RATE, load_audio
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.lessons import CANARY
from whisperfold.runtime.mel import log_mel
from whisperfold.runtime.packaged import default_bundle
from whisperfold.runtime.recordings import read_source
from whisperfold.runtime.tokenizer import Tokenizer
from whisperfold.runtime.windows import pad

JFK = Path(__file__).parents[2] / "runtime" / "samples" / "jfk.flac"
TEXT = "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."


@dataclass(frozen=True)
class Case:
    """A batch of utterances; the shorter ones are padded with silence."""

    lengths_s: tuple[float, ...]
    smoothing: float = 0.0

    def __str__(self) -> str:
        smoothed = f", smoothing {self.smoothing}" if self.smoothing else ""
        return " + ".join(f"{length_s:g} s" for length_s in self.lengths_s) + smoothed


QUICK = (Case((1.5,)), Case((5.0, 3.0), smoothing=0.1), Case((3.0, 2.0, 1.5)))
LONG = (Case((6.0,)), Case((11.0,)), Case((24.5,)), Case((11.0, 6.0)), Case((11.0, 6.0, 3.0)))
ROWS = ("tokens", "loss", "error of the loss", "of the gradients", "largest in", "torch in float32")


def utterance(length_s: float) -> tuple[np.ndarray, str]:
    """Real speech, float32 (n,), 16 kHz, with its share of the text: the packaged sample (11 s), else canary clips."""
    samples, text = load_audio(JFK), TEXT
    if length_s * SAMPLE_RATE > samples.size:
        clips = list(islice(read_source(CANARY / "canary.jsonl"), 2))
        samples, text = np.concatenate([clip.samples for clip in clips]), " ".join(clip.text or "" for clip in clips)
    kept, words = min(samples.size, round(length_s * SAMPLE_RATE)), text.split()
    return samples[:kept], " ".join(words[: -(-len(words) * kept // samples.size)])


def speech_feed(bundle: Bundle, case: Case) -> Feed:
    """The inputs of adapt.onnx for a batch, as in runtime/training_graph.py; padded positions count nothing."""
    items = [utterance(length_s) for length_s in case.lengths_s]
    tokenizer, eot = Tokenizer(bundle), bundle.tokens.eot
    start = tokenizer.sot_sequence("en" if bundle.tokens.multilingual else None)
    sequences = [[*start, *tokenizer.encode(" " + text), eot] for _, text in items]
    n = max(map(len, sequences)) - 1
    filled = np.array([sequence + [eot] * (n + 1 - len(sequence)) for sequence in sequences])
    counted = [[len(start) - 1 <= i < len(sequence) - 1 for i in range(n)] for sequence in sequences]
    longest = max(samples.size for samples, _ in items)
    padded = [pad(np.pad(samples, (0, longest - samples.size)), bundle.window) for samples, _ in items]
    return {
        "mel": np.stack([log_mel(samples, bundle.dims.n_mels) for samples in padded]),
        "tokens": filled[:, :-1],
        "labels": filled[:, 1:],
        "label_weights": np.array(counted, np.float32),
        "label_smoothing": np.array(case.smoothing, np.float32),
    }


def base_bundle(folder: Path) -> Bundle:
    """The whole multilingual base in 8 bit, with its training graph.

    Raises:
        SourceError: the checkpoint is not there and cannot be fetched.
    """
    checkpoint = load_source("base")
    return trainable_bundle(folder, checkpoint, Whisper.from_state(checkpoint.dims, checkpoint.state), "int8")


def row(bundle: Bundle, case: Case) -> list[str]:
    """The figures of one case, as in ROWS."""
    feed, adapter = speech_feed(bundle, case), random_adapter(bundle, rank=4)
    loss, found = onnx_gradients(bundle, feed, adapter)
    exact_loss, exact = torch_gradients(bundle, feed, adapter)
    single = torch_gradients(bundle, feed, adapter, torch.float32)[1]
    error, name = largest_error(found, exact)
    return [
        str(feed["tokens"].shape[1]),
        f"{exact_loss:.4f}",
        f"{abs(loss / exact_loss - 1):.0e}",
        f"{error:.1e}",
        name,
        f"{largest_error(single, exact)[0]:.1e}",
    ]


def main() -> None:
    """Print a table per bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", default=["tiny.en"], help="tiny.en, base, or a directory")
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as scratch:
        for name in parser.parse_args().bundles:
            folder = Path(scratch) / Path(name).name
            bundle = base_bundle(folder) if name == "base" else trainable_copy(folder, source(name))
            table = Table("utterances", *ROWS, title=f"{name}: gradients of adapt.onnx against torch in float64")
            for case in (*QUICK, *LONG):
                table.add_row(str(case), *row(bundle, case))
                print(f"{name}: {case} done", file=sys.stderr)
            console.print(table)


def source(name: str) -> Path:
    """The directory of a bundle."""
    return default_bundle() if name == "tiny.en" else Path(name)


if __name__ == "__main__":
    main()
