"""The compiler's flow: checkpoint -> twins -> healed -> (adapted) -> folded -> ONNX bundle (verified).

Each stage leaves its artefact in the work folder; one whose inputs are unchanged is skipped.

    teach      the original at 30 s says what the speech is                          teacher.safetensors
    student    fewer decoder layers learn to say it (only where asked for)           student.safetensors
    window     the uncut model learns to say it at a short window, folded            windowed.safetensors
    calibrate  second moments of that model                                          moments.safetensors
    measure    the KL of each candidate cut (where a budget or max_wer asks for any) measure.json
    factorize  budget -> widths -> cut model                                         cut.safetensors
    refit      the cut encoder's output projections, in closed form                  refitted.safetensors
    frames     the cut encoder learns the uncut one's frames and words               framed.safetensors
    heal       end to end with LoRA, folded                                          healed.safetensors
    adapt      one speaker's recordings with replay, folded (only with --speaker)    adapted.safetensors
    export     vocabulary, graphs (checked), outliers smoothed, 8 bits, report       the bundle
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from whisperfold.compiler import bundling
from whisperfold.compiler.config import CompileConfig
from whisperfold.compiler.stages import (
    Compile,
    factorize_model,
    measure_cuts,
    prepare_export,
    read_utterances,
    singular_values,
    take_moments,
    teach_original,
)
from whisperfold.compiler.student import kept_decoder_layers
from whisperfold.compiler.teacher import read_lessons
from whisperfold.compiler.training_stages import (
    adapt_to_speaker,
    distil_student,
    heal_cut,
    heal_window,
    learn_cut_frames,
    refit_cut,
)
from whisperfold.compiler.work import Work
from whisperfold.models.sources import load_source
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.bundle import Bundle


def compile_bundle(
    config: CompileConfig, output: Path, work_dir: Path, console: Console, *, offline: bool = False
) -> Bundle:
    """Compile config.source into a bundle at output, resuming from work_dir what has not changed.

    Raises:
        SourceError: the checkpoint cannot be had.
        CompileError: speech that cannot be read, or graphs that are not the model.
        ConfigError: a budget that no cut reaches; a vocabulary, language or student that this checkpoint does not have.
        BundleError: output cannot be written; what was there stays.
    """
    torch.set_num_threads(config.threads)
    checkpoint = load_source(config.source, revision=config.revision, offline=offline)
    run = Compile(config, checkpoint, Work(work_dir, console), read_utterances(config), [])
    if config.student.decoder_layers:
        kept_decoder_layers(checkpoint.dims.n_text_layer, config.student.decoder_layers)  # refused before any work
    original = Whisper.from_state(checkpoint.dims, checkpoint.state)
    bundling.measure_stage(run.stages, "original at 30 s, fp32", original, run, window="full", precision="fp32")

    taught = teach_original(run)
    lessons = read_lessons(run.work.file("teacher.safetensors"), run.utterances, config.seed)
    prepare_export(run, original, lessons)
    student, distilled = distil_student(run, original, lessons, taught)
    if config.student.decoder_layers:
        bundling.measure_stage(run.stages, f"student, {config.window} window", student, run, precision="fp32")
    windowed, windowing = heal_window(run, student, lessons, distilled)
    bundling.measure_stage(run.stages, f"uncut, {config.window} window", windowed, run, precision="fp32")
    calibrated = take_moments(run, windowed, lessons, windowing)
    cuts = measure_cuts(run, windowed, lessons, calibrated)
    healed, healing = factorize_model(run, windowed, cuts, calibrated)
    trained = [distilled, windowing]
    if cuts:
        bundling.measure_stage(run.stages, "cut", healed, run, precision="fp32")
        refitted, refitting = refit_cut(run, windowed, healed, healing)
        if refitting is not healing:
            bundling.measure_stage(run.stages, "refitted", refitted, run, precision="fp32")
        framed, framing = learn_cut_frames(run, windowed, refitted, lessons, refitting)
        if framing is not refitting:
            bundling.measure_stage(run.stages, "frames learned", framed, run, precision="fp32")
        healed, healing = heal_cut(run, framed, lessons, framing)
        trained += [framing, healing]
        if healing is not framing:
            bundling.measure_stage(run.stages, "healed", healed, run, precision="fp32")
    if config.speaker:
        healed = adapt_to_speaker(run, healed, lessons, healing)
        bundling.measure_stage(run.stages, "adapted", healed, run, precision="fp32")

    curves = {stage.key: stage.facts.get("curve", []) for stage in trained}
    facts = {
        "spectra": singular_values(run, windowed, calibrated).facts["spectra"],
        "sensitivity": [asdict(cut) | {"params_saved": cut.params_saved} for cut in cuts],
        "heal": [row for curve in curves.values() for row in curve],
        "lessons": taught.facts,
    }
    return bundling.export_bundle(output, healed, run, lessons, facts)
