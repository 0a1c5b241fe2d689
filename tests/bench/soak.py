"""An hour of speech, silence and noise through one live stream, as fast as it goes: what grows, and what is heard.

    python tests/bench/soak.py [--hours 1] [--bundle DIR]

Rounds of 60 s: 30 s of joined utterances, 10 s of digital silence, 20 s of noise (white, hum, recorded; in turn).
After each round: resident memory (what malloc has free is given back first: it comes and goes by 40 MB with the length
of the windows), threads, descriptors, processing time. Text that begins in silence or noise counts as
an error. The first sixth is warm-up. Writes results/soak.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from machine import DEFAULT_BUNDLE, DEFAULT_SPEECH, RESULTS, describe_bundle, describe_machine, save_result
from rich.progress import track

from whisperfold.runtime.audio import SAMPLE_RATE, load_audio
from whisperfold.runtime.memory import give_back
from whisperfold.runtime.transcribe import Transcriber

CHUNK_SAMPLES = SAMPLE_RATE // 10
SPEECH_S, SILENCE_S, NOISE_S = 30, 10, 20
ROUND_S = SPEECH_S + SILENCE_S + NOISE_S
SEED = 5
LATE_S = 1.0
"""Speech at the end of its stretch may be noticed this much later."""


def noises(speech: Path) -> list[np.ndarray]:
    """Twenty seconds each, float32: white noise, a 50 Hz hum, and the recorded clips."""
    rng, n = np.random.default_rng(SEED), NOISE_S * SAMPLE_RATE
    time_s = np.arange(n) / SAMPLE_RATE
    made = [0.02 * rng.standard_normal(n), sum(0.1 / k * np.sin(2 * np.pi * 50 * k * time_s) for k in (1, 2, 3))]
    recorded = [json.loads(line) for line in (speech / "noise.jsonl").read_text(encoding="utf-8").splitlines()]
    made += [np.resize(load_audio(speech / entry["audio"]), n) for entry in recorded]
    return [np.asarray(noise, np.float32) for noise in made]


def utterances(speech: Path) -> np.ndarray:
    """Every development utterance, joined."""
    entries = [json.loads(line) for line in (speech / "librispeech-other-dev.jsonl").read_text().splitlines()]
    return np.concatenate([load_audio(speech / entry["audio"]) for entry in entries])


def run(transcriber: Transcriber, speech: Path, rounds: int) -> list[dict[str, Any]]:
    """Play the rounds through one stream; one record per round."""
    process, session = psutil.Process(), transcriber.stream()
    talk, noise = utterances(speech), noises(speech)
    silence = np.zeros(SILENCE_S * SAMPLE_RATE, np.float32)
    records, position = [], 0
    for number in track(range(rounds), "soak", transient=True):
        spoken = np.take(talk, range(position, position + SPEECH_S * SAMPLE_RATE), mode="wrap")
        position = (position + SPEECH_S * SAMPLE_RATE) % talk.size
        samples = np.concatenate([spoken, silence, noise[number % len(noise)]])
        first_s, words, false_texts = number * ROUND_S, 0, []
        started_s = time.process_time()
        for first in range(0, samples.size, CHUNK_SAMPLES):
            for event in session.accept_chunk(samples[first : first + CHUNK_SAMPLES]):
                if event.kind != "final":
                    continue
                words += len(event.committed.split())
                if event.start_s > first_s + SPEECH_S + LATE_S:
                    false_texts.append(event.committed)
        cpu_s = time.process_time() - started_s
        give_back()
        records.append(
            {
                "minute": (number + 1) * ROUND_S / 60,
                "rss_bytes": process.memory_info().rss,
                "threads": threading.active_count(),
                "os_threads": process.num_threads(),
                "descriptors": process.num_fds(),
                "cpu_per_s": cpu_s / ROUND_S,
                "words": words,
                "false_texts": false_texts,
            }
        )
    return records


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth after the warm-up: medians of its first and last sixth."""
    sixth = max(1, len(records) // 6)
    after, last = records[sixth : 2 * sixth] or records, records[-sixth:]
    median = {
        key: (float(np.median([r[key] for r in after])), float(np.median([r[key] for r in last])))
        for key in ("rss_bytes", "cpu_per_s")
    }
    return {
        "minutes": records[-1]["minute"],
        "rss_mb": round(last[-1]["rss_bytes"] / 1e6, 1),
        "rss_growth_mb": round((median["rss_bytes"][1] - median["rss_bytes"][0]) / 1e6, 2),
        "cpu_per_s_early": round(median["cpu_per_s"][0], 4),
        "cpu_per_s_late": round(median["cpu_per_s"][1], 4),
        "os_threads_growth": records[-1]["os_threads"] - after[0]["os_threads"],
        "descriptors_growth": records[-1]["descriptors"] - after[0]["descriptors"],
        "words": sum(r["words"] for r in records),
        "false_texts": sum(len(r["false_texts"]) for r in records),
    }


def markdown(result: dict[str, Any]) -> str:
    """The summary as a table."""
    s = result["summary"]
    return "\n".join(
        [
            "| minutes | RSS, MB | growth after warm-up, MB | threads | descriptors | CPU s per s, early / late "
            "| words | texts from silence and noise |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|",
            f"| {s['minutes']:.0f} | {s['rss_mb']} | {s['rss_growth_mb']:+} | {s['os_threads_growth']:+} "
            f"| {s['descriptors_growth']:+} | {s['cpu_per_s_early']:.3f} / {s['cpu_per_s_late']:.3f} | {s['words']} "
            f"| {s['false_texts']} |",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write results/soak.json; 1 when something leaks or noise gave text."""
    parser = argparse.ArgumentParser(description="an hour through one live stream")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--speech", type=Path, default=DEFAULT_SPEECH, help="folder of the manifests")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(arguments)
    machine = describe_machine()
    records = run(Transcriber.open(args.bundle, args.threads), args.speech, max(1, round(args.hours * 3600 / ROUND_S)))
    result = {
        "benchmark": "soak",
        "machine": machine,
        "bundle": describe_bundle(args.bundle),
        "threads": args.threads,
        "summary": summary(records),
        "rounds": records,
    }
    print(markdown(result))
    print(f"\n{save_result('soak', result, args.output)}", file=sys.stderr)
    s = result["summary"]
    leaks = s["rss_growth_mb"] > 5 or s["os_threads_growth"] > 0 or s["descriptors_growth"] > 0
    return int(leaks or s["false_texts"] > 0)


if __name__ == "__main__":
    sys.exit(main())
