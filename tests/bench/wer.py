"""Word error rate of a bundle beside its original at 30 s, and what it says where nobody speaks.

    python tests/bench/wer.py [--bundle DIR] [--source tiny.en | --no-source] [--limit N]

Every set goes through `whisperfold verify`; the non-speech clips are noise.jsonl, 60 s of zeros, white noise
and a 50 Hz hum, and must give no text. Writes results/wer.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from machine import DEFAULT_BUNDLE, DEFAULT_SPEECH, RESULTS, describe_bundle, describe_machine, save_result
from rich.console import Console

from whisperfold.compiler.verify import print_report, verify

SETS = ("librispeech-other-dev", "accented-check", "nonnative-dev")
SAMPLE_RATE = 16_000
NOISE_S = 60
SEED = 11


def write_noise(folder: Path, speech: Path) -> Path:
    """Write the synthetic clips and one manifest of them and of noise.jsonl; return the manifest."""
    rng = np.random.default_rng(SEED)
    n_samples = NOISE_S * SAMPLE_RATE
    time_s = np.arange(n_samples) / SAMPLE_RATE
    clips = {
        "zeros": np.zeros(n_samples),
        "white noise, -46 dBFS": 0.005 * rng.standard_normal(n_samples),
        "white noise, -26 dBFS": 0.05 * rng.standard_normal(n_samples),
        "hum, 50 Hz and harmonics": sum(0.1 / k * np.sin(2 * np.pi * 50 * k * time_s) for k in (1, 2, 3)),
    }
    lines = []
    for name, samples in clips.items():
        soundfile.write(folder / f"{name}.flac", samples.astype(np.float32), SAMPLE_RATE)
        lines.append({"audio": f"{name}.flac", "duration_s": NOISE_S, "speaker": None, "text": ""})
    recorded = speech / "noise.jsonl"
    for line in recorded.read_text(encoding="utf-8").splitlines() if recorded.is_file() else ():
        entry = json.loads(line)
        lines.append({**entry, "audio": str(speech / entry["audio"]), "text": ""})
    manifest = folder / "non-speech.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return manifest


def first_lines(manifest: Path, limit: int | None, folder: Path) -> Path:
    """Return a manifest of the first `limit` items with absolute paths, or the manifest itself."""
    if limit is None:
        return manifest
    entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()][:limit]
    short = folder / manifest.name
    short.write_text("".join(json.dumps({**e, "audio": str(manifest.parent / e["audio"])}) + "\n" for e in entries))
    return short


def markdown(result: dict[str, Any]) -> str:
    """Tables of WER by set and of non-speech clips."""
    lines = [
        "| set | utterances | words | bundle, % | original at 30 s, % | difference [95 % interval] | RTF |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["sets"]:
        model, against, difference = row["model"], row.get("against"), row.get("difference")
        gap = (
            f"{difference['points']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]" if difference else "-"
        )
        original = f"{against['wer']:.2f}" if against else "-"
        lines.append(
            f"| {row['name']} | {model['utterances']} | {model['words']} | {model['wer']:.2f} "
            f"| {original} | {gap} | {model['rtf']:.3f} |"
        )
    lines += ["", "| without speech | seconds | text |", "|---|---:|---|"]
    for clip in result["non_speech"]:
        lines.append(f"| {clip['name']} | {clip['duration_s']:.0f} | {clip['hypothesis'].strip() or 'none'} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, write results/wer.json; 1 where a clip without speech gave text."""
    parser = argparse.ArgumentParser(description="word error rate of a bundle beside its original")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--source", default="tiny.en", help="the original checkpoint")
    parser.add_argument("--no-source", action="store_true", help="measure the bundle alone")
    parser.add_argument("--speech", type=Path, default=DEFAULT_SPEECH, help="folder of the manifests")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="NAME")
    parser.add_argument("--limit", type=int, default=None, help="first N utterances of each set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-vad", action="store_true", help="one window per clip, without the speech detector")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(arguments)
    console, machine = Console(stderr=True), describe_machine()
    options: dict[str, Any] = {"threads": args.threads, "console": console}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sets = []
        for name in args.sets:
            manifest = first_lines(args.speech / f"{name}.jsonl", args.limit, folder)
            against = None if args.no_source else args.source
            report = verify(args.bundle, manifest, against=against, vad=not args.no_vad, **options)
            print_report(report, console)
            sets.append({**report, "name": name, "set": f"{name}.jsonl"})
        non_speech = verify(args.bundle, write_noise(folder, args.speech), **options)["model"]["clips"]
    for row in sets:
        for model in (row["model"], row.get("against", {})):
            model.pop("path", None)
    result = {
        "benchmark": "wer",
        "machine": machine,
        "threads": args.threads,
        "vad": not args.no_vad,
        "limit": args.limit,
        "bundle": describe_bundle(args.bundle),
        "normalizer": sets[0]["model"]["normalizer"] if sets else None,
        "sets": sets,
        "non_speech": non_speech,
    }
    path = save_result("wer", result, args.output)
    print(markdown(result))
    print(f"\n{path}", file=sys.stderr)
    return int(any(clip["hypothesis"].strip() for clip in non_speech))


if __name__ == "__main__":
    sys.exit(main())
