"""Streaming: latency from word to commit and from utterance to final, WER of the committed text, load.

    python tests/bench/stream.py [--bundle DIR] [--sets NAME ...] [--threads 2 1] [--policy NAME ...]

Consecutive utterances of a speaker are joined into one recording and played in chunks of 0.1 s on a virtual clock:
a chunk arrives when its last sample would have been spoken, processing takes the time that it really takes, and what
arrives meanwhile waits and is handed over as one chunk. So the latencies are those of real time, without its waiting.

Word ends are those of the offline transcript of each utterance (cross-attention alignment); ends of utterances are
those of the speech detector in the joined recording.
"""

from __future__ import annotations

import argparse
import difflib
import json
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from machine import DEFAULT_BUNDLE, DEFAULT_SPEECH, RESULTS, describe_bundle, describe_machine, save_result
from rich.progress import track
from whisper_normalizer.english import EnglishTextNormalizer

from whisperfold.runtime.audio import SAMPLE_RATE, load_audio
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.stream_options import StreamOptions
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.transcript import Word

SETS = ("librispeech-other-dev", "accented-check")
CHUNK_SAMPLES = SAMPLE_RATE // 10
POLICIES = {
    "attention-frontier": StreamOptions(policy="attention-frontier"),
    "local-agreement": StreamOptions(policy="local-agreement"),
    "whisper_streaming": StreamOptions(
        policy="local-agreement",
        step_s=1.0,
        load=1.0,
        pause_s=0.5,
        sentence_end_s=0.5,
        utterance_end_s=0.5,
        window_s=15.0,
        context_s=0.0,
        frontier_s=0.0,
    ),
}
"""The last one: LocalAgreement-2 in steps of 1 s, a window up to 15 s, the end after 0.5 s of quiet (its --vac)."""
NORMALISE = EnglishTextNormalizer()


@dataclass
class Recording:
    """Joined utterances of one speaker."""

    name: str
    samples: np.ndarray
    reference: str
    words: list[Word]
    """Of the offline transcript, times in the joined recording."""


@dataclass
class Run:
    """What one pass over one recording gave."""

    final_text: str = ""
    commits: list[tuple[str, float]] = field(default_factory=list)
    """(word, virtual time at which it was committed)."""
    final_delays_s: list[float] = field(default_factory=list)
    busy_s: float = 0.0
    changed_commits: int = 0
    hypotheses: int = 0


def join_utterances(manifest: Path, transcriber: Transcriber) -> list[Recording]:
    """Return one recording per speaker, in the order of the manifest's names."""
    entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    recordings = []
    for speaker in sorted({str(entry["speaker"]) for entry in entries}):
        own = sorted((e for e in entries if str(e["speaker"]) == speaker), key=lambda e: e["audio"])
        clips, words, offset_s = [], list[Word](), 0.0
        for entry in own:
            clip = load_audio(manifest.parent / entry["audio"])
            for segment in transcriber.transcribe(clip, word_timestamps=True, beam_size=1).segments:
                words += [Word(w.start_s + offset_s, w.end_s + offset_s, w.text, w.probability) for w in segment.words]
            clips.append(clip)
            offset_s += clip.size / SAMPLE_RATE
        text = " ".join(entry["text"] for entry in own)
        recordings.append(Recording(f"{manifest.stem} {speaker}", np.concatenate(clips), text, words))
    return recordings


def play(recording: Recording, transcriber: Transcriber, options: StreamOptions) -> Run:
    """Stream a recording on the virtual clock."""
    session, run = transcriber.stream(options), Run()
    samples, clock_s, position = recording.samples, 0.0, 0
    committed: dict[int, str] = {}
    while position < samples.size:
        arrived = int(clock_s * SAMPLE_RATE) // CHUNK_SAMPLES * CHUNK_SAMPLES
        end = min(samples.size, max(position + CHUNK_SAMPLES, arrived))
        clock_s = max(clock_s, end / SAMPLE_RATE)
        started_s = time.perf_counter()
        events = session.accept_chunk(samples[position:end])
        if end == samples.size:
            events += session.finish()
        took_s = time.perf_counter() - started_s
        clock_s, run.busy_s, position = clock_s + took_s, run.busy_s + took_s, end
        for event in events:
            note(event, clock_s, committed, run)
    return run


def note(event: StreamEvent, clock_s: float, committed: dict[int, str], run: Run) -> None:
    """Keep what an event commits, and when."""
    before = committed.get(event.utterance, "")
    if not event.committed.startswith(before):
        run.changed_commits += 1
    run.commits += [(word, clock_s) for word in event.committed[len(before) :].split()]
    committed[event.utterance] = event.committed
    if event.kind == "final":
        run.final_text += " " + event.committed
        run.final_delays_s.append(clock_s - event.end_s)


def word_delays_s(recording: Recording, run: Run) -> list[float]:
    """Seconds from the end of a word to its commit, for every word that the offline transcript has too."""
    spoken = [(bare(word.text), word.end_s) for word in recording.words]
    written = [(bare(word), time_s) for word, time_s in run.commits]
    matcher = difflib.SequenceMatcher(None, [w for w, _ in spoken], [w for w, _ in written], autojunk=False)
    return [
        written[block.b + i][1] - spoken[block.a + i][1]
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]


def bare(word: str) -> str:
    """Lower case without punctuation."""
    return "".join(c for c in word.lower() if c.isalnum())


def wer(references: list[str], hypotheses: list[str]) -> float:
    """Corpus WER in percent, with Whisper's English normaliser."""
    return 100.0 * float(jiwer.wer([NORMALISE(r) for r in references], [NORMALISE(h) for h in hypotheses]))


def measure(
    name: str, options: StreamOptions, recordings: list[Recording], transcriber: Transcriber
) -> tuple[dict[str, Any], list[str]]:
    """Play all recordings with one policy."""
    runs = [play(r, transcriber, options) for r in track(recordings, name, transient=True)]
    words = [delay for r, run in zip(recordings, runs, strict=True) for delay in word_delays_s(r, run)]
    finals = [delay for run in runs for delay in run.final_delays_s]
    audio_s = sum(r.samples.size for r in recordings) / SAMPLE_RATE
    row = {
        "policy": name,
        "threads": transcriber.engine.threads,
        "word_s": quantiles(words),
        "final_s": quantiles(finals),
        "words": len(words),
        "finals": len(finals),
        "rtf": sum(run.busy_s for run in runs) / audio_s,
        "wer": wer([r.reference for r in recordings], [run.final_text for run in runs]),
        "changed_commits": sum(run.changed_commits for run in runs),
    }
    return row, [run.final_text for run in runs]


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"median": statistics.median(values), "p95": float(np.percentile(values, 95))} if values else {}


def markdown(result: dict[str, Any]) -> str:
    """One row per policy and number of threads."""
    lines = [
        "| policy | threads | word to commit, median / p95, s | utterance to final, median / p95, s | RTF | WER, % | "
        "changed commits |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["runs"]:
        word, final = row["word_s"], row["final_s"]
        lines.append(
            f"| {row['policy']} | {row['threads']} | {word['median']:.2f} / {word['p95']:.2f} "
            f"| {final['median']:.2f} / {final['p95']:.2f} | {row['rtf']:.3f} | {row['wer']:.2f} "
            f"| {row['changed_commits']} |"
        )
    lines.append(f"| offline | {result['runs'][0]['threads']} | - | - | - | {result['offline_wer']:.2f} | - |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write results/stream.json; 1 when a commit has changed."""
    parser = argparse.ArgumentParser(description="latency and WER of the live path")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--speech", type=Path, default=DEFAULT_SPEECH, help="folder of the manifests")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--policy", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--limit", type=int, default=None, help="first N recordings of each set")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="FIELD=VALUE", help="StreamOptions")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    args = parser.parse_args(arguments)
    machine, changes = describe_machine(), {k: float(v) for k, v in (pair.split("=", 1) for pair in args.overrides)}
    reader = Transcriber.open(args.bundle, threads=2)
    recordings = [r for name in args.sets for r in join_utterances(args.speech / f"{name}.jsonl", reader)[: args.limit]]
    offline = [reader.transcribe(r.samples, beam_size=1).text for r in recordings]
    rows = []
    for threads in args.threads:
        transcriber = reader if threads == 2 else Transcriber.open(args.bundle, threads=threads)
        for name in args.policy:
            options = replace(POLICIES[name], **changes)
            rows.append(measure(name, options, recordings, transcriber)[0])
            print(markdown({"runs": rows[-1:], "offline_wer": 0.0}).splitlines()[2], file=sys.stderr, flush=True)
    result = {
        "benchmark": "stream",
        "machine": machine,
        "bundle": describe_bundle(args.bundle),
        "sets": args.sets,
        "recordings": len(recordings),
        "audio_s": sum(r.samples.size for r in recordings) / SAMPLE_RATE,
        "chunk_s": CHUNK_SAMPLES / SAMPLE_RATE,
        "offline_wer": wer([r.reference for r in recordings], offline),
        "runs": rows,
    }
    print(markdown(result))
    print(f"\n{save_result('stream', result, args.output)}", file=sys.stderr)
    return int(any(row["changed_commits"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
