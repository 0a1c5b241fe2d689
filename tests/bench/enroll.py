"""Enrollment as a person gets it: how much better, for whom, from how little speech, in what time and memory.

    python tests/bench/enroll.py [--only curve,recipes,speakers] [--speech DIR] [--bundle DIR]

curve     10, 25 and 50 recordings of accented-enroll with the default recipe
recipes   50 recordings: adapter ranks, gains only (singular values and neurons), and one that is meant to do harm
speakers  each speaker of nonnative-dev: the first 10 utterances enroll, the other 10 test

Every enrollment is `runtime.enroll.enroll` in a process of its own, on a store of its own. The test sets are heard by
the device as it is afterwards: with the profile if it was taken, else as before. Writes results/enroll.json after every
run and goes on from it, unless the bundle is another one or --fresh.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import DEFAULT_BUNDLE, DEFAULT_SPEECH, RESULTS, describe_bundle, describe_machine, save_result
from rich.console import Console

from whisperfold.compiler.manifests import Item, read_items
from whisperfold.compiler.wer import NORMALIZER, evaluate
from whisperfold.runtime.adaptation import AdaptationOptions
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.enroll import enroll
from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.errors import EnrollmentError
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recordings import read_source
from whisperfold.runtime.transcribe import Transcriber

PARTS = ("curve", "recipes", "speakers")
CURVE = (10, 25, 50)
RECIPES: dict[str, dict[str, Any]] = {
    "LoRA r = 4": {"rank": 4, "alpha": 8.0},
    "LoRA r = 16": {"rank": 16, "alpha": 32.0},
    "gains only": {"train": "gain", "learning_rate": 5e-3},
    "LoRA r = 8 and gains": {"train": "both"},
    "LoRA r = 16, rate 2e-3, 14 epochs": {"rank": 16, "alpha": 32.0, "learning_rate": 2e-3, "epochs": 14},
}
TARGET_SETS = ("accented-check.jsonl", "librispeech-other-dev.jsonl")
N_ENROLL = 10
"""Of a nonnative-dev speaker's 20 utterances."""


def plan(parts: list[str], speech: Path, folder: Path) -> list[dict[str, Any]]:
    """Return what is to be run: label, recordings (a manifest), test sets, fields of AdaptationOptions."""
    lines = read_lines(speech / "accented-enroll.jsonl")
    tests = [str(speech / name) for name in TARGET_SETS]
    runs = []
    if "curve" in parts:
        for n in CURVE:
            source = write_lines(folder / f"accented-{n}.jsonl", lines[:n])
            runs.append({"part": "curve", "label": f"{n} recordings", "source": source, "tests": tests, "recipe": {}})
    if "recipes" in parts:
        source = write_lines(folder / "accented-all.jsonl", lines)
        for label, recipe in RECIPES.items():
            runs.append({"part": "recipes", "label": label, "source": source, "tests": tests, "recipe": recipe})
    if "speakers" in parts:
        by_speaker: dict[str, list[dict[str, Any]]] = {}
        for line in read_lines(speech / "nonnative-dev.jsonl"):
            by_speaker.setdefault(line["speaker"], []).append(line)
        for speaker, own in by_speaker.items():
            source = write_lines(folder / f"{speaker}-enroll.jsonl", own[:N_ENROLL])
            test = write_lines(folder / f"{speaker}-test.jsonl", own[N_ENROLL:])
            runs.append({"part": "speakers", "label": speaker, "source": source, "tests": [test], "recipe": {}})
    return runs


def read_lines(manifest: Path) -> list[dict[str, Any]]:
    """Return the lines of a manifest with absolute paths."""
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [{**line, "audio": str(manifest.parent / line["audio"])} for line in lines]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> str:
    """Write a manifest and return its path."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def run_one(run: dict[str, Any], bundle_path: Path, threads: int) -> dict[str, Any]:
    """Enroll one person on an empty device and return what happened; time and memory are the enrollment's alone."""
    with tempfile.TemporaryDirectory() as root:
        bundle = Bundle.open(bundle_path)
        store = ProfileStore(bundle, Path(root))
        recordings = store.recordings("owner")
        for item in read_source(Path(run["source"])):
            recordings.add(item.samples, item.text or "", item.kind)
        transcriber = Transcriber.open(bundle_path, threads)
        started_s = time.monotonic()
        options = EnrollOptions(adaptation=AdaptationOptions(**run["recipe"]), threads=threads)
        found: dict[str, Any] = {"promoted": False, "tests": {}}
        adapted = None
        try:
            outcome = enroll(store, "owner", transcriber, options)
            adapted = Transcriber.open(bundle_path, threads, profile=outcome.profile)
            found |= {
                "promoted": outcome.decision.promoted,
                "reason": outcome.decision.reason,
                "recordings_s": round(outcome.selection.total_s, 1),
                "epochs": outcome.profile.facts["epochs"],
                "owner": [outcome.owner.before, outcome.owner.after],
                "canary": [outcome.canary.before, outcome.canary.after],
            }
        except EnrollmentError as error:
            found["reason"] = str(error)
        found["seconds"] = round(time.monotonic() - started_s, 1)
        found["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
        for test in run["tests"]:
            found["tests"][Path(test).stem] = hear(transcriber, adapted, found["promoted"], read_items(test))
        return found


def hear(before: Transcriber, adapted: Transcriber | None, is_taken: bool, items: list[Item]) -> dict[str, Any]:
    """Return the WER of a test set before, with the adapter if there is one, and as the device now is; percent."""
    systems = {"before": before} | ({"adapted": adapted} if adapted is not None else {})
    wer = {
        name: evaluate(lambda samples, by=by: by.transcribe(samples, beam_size=1).text, items).wer  # type: ignore[misc]
        for name, by in systems.items()
    }
    return {"device": wer["adapted" if is_taken else "before"], **wer}


def markdown(result: dict[str, Any]) -> str:
    """One table for the accented speaker, one for the ten others."""
    rows = result["runs"]
    lines = [
        "| accented-enroll | taken | time, s | peak RSS, MB | accented-check, % | librispeech-other-dev, % |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in (row for row in rows if row["part"] != "speakers"):
        figures = [f"{test['before']:.2f} → {shown(test)}" for test in row["found"]["tests"].values()]
        taken = "yes" if row["found"]["promoted"] else "no"
        found = row["found"]
        lines.append(
            f"| {row['label']} | {taken} | {found['seconds']:.0f} | {found['peak_rss_mb']} | {' | '.join(figures)} |"
        )
    speakers = [row for row in rows if row["part"] == "speakers"]
    if not speakers:
        return "\n".join(lines)
    lines += [
        "",
        f"| speaker, {N_ENROLL} recordings | time, s | folds, % | taken | test: before, % | adapted, % | device, % |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    totals = []
    for row in speakers:
        found, (test,) = row["found"], row["found"]["tests"].values()
        totals.append([test["before"], test["device"]])
        owner = f"{found['owner'][0]:.1f} → {found['owner'][1]:.1f}" if "owner" in found else found["reason"]
        lines.append(
            f"| {row['label']} | {found['seconds']:.0f} | {owner} | {'yes' if found['promoted'] else 'no'} "
            f"| {test['before']:.1f} | {shown(test)} | {test['device']:.1f} |"
        )
    before, device = (sum(column) / len(column) for column in zip(*totals, strict=True))
    lines.append(f"| **mean** | | | | **{before:.1f}** | | **{device:.1f}** |")
    return "\n".join(lines)


def shown(test: dict[str, Any]) -> str:
    """The WER with the adapter, if one was made."""
    return f"{test['adapted']:.2f}" if "adapted" in test else "-"


def main(arguments: list[str] | None = None) -> int:
    """Run what is wanted, one process each."""
    parser = argparse.ArgumentParser(description="enrollment")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--speech", type=Path, default=DEFAULT_SPEECH)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--limit", type=int, default=None, help="only so many runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="forget the results that are there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        print(json.dumps(run_one(json.loads(args.worker), args.bundle, args.threads)))
        return 0
    console, path = Console(stderr=True), args.output / "enroll.json"
    bundle = describe_bundle(args.bundle)
    former = {} if args.fresh or not path.is_file() else json.loads(path.read_text(encoding="utf-8"))
    kept = former["runs"] if former.get("bundle") == bundle else []
    result = {
        "machine": describe_machine(),
        "bundle": bundle,
        "threads": args.threads,
        "normalizer": NORMALIZER,
        "runs": kept,
    }
    with tempfile.TemporaryDirectory() as scratch:
        order = [(run["part"], run["label"]) for run in plan(list(PARTS), args.speech, Path(scratch))]
        for run in plan(args.only.split(","), args.speech, Path(scratch))[: args.limit]:
            if any((row["part"], row["label"]) == (run["part"], run["label"]) for row in kept):
                continue
            command = [sys.executable, __file__, "--worker", json.dumps(run), "--bundle", str(args.bundle)]
            command += ["--threads", str(args.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{run['label']}: {done.stderr.strip()}")
            kept.append({"part": run["part"], "label": run["label"], "found": json.loads(done.stdout)})
            console.print(f"{run['part']}, {run['label']}: {kept[-1]['found']['reason']}", markup=False)
            kept.sort(key=lambda row: order.index((row["part"], row["label"])))
            save_result("enroll", result, args.output)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
