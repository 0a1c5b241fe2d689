"""Word error rate of bundles beside their originals at 30 s, and what they say where nobody speaks.

    python tests/bench/wer.py [--bundle DIR ...] [--no-source] [--limit N]

The bundles are the packaged ones unless told otherwise; a bundle's manifest names its original. Every set goes through
`whisperfold verify`; the non-speech clips are noise.jsonl, 60 s of zeros, white noise and a 50 Hz hum, and must give no
text. Writes results/wer.json.
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
from machine import DEFAULT_SPEECH, RESULTS, describe_bundle, describe_machine, save_result
from rich.console import Console

from whisperfold.compiler.verify import print_report, verify
from whisperfold.runtime.packaged import locate_bundle, packaged_bundles

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


def measure(bundle: Path, manifests: list[Path], non_speech: Path, beside: bool, **options: Any) -> dict[str, Any]:
    """Return a bundle's figures on every set, beside its original's where that is wanted, and on the clips without.

    Beside the original, which searches greedily, the bundle does too; `as_shipped` is with its default search.
    """
    source = json.loads((bundle / "manifest.json").read_text("utf-8"))["source"]["name"]
    sets = []
    for manifest in manifests:
        report = verify(bundle, manifest, against=source if beside else None, beam_size=1, **options)
        print_report(report, options["console"])
        report["as_shipped"] = verify(bundle, manifest, **options)["model"]
        del report["as_shipped"]["clips"]
        for model in (report["model"], report["as_shipped"], report.get("against", {})):
            model.pop("path", None)
        sets.append({**report, "name": manifest.stem, "set": manifest.name})
    silent = verify(bundle, non_speech, threads=options["threads"], console=options["console"])["model"]["clips"]
    return {"bundle": describe_bundle(bundle), "source": source, "sets": sets, "non_speech": silent}


def markdown(result: dict[str, Any]) -> str:
    """Tables of WER by bundle and set, and of non-speech clips."""
    lines = [
        "| bundle | set | utterances | words | original at 30 s, % | greedy, % | difference [95 % interval] "
        "| as shipped, % | RTF |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for measured in result["bundles"]:
        for row in measured["sets"]:
            model, against, gap = row["model"], row.get("against"), row.get("difference")
            points = f"{gap['points']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]" if gap else "-"
            original = f"{against['wer']:.2f}" if against else "-"
            lines.append(
                f"| {measured['bundle']['name']} | {row['name']} | {model['utterances']} | {model['words']} "
                f"| {original} | {model['wer']:.2f} | {points} | {row['as_shipped']['wer']:.2f} "
                f"| {row['as_shipped']['rtf']:.3f} |"
            )
    names = [measured["bundle"]["name"] for measured in result["bundles"]]
    lines += ["", f"| without speech | seconds | {' | '.join(names)} |", "|---|---:" + "|---" * len(names) + "|"]
    for clips in zip(*(measured["non_speech"] for measured in result["bundles"]), strict=True):
        texts = " | ".join(clip["hypothesis"].strip() or "none" for clip in clips)
        lines.append(f"| {clips[0]['name']} | {clips[0]['duration_s']:.0f} | {texts} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, write results/wer.json; 1 where a clip without speech gave text."""
    packaged = [locate_bundle(name) for name in packaged_bundles()]
    parser = argparse.ArgumentParser(description="word error rate of bundles beside their originals")
    parser.add_argument("--bundle", type=Path, nargs="+", default=packaged)
    parser.add_argument("--no-source", action="store_true", help="measure the bundles alone")
    parser.add_argument("--speech", type=Path, default=DEFAULT_SPEECH, help="folder of the manifests")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="NAME")
    parser.add_argument("--limit", type=int, default=None, help="first N utterances of each set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-vad", action="store_true", help="one window per clip, without the speech detector")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(arguments)
    machine, options = describe_machine(), {"threads": args.threads, "console": Console(stderr=True)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifests = [first_lines(args.speech / f"{name}.jsonl", args.limit, folder) for name in args.sets]
        non_speech = write_noise(folder, args.speech)
        measured = [
            measure(bundle, manifests, non_speech, not args.no_source, vad=not args.no_vad, **options)
            for bundle in args.bundle
        ]
    result = {
        "benchmark": "wer",
        "machine": machine,
        "threads": args.threads,
        "vad": not args.no_vad,
        "limit": args.limit,
        "normalizer": measured[0]["sets"][0]["model"]["normalizer"],
        "bundles": measured,
    }
    path = save_result("wer", result, args.output)
    print(markdown(result))
    print(f"\n{path}", file=sys.stderr)
    return int(any(clip["hypothesis"].strip() for one in measured for clip in one["non_speech"]))


if __name__ == "__main__":
    sys.exit(main())
