"""The commands `whisperfold compile`, `study` and `verify`; heavy imports inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from whisperfold.runtime.decoding_options import DecodingOptions


def compile_command(
    source: Annotated[
        str | None, typer.Argument(help="Checkpoint: directory, hub id or short name (tiny.en, base).")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Bundle directory to write.")] = None,
    audio: Annotated[
        list[str] | None, typer.Option(help="Speech to heal on: JSON lines or a folder; repeatable.")
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="Labelled recordings of one person to adapt to.")] = None,
    verify: Annotated[list[str] | None, typer.Option(help="Set with transcripts to measure after every stage.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="80% of the encoder layers, a bundle size such as 38MB, or both: 55%,50MB.")
    ] = None,
    max_wer: Annotated[
        float | None, typer.Option(help="Instead of a budget: points of WER that a set may lose before healing.")
    ] = None,
    window: Annotated[str | None, typer.Option(help="short or full (30 s).")] = None,
    precision: Annotated[str | None, typer.Option(help="int8, mixed (4-bit token embedding) or fp32.")] = None,
    vocabulary: Annotated[str | None, typer.Option(help="all, or languages to keep the tokens of: en,de.")] = None,
    heal_epochs: Annotated[
        float | None, typer.Option(help="Passes of the healing for short windows; 0: no healing at all.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; flags go before it.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of stage artefacts; default BUNDLE.work.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
) -> None:
    """Make a bundle from a Whisper checkpoint; run again, it goes on where it was stopped."""
    from rich.console import Console

    from whisperfold.compiler.config import load_config
    from whisperfold.compiler.pipeline import compile_bundle

    flags: dict[str, Any] = {
        "source": source,
        "audio": audio or None,
        "speaker": speaker,
        "verify": verify or None,
        "budget": budget,
        "max_wer": max_wer,
        "window": window,
        "precision": precision,
        "vocabulary": vocabulary,
        "heal_epochs": heal_epochs,
        "revision": revision,
    }
    settings = load_config(config, **flags)
    output = output or Path(f"{Path(settings.source).name}.bundle")
    console = Console(stderr=True)
    work = work or output.with_name(output.name + ".work")
    try:
        bundle = compile_bundle(settings, output, work, console, offline=offline)
    except KeyboardInterrupt:
        console.print(f"stopped; the same command goes on from {work}")
        raise typer.Exit(130) from None
    console.print(f"{bundle.path}: {bundle.size_bytes / 1e6:.1f} MB, report in {bundle.path / 'report.html'}")


def study_command(
    config: Annotated[Path, typer.Option(help="TOML file: recipe, methods, budgets.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for study.md, study.html, study.jsonl.")],
    work: Annotated[Path | None, typer.Option(help="Folder of artefacts, as for compile; default SOURCE.work.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only such cells: METHOD, BUDGET, cut or healed, or several with commas.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Only write the table and the page anew.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
) -> None:
    """Compare all ways of cutting the encoder, before and after healing; run again, it goes on."""
    from rich.console import Console

    from whisperfold.compiler.study import run_study, write_study
    from whisperfold.compiler.study_config import load_study

    settings = load_study(config)
    if report:
        write_study(settings, output)
        return
    console = Console(stderr=True)
    work = work or Path(f"{Path(settings.recipe.source).name}.work")
    try:
        table = run_study(settings, output, work, console, only=tuple(only or ()), offline=offline)
    except KeyboardInterrupt:
        console.print(f"stopped; the same command goes on from {work}")
        raise typer.Exit(130) from None
    console.print(f"{table}, {table.with_suffix('.html')}")


def verify_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory, or the name of a packaged one.")],
    set_: Annotated[Path, typer.Option("--set", help="JSON lines with transcripts, or a folder with .txt files.")],
    against: Annotated[str | None, typer.Option(help="A source or another bundle to compare with.")] = None,
    vad: Annotated[bool, typer.Option("--vad/--no-vad", help="With the speech detector, as a user gets it.")] = True,
    plain: Annotated[
        bool, typer.Option("--plain", help="Greedy, one window per clip, no fallback and guards: for parity.")
    ] = False,
    beam_size: Annotated[
        int, typer.Option(min=1, help="Hypotheses of a bundle's search; 1 is greedy, as an original is here.")
    ] = DecodingOptions.beam_size,
    threads: Annotated[
        int | None, typer.Option(help="Threads of onnxruntime; default: this process's CPUs, at most 4.")
    ] = None,
    worst: Annotated[int, typer.Option(help="Show so many of the worst clips.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a bundle: word error rate, latency, size; two models with a paired bootstrap interval."""
    from rich.console import Console

    from whisperfold.compiler.verify import print_report, verify

    console = Console(stderr=True)
    report = verify(bundle, set_, against, vad=vad, plain=plain, beam_size=beam_size, threads=threads, console=console)
    if as_json:
        typer.echo(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print_report(report, Console(), worst)
