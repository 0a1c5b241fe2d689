"""The compiler's flow: checkpoint -> twins -> healed -> (adapted) -> folded -> ONNX bundle (verified).

Each stage leaves its artefact in the work folder; one whose inputs are unchanged is skipped.

    teach      the original at 30 s says what the speech is                          teacher.safetensors
    calibrate  second moments of the original at the windows that will be used       moments.safetensors
    measure    the KL of each candidate cut (only where a budget asks for cuts)      measure.json
    factorize  budget -> widths -> cut model                                         cut.safetensors
    heal       layer by layer, then end to end with LoRA, folded                     healed.safetensors
    adapt      one speaker's recordings with replay, folded (only with --speaker)    adapted.safetensors
    export     graphs (checked against torch), 8-bit weights, bundle, report         the bundle
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from whisperfold.compiler import bundling
from whisperfold.compiler.adapt import adapt
from whisperfold.compiler.budget import (
    Cut,
    Probe,
    candidates,
    measure_sensitivity,
    parse_budget,
    sites,
    spend,
    with_widths,
)
from whisperfold.compiler.calibrate import calibrate, load_moments, save_moments
from whisperfold.compiler.config import CompileConfig
from whisperfold.compiler.factorize import cut_model, spectra
from whisperfold.compiler.fold import fold
from whisperfold.compiler.heal import heal, heal_layers
from whisperfold.compiler.manifests import Item, read_items
from whisperfold.compiler.teacher import Lesson, read_lessons, teach
from whisperfold.compiler.utterances import Utterance, join_clips
from whisperfold.compiler.work import StageResult, Work
from whisperfold.models.dims import Widths
from whisperfold.models.sources import Checkpoint, load_source
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.bundle import Bundle

SHIPPED_SPEECH = Path(__file__).parent / "data" / "calibration.jsonl"


@dataclass
class Compile:
    """One compile under way: what every stage needs."""

    config: CompileConfig
    checkpoint: Checkpoint
    work: Work
    utterances: list[Utterance]
    stages: list[bundling.Stage]

    @property
    def full_window(self) -> bool:
        """True where the bundle will always encode 30 s."""
        return self.config.window == "full"


def compile_bundle(
    config: CompileConfig, output: Path, work_dir: Path, console: Console, *, offline: bool = False
) -> Bundle:
    """Compile config.source into a bundle at output, resuming from work_dir what has not changed."""
    torch.set_num_threads(config.threads)
    checkpoint = load_source(config.source, revision=config.revision, offline=offline)
    run = Compile(config, checkpoint, Work(work_dir, console), _utterances(config), [])
    original = Whisper.from_state(checkpoint.dims, checkpoint.state)
    bundling.measure_stage(run.stages, "original at 30 s, fp32", original, run, window="full", precision="fp32")

    taught = _teach(run)
    lessons = read_lessons(run.work.file("teacher.safetensors"), run.utterances, config.seed)
    calibrated = _calibrate(run, original, lessons, taught)
    cuts = _measure(run, original, lessons, calibrated)
    cut, factorized = _factorize(run, original, cuts, calibrated)
    bundling.measure_stage(run.stages, "cut, short window", cut, run, precision="fp32")
    healed, healing = _heal(run, original, cut, lessons, factorized)
    bundling.measure_stage(run.stages, "healed", healed, run, precision="fp32")
    if config.speaker:
        healed = _adapt(run, healed, lessons, healing)
        bundling.measure_stage(run.stages, "adapted", healed, run, precision="fp32")

    facts = {
        "spectra": _spectra(run, original, calibrated).facts["spectra"],
        "sensitivity": [asdict(cut) | {"params_saved": cut.params_saved} for cut in cuts],
        "heal": healing.facts.get("curve", []),
        "lessons": taught.facts,
    }
    return bundling.export_bundle(output, healed, run, lessons, facts)


def _utterances(config: CompileConfig) -> list[Utterance]:
    """Read the audio sets; clips of one speaker are joined."""
    found: list[Utterance] = []
    for i, path in enumerate(config.audio or (str(SHIPPED_SPEECH),)):
        joined = join_clips(read_items(path), config.join_s, config.seed)
        found += joined if i == 0 else joined[:: config.every_nth]
    return found


def _audio_key(items: list[Item]) -> list[Any]:
    """Return what identifies audio without reading it all: names, sizes, texts."""
    return [(item.audio.name, item.audio.stat().st_size, item.text) for item in items]


def _teach(run: Compile) -> StageResult:
    config = run.config

    def work(key: str) -> dict[str, Any]:
        with run.work.bar("teach", len(run.utterances)) as advance:
            return teach(
                run.checkpoint,
                run.utterances,
                run.work.file("teacher.safetensors"),
                key=key,
                max_teacher_wer=config.max_teacher_wer,
                seed=config.seed,
                advance=advance,
            )

    items = [item for utterance in run.utterances for item in utterance.items]
    groups = [len(utterance.items) for utterance in run.utterances]
    inputs = [
        run.checkpoint.provenance["sha256"],
        _audio_key(items),
        groups,
        config.max_teacher_wer,
        config.seed,
    ]
    return run.work.stage("teach", inputs, work, "teacher.safetensors")


def _calibrate(run: Compile, original: Whisper, lessons: list[Lesson], taught: StageResult) -> StageResult:
    config = run.config
    chosen = lessons[:: max(1, len(lessons) // config.calibration_utterances)][: config.calibration_utterances]

    def work(key: str) -> dict[str, Any]:
        with run.work.bar("calibrate", len(chosen)) as advance:
            moments = calibrate(original, chosen, config.window, config.tail_s, advance)
        save_moments(moments, run.work.file("moments.safetensors"))
        return {"utterances": len(chosen)}

    inputs = [taught.key, config.window, config.tail_s, config.calibration_utterances]
    return run.work.stage("calibrate", inputs, work, "moments.safetensors")


def _spectra(run: Compile, original: Whisper, calibrated: StageResult) -> StageResult:
    def work(key: str) -> dict[str, Any]:
        return {"spectra": spectra(original, load_moments(run.work.file("moments.safetensors")))}

    return run.work.stage("spectra", calibrated.key, work)


def _measure(run: Compile, original: Whisper, lessons: list[Lesson], calibrated: StageResult) -> list[Cut]:
    """Return the measured cuts; none where the budget is everything."""
    config = run.config
    kind, amount = parse_budget(config.budget)
    if (kind, amount) == ("fraction", 1.0):
        return []
    sides = ("encoder",) if kind == "fraction" else ("encoder", "decoder")
    short = sorted(lessons, key=lambda lesson: abs(len(lesson.samples) - 10 * 16000))[: config.probe_utterances]

    def work(key: str) -> dict[str, Any]:
        probe = Probe(original, short, config.window, config.tail_s)
        moments = load_moments(run.work.file("moments.safetensors"))
        with run.work.bar("measure", len(candidates(original.widths, sides))) as advance:
            return {"cuts": [asdict(c) for c in measure_sensitivity(original, moments, probe, sides, advance)]}

    done = run.work.stage("measure", [calibrated.key, sides, config.probe_utterances], work)
    return [Cut(**cut) for cut in done.facts["cuts"]]


def _factorize(
    run: Compile, original: Whisper, cuts: list[Cut], calibrated: StageResult
) -> tuple[Whisper, StageResult]:
    widths = _widths(run, original, cuts)

    def work(key: str) -> dict[str, Any]:
        cut = cut_model(original, load_moments(run.work.file("moments.safetensors")), widths)
        _save(cut, run.work.file("cut.safetensors"))
        return {"widths": widths.to_json()}

    done = run.work.stage("factorize", [calibrated.key, widths.to_json()], work, "cut.safetensors")
    return _load(run, widths, "cut.safetensors"), done


def _widths(run: Compile, original: Whisper, cuts: list[Cut]) -> Widths:
    """Spend the budget."""
    kind, amount = parse_budget(run.config.budget)
    if not cuts:
        return original.widths
    if kind == "fraction":
        layers = sum(p.numel() for layer in original.encoder.layers for p in layer.parameters())
        return with_widths(original.widths, spend(cuts, sites(original.widths, ("encoder",)), (1 - amount) * layers))
    bytes_each = 1 if run.config.precision == "int8" else 4
    to_save = (bundling.estimate_bytes(original, run) - amount) / bytes_each
    return with_widths(original.widths, spend(cuts, sites(original.widths, ("encoder", "decoder")), to_save))


def _heal(
    run: Compile, original: Whisper, cut: Whisper, lessons: list[Lesson], factorized: StageResult
) -> tuple[Whisper, StageResult]:
    config = run.config
    curve: list[dict[str, float]] = []

    def work(key: str) -> dict[str, Any]:
        with run.work.bar("heal layers", config.heal.layer_steps) as bar:
            heal_layers(original, cut, lessons, config.heal, _reporter(bar, curve))
        with run.work.bar("heal", 1) as bar:
            checkpoint = run.work.file(f"heal-{key}.ckpt")
            heal(
                cut,
                lessons,
                run.checkpoint.tokens,
                config.heal,
                checkpoint,
                full_window=run.full_window,
                report=_reporter(bar, curve),
            )
        _save(fold(cut), run.work.file("healed.safetensors"))
        checkpoint.unlink(missing_ok=True)
        return {"curve": curve}

    if config.heal.epochs == 0:
        return cut, factorized
    done = run.work.stage("heal", [factorized.key, asdict(config.heal), config.window], work, "healed.safetensors")
    return _load(run, cut.widths, "healed.safetensors"), done


def _adapt(run: Compile, healed: Whisper, lessons: list[Lesson], healing: StageResult) -> Whisper:
    config = run.config
    items = read_items(str(config.speaker))

    def work(key: str) -> dict[str, Any]:
        curve: list[dict[str, float]] = []
        with run.work.bar("adapt", 1) as bar:
            adapt(
                healed,
                items,
                lessons,
                Tokenizer.from_file(str(run.checkpoint.tokenizer)),
                run.checkpoint.tokens,
                config.adapt,
                seed=config.seed,
                full_window=run.full_window,
                report=_reporter(bar, curve),
            )
        _save(fold(healed), run.work.file("adapted.safetensors"))
        return {"curve": curve}

    run.work.stage("adapt", [healing.key, asdict(config.adapt), _audio_key(items)], work, "adapted.safetensors")
    return _load(run, healed.widths, "adapted.safetensors")


def _reporter(bar: Any, curve: list[dict[str, float]]) -> Any:
    """Return a callback that draws the bar and keeps every tenth step for the report."""

    def report(facts: dict[str, float]) -> None:
        bar.total(int(facts["steps"]))
        losses = " ".join(f"{name[5:]}={value:.3f}" for name, value in facts.items() if name.startswith("loss_"))
        bar(losses, done=int(facts["step"]) + 1)
        if facts["step"] % 10 == 0:
            curve.append({name: round(value, 5) for name, value in facts.items()})

    return report


def _save(model: Whisper, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def _load(run: Compile, widths: Widths, name: str) -> Whisper:
    return Whisper.from_state(run.checkpoint.dims, load_file(run.work.file(name)), widths)
