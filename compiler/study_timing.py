"""Bundles -> seconds per clip and peak memory, side by side, each in a process of its own that never saw torch.

The work timed is the same whatever a model hears: mel, encoder, and one decoder step per token of the transcript.
Bundles take turns, and of all rounds the fastest counts, so that other load on the machine hits all alike.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whisperfold.compiler.manifests import Item
from whisperfold.runtime.mel import log_mel
from whisperfold.runtime.session import Engine
from whisperfold.runtime.windows import max_samples, pad

ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """What one bundle took."""

    clip_s: list[float]
    """Seconds of each clip, the best round."""
    peak_rss_bytes: int


def time_bundles(bundles: list[Path], items: list[Item], threads: int) -> list[Timing]:
    """Time every bundle on the clips, in turns."""
    rounds = [[_in_own_process(bundle, items, threads) for bundle in bundles] for _ in range(ROUNDS)]
    return [
        Timing(np.min([run.clip_s for run in runs], axis=0).tolist(), max(run.peak_rss_bytes for run in runs))
        for runs in zip(*rounds, strict=True)
    ]


def _in_own_process(bundle: Path, items: list[Item], threads: int) -> Timing:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(time_clips, bundle, items, threads).result()


def time_clips(path: Path, items: list[Item], threads: int) -> Timing:
    """Open a bundle and time every clip once; the first clip is heard before, to warm up."""
    engine = Engine.open(path, threads)
    window, tokens = engine.bundle.window, engine.tokens
    taken = []
    for item in [items[0], *items]:
        samples = item.load()[: max_samples(window)]
        words = engine.tokenizer.encode(" " + (item.text or ""))
        begin = time.perf_counter()
        cache = engine.new_cache(engine.encode(log_mel(pad(samples, window), engine.dims.n_mels)))
        engine.step(np.array([[tokens.sot, tokens.no_timestamps]]), cache)
        for token in words[: engine.dims.n_text_ctx - 2]:
            engine.step(np.array([[token]]), cache)
        taken.append(time.perf_counter() - begin)
    return Timing(taken[1:], _peak_rss_bytes())


def _peak_rss_bytes() -> int:
    """Return this process's peak; the kernel's own figure starts anew with the program, ru_maxrss does not."""
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
