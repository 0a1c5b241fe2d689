"""Speed and memory beside faster-whisper and whisper.cpp: the same weights, the same clips, one run.

    python tests/bench/speed.py [--bundle DIR] [--clips 20] [--repeats 5] [--threads 2]

Every system is a process of its own (worker.py). After a warm-up, for every repeat and clip all systems take
their turn in shuffled order, so a slow moment of the machine hits them alike. Reported per clip is the
minimum and the median over the repeats, per system the median over the clips and the peak RSS.
This process stays small on purpose: it imports no model code.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine import (
    DEFAULT_BUNDLE,
    DEFAULT_SPEECH,
    RESULTS,
    describe_bundle,
    describe_machine,
    has_dot_product,
    save_result,
)

HERE = Path(__file__).resolve().parent
SEED = 7
REST_S = 0.05
"""Between two clips: waiting threads of onnxruntime and OpenMP stop spinning before the next is timed."""
OURS = "whisperfold"
GREEDY = {"temperatures": [0.0], "beam_size": 1}
"""Our decoding options: one beam, and no fallback."""


@dataclass
class Worker:
    """A system's process, and what it has answered so far: clip name -> seconds of each repeat."""

    label: str
    process: subprocess.Popen[str]
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_seconds: dict[str, list[float]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    peak_rss_bytes: int = 0

    @classmethod
    def start(cls, label: str, python: str, options: dict[str, Any], folder: Path) -> Worker:
        """Start a worker and wait until its model is loaded."""
        log = folder / f"{label.replace(' ', '-').replace('/', '-')}.log"
        command = [python, str(HERE / "worker.py"), json.dumps(options)]
        with log.open("w") as stderr:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
        worker = cls(label, process, log)
        worker.ready = worker._answer()
        return worker

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request, wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
            raise SystemExit(f"{self.label}: the worker ended with status {self.process.wait()}\n{tail}")
        return dict(json.loads(line))

    def run(self, clip: dict[str, Any], keep: bool = True) -> None:
        """Transcribe one clip; `keep` False for the warm-up."""
        answer = self.ask({"audio": clip["audio"]})
        if keep:
            self.seconds.setdefault(clip["name"], []).append(answer["seconds"])
            self.cpu_seconds.setdefault(clip["name"], []).append(answer["cpu_seconds"])
            self.texts[clip["name"]] = answer["text"]

    def stop(self) -> None:
        """Ask for the peak memory and let the process end."""
        self.peak_rss_bytes = self.ask({"quit": True})["peak_rss_bytes"]
        self.process.wait(timeout=30)


def choose_clips(manifest: Path, n: int, shortest_s: float, longest_s: float) -> list[dict[str, Any]]:
    """Return n clips of the given length, spread evenly over those of the manifest, in file order."""
    entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    fitting = [e for e in entries if shortest_s <= e["duration_s"] <= longest_s and e.get("text")]
    if len(fitting) < n:
        raise SystemExit(
            f"{manifest}: {len(fitting)} clips of {shortest_s}-{longest_s} s, expected at least {n}; lower --clips"
        )
    chosen = [fitting[i * len(fitting) // n] for i in range(n)]
    return [{**e, "name": Path(e["audio"]).stem, "audio": str(manifest.parent / e["audio"])} for e in chosen]


def convert_weights(source: str, folder: Path) -> dict[str, Any]:
    """Fetch the original checkpoint and write whisper.cpp's files, in a process that may need torch."""
    files = {kind: folder / f"ggml-{kind}.bin" for kind in ("f16", "q8_0")}
    command = [
        sys.executable,
        str(HERE / "ggml.py"),
        source,
        *(f"{path}:{kind}" for kind, path in files.items()),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ggml.py {source} failed:\n{done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "ggml": {k: str(v) for k, v in files.items()}}


def start_workers(args: argparse.Namespace, folder: Path) -> tuple[list[Worker], dict[str, Any]]:
    """Start all systems; ours first."""
    weights = convert_weights(args.source, folder)
    threads = {"threads": args.threads}
    ggml = weights["ggml"]
    systems: list[tuple[str, str, dict[str, Any]]] = [
        (OURS, sys.executable,
         {"system": "whisperfold", "model": str(args.bundle), "decoding": GREEDY, **threads}),
        ("faster-whisper int8", args.rivals_python,
         {"system": "faster-whisper", "model": weights["path"], **threads}),
        ("whisper.cpp f16", args.rivals_python, {"system": "whisper.cpp", "model": ggml["f16"], **threads}),
        ("whisper.cpp f16, audio_ctx", args.rivals_python,
         {"system": "whisper.cpp", "model": ggml["f16"], "audio_ctx": True, **threads}),
        ("whisper.cpp q8_0", args.rivals_python, {"system": "whisper.cpp", "model": ggml["q8_0"], **threads}),
        ("whisper.cpp q8_0, audio_ctx", args.rivals_python,
         {"system": "whisper.cpp", "model": ggml["q8_0"], "audio_ctx": True, **threads}),
    ]  # fmt: skip
    return [Worker.start(label, python, options, folder) for label, python, options in systems], weights


def measure(workers: list[Worker], clips: list[dict[str, Any]], repeats: int) -> None:
    """Warm up, then let every system take every clip `repeats` times."""
    order = random.Random(SEED)
    for worker in workers:
        for clip in (clips[0], clips[-1]):
            worker.run(clip, keep=False)
    for repeat in range(repeats):
        for clip in clips:
            for worker in order.sample(workers, len(workers)):
                time.sleep(REST_S)
                worker.run(clip)
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr)
    for worker in workers:
        worker.stop()


def summarize(workers: list[Worker], clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per system; `times_slower` compares the medians over clips with ours."""
    from jiwer import process_words
    from whisper_normalizer.english import EnglishTextNormalizer

    normalize = EnglishTextNormalizer()
    rows = []
    for worker in workers:
        references = [normalize(clip["text"]) for clip in clips]
        hypotheses = [normalize(worker.texts[clip["name"]]) for clip in clips]
        medians = {name: statistics.median(values) for name, values in worker.seconds.items()}
        minima = {name: min(values) for name, values in worker.seconds.items()}
        cpu = [statistics.median(values) for values in worker.cpu_seconds.values()]
        audio_s = sum(clip["duration_s"] for clip in clips)
        rows.append({
            "system": worker.label,
            "median_s": statistics.median(medians.values()),
            "median_of_minima_s": statistics.median(minima.values()),
            "cpu_median_s": statistics.median(cpu),
            "rtf": sum(medians.values()) / audio_s,
            "load_s": worker.ready["load_s"],
            "rss_loaded_bytes": worker.ready["rss_bytes"],
            "peak_rss_bytes": worker.peak_rss_bytes,
            "wer": 100 * process_words(references, hypotheses).wer,
            "versions": worker.ready["versions"],
            "clips": [{"name": c["name"], "duration_s": c["duration_s"], "min_s": minima[c["name"]],
                       "median_s": medians[c["name"]], "text": worker.texts[c["name"]]} for c in clips],
        })  # fmt: skip
    ours = rows[0]["median_s"]
    for row in rows:
        row["times_slower"] = row["median_s"] / ours
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The table of the README and docs/benchmarks.md."""
    lines = [
        "| system | per clip, ms | minima, ms | times ours | CPU time, ms | RTF | peak RSS, MB | WER, % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["systems"]:
        lines.append(
            f"| {row['system']} | {1000 * row['median_s']:.0f} | {1000 * row['median_of_minima_s']:.0f} "
            f"| {row['times_slower']:.1f} | {1000 * row['cpu_median_s']:.0f} | {row['rtf']:.3f} "
            f"| {row['peak_rss_bytes'] / 1e6:.0f} | {row['wer']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, print its table, write results/speed.json or speed_without_dot_product.json."""
    parser = argparse.ArgumentParser(description="speed and memory beside faster-whisper and whisper.cpp")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--source", default="tiny.en", help="the original checkpoint that the rivals run")
    parser.add_argument("--speech", type=Path, default=DEFAULT_SPEECH / "librispeech-other-dev.jsonl", help="manifest")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, nargs=2, default=(3.0, 8.0), metavar=("MIN", "MAX"))
    parser.add_argument(
        "--rivals-python", default=sys.executable, help="interpreter with faster-whisper and pywhispercpp"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(arguments)
    machine = describe_machine()
    if machine["load_average_1_min"] > 0.5:
        print(
            f"load average {machine['load_average_1_min']}: the machine is busy, do not quote these figures",
            file=sys.stderr,
        )
    clips = choose_clips(args.speech, args.clips, *args.seconds)
    with tempfile.TemporaryDirectory() as scratch:
        workers, weights = start_workers(args, Path(scratch))
        measure(workers, clips, args.repeats)
    result = {
        "benchmark": "speed",
        "machine": machine,
        "threads": args.threads,
        "repeats": args.repeats,
        "clips": len(clips),
        "clip_seconds": [min(c["duration_s"] for c in clips), max(c["duration_s"] for c in clips)],
        "set": args.speech.name,
        "decoding": "greedy, temperature 0 without fallback, no timestamps; file reading not timed",
        "bundle": describe_bundle(args.bundle),
        "source": weights["provenance"],
        "systems": summarize(workers, clips),
    }
    path = save_result("speed" if has_dot_product(machine) else "speed_without_dot_product", result, args.output)
    print(markdown(result))
    print(f"\n{path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
