"""What a bundle is worth: word error rate, latency and size on a set, alone or beside another model.

    bundle, manifest -> wer.evaluate -> report (a dict for JSON) -> tables

The other model is a bundle, or a source whose original runs in torch on its 30 s window; the difference of
the two comes with its interval (wer.py counts).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from whisperfold.compiler.manifests import Item, read_items
from whisperfold.compiler.wer import Evaluation, Transcribe, evaluate, paired_bootstrap
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.decoding_options import PLAIN_GREEDY, DecodingOptions
from whisperfold.runtime.transcribe import Transcriber

_LOG = logging.getLogger(__name__)
_WINDOW = 30 * SAMPLE_RATE
"""Samples in the original's window; a longer clip is cut into such pieces."""


def verify(
    bundle_path: str | Path,
    manifest: str | Path,
    against: str | Path | None = None,
    *,
    vad: bool = True,
    plain: bool = False,
    beam_size: int = DecodingOptions.beam_size,
    threads: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a bundle on a manifest, and beside another model if `against` names one.

    Args:
        bundle_path: bundle directory.
        manifest: JSON lines with transcripts, or a directory of audio with .txt files.
        against: another bundle directory, or a source (short name, hub id, checkpoint directory) whose
            original model is run in torch on its 30 s window.
        vad: True measures what a user gets; False one window per clip, without the speech detector.
        plain: one window per clip, greedy without fallback and guards: what parity is measured with.
        beam_size: of bundles; 1 is greedy, as the original in torch.
        threads: of onnxruntime, None for this process's CPUs, at most 4.
        console: shows progress, None for none.

    Returns:
        {"set", "vad", "model": {figures, "clips"}, "against": the same, "difference": {"points", "low", ..}},
        JSON-ready; the last two only with `against`.

    Raises:
        BundleError: no bundle at bundle_path, or a damaged one.
        CompileError: the manifest cannot be read.
        SourceError: `against` is neither a bundle nor a checkpoint that can be had.
    """
    items = read_items(manifest)
    model, evaluation = _measure(_bundle_model(bundle_path, vad, plain, threads, beam_size), items, console)
    report: dict[str, Any] = {"set": str(manifest), "vad": vad and not plain, "model": model}
    if against is not None:
        is_bundle = (Path(against) / "manifest.json").is_file()
        other = _bundle_model(against, vad, plain, threads, beam_size) if is_bundle else _source_model(against)
        report["against"], baseline = _measure(other, items, console)
        if evaluation.wer is not None:
            difference, low, high = paired_bootstrap(evaluation, baseline)
            report["difference"] = {
                "points": round(difference, 3),
                "low": round(low, 3),
                "high": round(high, 3),
                "interval": "95 % paired bootstrap over utterances, 10000 resamples, seed 0",
            }
    return report


@dataclass(frozen=True)
class _Model:
    """A thing to measure: what it says about itself, and how it transcribes."""

    facts: dict[str, Any]
    transcribe: Transcribe


def _bundle_model(path: str | Path, vad: bool, plain: bool, threads: int | None, beam_size: int) -> _Model:
    """Open a bundle the way a user does."""
    bundle = Bundle.open(Path(path))
    transcriber = Transcriber.open(bundle.path, threads=threads)

    options = PLAIN_GREEDY if plain else DecodingOptions(beam_size=beam_size)

    def transcribe(samples: np.ndarray) -> str:
        if vad and not plain:
            return transcriber.transcribe(samples, beam_size=beam_size).text
        return transcriber.transcribe_window(samples, options).text

    name = f"{bundle.manifest.get('name', bundle.path.name)} ({bundle.manifest.get('precision', '?')} bundle)"
    return _Model({"name": name, "path": str(path), "kind": "bundle", "bytes": bundle.size_bytes}, transcribe)


def _source_model(source: str | Path) -> _Model:
    """Load the original checkpoint in torch, 30 s window, greedy."""
    from whisperfold.compiler.reference import OriginalTranscriber
    from whisperfold.models.sources import load_source

    checkpoint = load_source(str(source))
    original = OriginalTranscriber(checkpoint)

    def transcribe(samples: np.ndarray) -> str:
        windows = [samples[start : start + _WINDOW] for start in range(0, len(samples), _WINDOW)]
        return " ".join(original.transcribe_window(window) for window in windows)

    n_bytes = sum(f.stat().st_size for f in checkpoint.path.iterdir() if f.suffix in {".bin", ".safetensors"})
    name = f"{Path(source).name} (original, 30 s)"
    facts = {"name": name, "path": str(source), "kind": "source", "bytes": n_bytes}
    return _Model(facts, transcribe)


def _measure(model: _Model, items: list[Item], console: Console | None) -> tuple[dict[str, Any], Evaluation]:
    """Evaluate one model; return its JSON section and the evaluation."""
    total = sum(item.text is not None for item in items)
    if console is None:
        evaluation = evaluate(model.transcribe, items)
    else:
        with console.status(model.facts["name"]) as status:
            name = model.facts["name"]
            evaluation = evaluate(model.transcribe, items, lambda n: status.update(f"{name}: {n} of {total} clips"))
    _LOG.info("model=%s wer=%s rtf=%.3f", model.facts["name"], evaluation.wer, evaluation.rtf)
    clips = [
        {"name": u.name, "speaker": u.speaker, "duration_s": round(u.duration_s, 3),
         "latency_s": round(u.latency_s, 4), "errors": u.errors, "words": u.words,
         "reference": u.reference, "hypothesis": u.hypothesis}
        for u in evaluation.utterances + evaluation.noise
    ]  # fmt: skip
    return {**model.facts, **evaluation.to_dict(), "clips": clips}, evaluation


def print_report(report: dict[str, Any], console: Console, worst: int = 0) -> None:
    """Print verify()'s report as tables; `worst` clips with the most errors are shown word by word."""
    models = [report[key] for key in ("model", "against") if key in report]
    table = Table(title=f"{Path(report['set']).name}, {'with' if report['vad'] else 'without'} speech detector")
    table.add_column("")
    for model in models:
        table.add_column(model["name"], justify="right")
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("WER %", lambda m: _shown(m["wer"], "{:.2f}")),
        ("word errors / words", lambda m: f"{m['errors']} / {m['words']}"),
        ("clips", lambda m: str(m["utterances"])),
        ("median latency, ms", lambda m: f"{1000 * m['latency_median_s']:.0f}"),
        ("real-time factor", lambda m: f"{m['rtf']:.3f}"),
        ("size, MB", lambda m: _shown(m["bytes"] and m["bytes"] / 1e6, "{:.1f}")),
    ]
    if models[0]["noise_clips"]:
        rows.append(("clips without speech: gave text", lambda m: f"{m['noise_with_text']} of {m['noise_clips']}"))
    for label, cell in rows:
        table.add_row(label, *(cell(m) for m in models))
    speakers = models[0]["wer_by_speaker"]
    for speaker in speakers if len(speakers) > 1 else ():
        table.add_row(f"  WER % of {speaker}", *(_shown(m["wer_by_speaker"].get(speaker), "{:.2f}") for m in models))
    console.print(table)
    if "difference" in report:
        d = report["difference"]
        verdict = "not distinguishable" if d["low"] <= 0 <= d["high"] else "a real difference"
        interval = f"95 % interval [{d['low']:+.2f}, {d['high']:+.2f}]"
        console.print(f"difference {d['points']:+.2f} points, {interval}: {verdict}", markup=False, highlight=False)
    for clip in sorted(models[0]["clips"], key=lambda c: -c["errors"])[:worst]:
        if clip["errors"]:
            texts = f"  said  {clip['reference']}\n  heard {clip['hypothesis']}"
            summary = f"{clip['name']}: {clip['errors']} errors of {clip['words']} words"
            console.print(f"{summary}\n{texts}", markup=False, highlight=False)


def _shown(value: float | None, form: str) -> str:
    """Format a figure, or a dash where there is none."""
    return "-" if value is None else form.format(value)
