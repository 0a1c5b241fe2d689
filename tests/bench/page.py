"""results/*.json -> docs/benchmarks.md: the page is never edited by hand. Run: python tests/bench/page.py"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import speed
from machine import RESULTS, ROOT, has_dot_product

PAGE = ROOT / "docs" / "benchmarks.md"


def hardware(machine: dict[str, Any], *bundles: dict[str, Any]) -> str:
    """A sentence on the machine and one on every bundle."""
    described = (
        f" Bundle `{bundle['name']}`: {bundle['precision']}, {bundle['window']} window, "
        f"{bundle['bytes'] / 1e6:.1f} MB, manifest SHA-256 `{bundle['manifest_sha256'][:16]}`."
        for bundle in bundles
    )
    return computer(machine) + "".join(described)


def computer(machine: dict[str, Any]) -> str:
    """One sentence on the machine."""
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else ""
    busy = machine["load_average_1_min"] > 0.5
    load = f"; **load average {machine['load_average_1_min']} at the start: the machine was busy**" if busy else ""
    features = f" ({', '.join(machine['cpu_features'])})" if machine.get("cpu_features") else ""
    return (
        f"{machine['cpu']}{features}, {machine['cores']} cores{memory}, {machine['system']}, "
        f"Python {machine['python']}, "
        f"{machine['date']}{load}."
    )


def speed_section(result: dict[str, Any]) -> str:
    """Heading, conditions, table, versions."""
    versions = {k: v for row in result["systems"] for k, v in row["versions"].items()}
    low, high = result["clip_seconds"]
    kind = "" if has_dot_product(result["machine"]) else " without an 8-bit dot product"
    return (
        f"## Speed and memory{kind}\n\n{hardware(result['machine'], result['bundle'])}\n\n"
        f"{result['clips']} clips of {low:.1f}-{high:.1f} s from {result['set']}, "
        f"{result['threads']} threads, "
        f"{result['repeats']} repeats, all systems in one run taking turns clip by clip, each in "
        "its own process; ours runs its speech detector too. "
        f"Weights: {result['source']['name']} ({result['source']['origin']}), "
        "the same for all; ours are folded. "
        f"Decoding: {result['decoding']}. Per clip the median and the minimum over the repeats, "
        "shown is their median "
        f"over the clips; RTF = processing / audio time; peak RSS of the whole process, Python included.\n\n"
        f"{speed.markdown(result)}\n\n"
        f"Versions: {', '.join(f'{k} {v}' for k, v in sorted(versions.items()))}. "
        "whisper.cpp's `audio_ctx` is clip seconds / 30 * 1500 + 128.\n"
    )


def wer_section(result: dict[str, Any]) -> str:
    """Heading, conditions, tables."""
    import wer

    bundles = [measured["bundle"] for measured in result["bundles"]]
    limit = f" **Only the first {result['limit']} utterances of each set.**" if result["limit"] else ""
    return (
        f"## Word error rate\n\n{hardware(result['machine'], *bundles)}\n\n"
        f"Corpus WER after {result['normalizer']}, speech detector {'on' if result['vad'] else 'off'}; "
        "the original is "
        "the uncut checkpoint in torch on its 30 s window, greedy, and the difference is that of the bundle's greedy "
        "search; what ships keeps three beams. The interval is a paired bootstrap "
        "over utterances "
        f"(10,000 resamples). None of these sets is used for calibration or healing.{limit}\n\n"
        f"{wer.markdown(result)}\n"
    )


def stream_section(result: dict[str, Any]) -> str:
    """Heading, conditions, table."""
    import stream

    return (
        f"## Streaming\n\n{hardware(result['machine'], result['bundle'])}\n\n"
        f"{result['recordings']} recordings ({result['audio_s']:.0f} s) of joined consecutive utterances of one "
        f"speaker, {', '.join(result['sets'])}, in chunks of {result['chunk_s']:g} s on a virtual clock: processing "
        "takes the time that it takes, waiting takes none. Word ends are those of the offline transcript's alignment, "
        "ends of utterances those of the speech detector; all is greedy. `whisper_streaming` is its policy "
        f"(LocalAgreement-2, steps of 1 s, 0.5 s of quiet) on the same bundle.\n\n{stream.markdown(result)}\n"
    )


def soak_section(result: dict[str, Any]) -> str:
    """Heading, conditions, table."""
    import soak

    return (
        f"## Soak\n\n{hardware(result['machine'], result['bundle'])}\n\n"
        f"One live stream, {result['threads']} threads, as fast as it goes: rounds of {soak.SPEECH_S} s of speech, "
        f"{soak.SILENCE_S} s of silence, {soak.NOISE_S} s of noise.\n\n{soak.markdown(result)}\n"
    )


def enroll_section(result: dict[str, Any]) -> str:
    """Heading, conditions, tables."""
    import enroll

    return (
        f"## Enrollment\n\n{hardware(result['machine'], result['bundle'])}\n\n"
        f"{result['threads']} threads, greedy search; WER after {result['normalizer']}. Time and peak RSS are those of "
        "the whole enrollment: checks, cross-validation, adaptation, test on other speakers, profile. *taken* is what "
        "the device decided by itself, from the person's recordings (each heard by an adapter that was not trained on "
        "it) and the packaged clips of other speakers; the test sets had no part in that. The recipe was found with "
        "the accented sets and with speakers of nonnative-train; the speakers of nonnative-dev had no part in it.\n\n"
        f"{enroll.markdown(result)}\n"
    )


def graphs_section(result: dict[str, Any]) -> str:
    """Heading, conditions, tables."""
    import graphs

    conditions = hardware(result["machine"], next(iter(result["bundles"].values())))
    return (
        f"## Graphs and decoder steps\n\n{conditions}\n\n"
        f"onnxruntime {result['onnxruntime']}, {result['threads']} threads, {result['repeats']} repeats in which all "
        "models take turns. Beside the bundle, models of random weights whose decoder's head widths (self and cross, "
        "Q-K and V-O) are a share of the original's; their projections shrink with them, so a step gains from both.\n"
        f"{graphs.markdown(result)}\n"
    )


def compile_section(result: dict[str, Any]) -> str:
    """Heading, conditions, table."""
    import compile_cost

    return (
        f"## What a compile costs\n\n{computer(result['machine'])}\n\n"
        f"Budget {result['budget']}; {compile_cost.N_UTTERANCES} of the utterances that ship in the package are taught "
        f"and learned, {compile_cost.N_BATCHES} batches of 48 s for the refit: seconds grow with the speech, peaks "
        "with the model and the batch. Each model in a process of its own, whose peak is reset before every stage.\n\n"
        f"{compile_cost.markdown(result)}\n"
    )


def healing_section(result: dict[str, Any]) -> str:
    """Heading, conditions, table."""
    import healing

    return (
        f"## Healing\n\n{computer(result['machine'])}\n\n"
        f"`{result['recipe']}` at {result['budget']} of the encoder's layers, refitted; then what the first column "
        "says. WER of whole clips before and after 8 and 4 bits; the person is that of accented-check, of whom other "
        f"recordings are learned in the last two rows.\n\n{healing.markdown(result)}\n"
    )


SECTIONS = {
    "speed": speed_section,
    "speed_without_dot_product": speed_section,
    "stream": stream_section,
    "soak": soak_section,
    "wer": wer_section,
    "enroll": enroll_section,
    "graphs": graphs_section,
    "compile_cost": compile_section,
    "healing": healing_section,
}


def render(folder: Path) -> str:
    """Return the page of all results that are there."""
    parts = ["# Benchmarks\n\nWritten by tests/bench/page.py from tests/bench/results/*.json; do not edit.\n"]
    for name, section in SECTIONS.items():
        path = folder / f"{name}.json"
        if path.is_file():
            parts.append(section(json.loads(path.read_text(encoding="utf-8"))))
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description="docs/benchmarks.md from the results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(arguments)
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text(render(args.results), encoding="utf-8")
    print(args.page, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
