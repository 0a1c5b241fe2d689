"""Peak memory of learning from one recording, by its length: what runtime/lessons.py reckons with.

    python tests/bench/adapt_memory.py [--bundle DIR] [--threads 2] [--seconds 5 10 15 20 30]

Each length is measured in a process of its own: load, then three steps (gradients by adapt.onnx, AdamW) on speech of
that length with its share of words. "beside the transcriber" also holds a loaded one that has heard the recording,
as an enrollment does. Peak is the process's largest resident set, weights mapped from the bundle included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
from machine import DEFAULT_BUNDLE
from rich.console import Console
from rich.table import Table

from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.lessons import canary_lessons
from whisperfold.runtime.optimizer import AdamW
from whisperfold.runtime.training_graph import TrainingGraph
from whisperfold.runtime.transcribe import Transcriber

N_STEPS = 3
WORDS_PER_S = 3.0


def peak_mb() -> float:
    """Largest resident set of this process so far, MB of 10^6 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(bundle: Bundle, threads: int, length_s: float, with_transcriber: bool) -> tuple[float, float]:
    """Take the steps; return the peak before them and after, MB."""
    clips = canary_lessons(limit=4)
    samples = np.concatenate([clip.samples for clip in clips])[: round(length_s * SAMPLE_RATE)]
    text = " ".join(" ".join(clip.text for clip in clips).split()[: round(WORDS_PER_S * length_s)])
    language = "en" if bundle.tokens.multilingual else None
    if with_transcriber:
        transcriber = Transcriber.open(bundle.path, threads=threads)
        transcriber.transcribe(samples, language=language)
    graph, adapter = TrainingGraph(bundle, threads, language), Adapter.create(bundle)
    trained = [name for name in adapter.tensors if not name.endswith(".gain")]
    optimizer = AdamW({name: adapter.tensors[name] for name in trained}, 0.01, 1.0, 0.0)
    loaded_mb = peak_mb()
    for _ in range(N_STEPS):
        optimizer.step(graph.run(samples, text, adapter, trained)[1], rate=5e-4)
    return loaded_mb, peak_mb()


def in_own_process(args: argparse.Namespace, length_s: float, with_transcriber: bool) -> list[float]:
    """Run `measure` in a fresh process."""
    command = [sys.executable, __file__, "--bundle", str(args.bundle), "--threads", str(args.threads)]
    command += ["--one", str(length_s), *(["--transcriber"] if with_transcriber else [])]
    return [float(word) for word in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def main() -> None:
    """Print a table, or the figures of one process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 10.0, 15.0, 20.0, 30.0])
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--transcriber", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(*measure(Bundle.open(args.bundle), args.threads, args.one, args.transcriber))
        return
    table = Table("recording", "loaded", "steps alone", "loaded", "steps beside the transcriber", title="peak RSS, MB")
    for length_s in args.seconds:
        figures = [*in_own_process(args, length_s, False), *in_own_process(args, length_s, True)]
        table.add_row(f"{length_s:g} s", *(f"{figure:.0f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
