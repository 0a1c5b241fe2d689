"""The compiler's stages: what each needs, the key of its inputs, the artefact it leaves in the work folder.

A stage takes the result of the one before it, whose key is part of its own, and returns its own; see pipeline.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from whisperfold.compiler import bundling
from whisperfold.compiler.adapt import adapt
from whisperfold.compiler.adapt_graph import EMBEDDING
from whisperfold.compiler.blocks import Blocks, quantize_blocks, second_moment
from whisperfold.compiler.budget import (
    Cut,
    Probe,
    candidates,
    measure_sensitivity,
    parse_budget,
)
from whisperfold.compiler.calibrate import calibrate, load_moments, save_moments
from whisperfold.compiler.config import CompileConfig
from whisperfold.compiler.factorize import cut_model, spectra
from whisperfold.compiler.fold import fold
from whisperfold.compiler.frames import learn_frames
from whisperfold.compiler.heal import HealConfig, heal
from whisperfold.compiler.manifests import Item, read_items
from whisperfold.compiler.spending import choose_widths
from whisperfold.compiler.teacher import Lesson, teach
from whisperfold.compiler.utterances import Utterance, join_clips
from whisperfold.compiler.vocabulary import ALL, Vocabulary, cut_vocabulary
from whisperfold.compiler.work import StageResult, Work
from whisperfold.models.dims import Widths
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper

HEARD = 16
SHIPPED_SPEECH = Path(__file__).parent / "data" / "calibration.jsonl"


@dataclass
class Compile:
    """One compile under way: what every stage needs."""

    config: CompileConfig
    checkpoint: Checkpoint
    work: Work
    utterances: list[Utterance]
    stages: list[bundling.Stage]
    blocks: dict[str, Blocks] = field(default_factory=dict)
    """Matrices that the bundle stores in 4 bits, by the names of the graphs' initializers."""

    heard: list[Lesson] = field(default_factory=list)
    """Lessons that tell the loud channels of 8-bit graphs (smooth.py); the parity is measured on others."""
    vocabulary: Vocabulary | None = None
    """What the bundle keeps of the vocabulary, where it is cut."""

    def with_vocabulary(self, model: Whisper) -> tuple[Compile, Whisper]:
        """Return the compile and a model as the bundle will have them, with the tokens that are kept."""
        kept = self.vocabulary
        if kept is None:
            return self, model
        lean = replace(
            self,
            checkpoint=kept.checkpoint(self.checkpoint),
            blocks={name: kept.blocks(matrix) for name, matrix in self.blocks.items()},
            heard=kept.lessons(self.heard),
            vocabulary=None,
        )
        return lean, kept.model(model)

    @property
    def full_window(self) -> bool:
        """True where the bundle will always encode 30 s."""
        return self.config.window == "full"


def read_utterances(config: CompileConfig) -> list[Utterance]:
    """Read the audio sets; clips of one speaker are joined."""
    found: list[Utterance] = []
    for i, path in enumerate(config.audio or (str(SHIPPED_SPEECH),)):
        joined = join_clips(read_items(path), config.join_s, config.seed)
        found += joined if i == 0 else joined[:: config.every_nth]
    return found


def _audio_key(items: list[Item]) -> list[Any]:
    """Return what identifies audio without reading it all: names, sizes, texts."""
    return [(item.audio.name, item.audio.stat().st_size, item.text) for item in items]


def teach_original(run: Compile) -> StageResult:
    """Have the original at 30 s say what the speech is."""
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


def quantize_embedding(run: Compile, original: Whisper, lessons: list[Lesson]) -> dict[str, Blocks]:
    """Return the token embedding in 4 bits, where the precision is mixed; no training changes it."""
    if run.config.precision != "mixed":
        return {}
    hidden = [lesson.sequences[0][1] for lesson in lessons]
    return {EMBEDDING: quantize_blocks(original.decoder.token_embedding.weight, second_moment(hidden))}


def choose_vocabulary(run: Compile, lessons: list[Lesson]) -> Vocabulary | None:
    """Return the tokens that the bundle keeps: all, or those of some languages and of everything that was said."""
    if run.config.vocabulary == ALL:
        return None
    spoken = {int(token) for lesson in lessons for ids, _ in lesson.sequences for token in ids}
    return cut_vocabulary(run.checkpoint, run.config.vocabulary, spoken, run.work.file("vocabulary"))


def heal_window(
    run: Compile, original: Whisper, lessons: list[Lesson], taught: StageResult
) -> tuple[Whisper, StageResult]:
    """Return the uncut model as it hears short windows; the original where the window is full, or nothing is healed."""
    config = run.config
    if run.full_window or config.window_heal.epochs == 0:
        return original, taught

    def work(key: str) -> dict[str, Any]:
        model = Whisper.from_state(run.checkpoint.dims, original.state_dict())
        return {"curve": _train(run, model, lessons, config.window_heal, f"window-{key}", "windowed.safetensors")}

    done = run.work.stage("window", [taught.key, asdict(config.window_heal)], work, "windowed.safetensors")
    return _load(run, original.widths, "windowed.safetensors"), done


def take_moments(run: Compile, uncut: Whisper, lessons: list[Lesson], windowed: StageResult) -> StageResult:
    """Take the second moments that the cuts need."""
    config = run.config
    chosen = lessons[:: max(1, len(lessons) // config.calibration_utterances)][: config.calibration_utterances]

    def work(key: str) -> dict[str, Any]:
        with run.work.bar("calibrate", len(chosen)) as advance:
            moments = calibrate(uncut, chosen, config.window, config.tail_s, advance)
        save_moments(moments, run.work.file("moments.safetensors"))
        return {"utterances": len(chosen)}

    inputs = [windowed.key, config.window, config.tail_s, config.calibration_utterances]
    return run.work.stage("calibrate", inputs, work, "moments.safetensors")


def singular_values(run: Compile, uncut: Whisper, calibrated: StageResult) -> StageResult:
    """Compute the spectra of all twins, for the report."""

    def work(key: str) -> dict[str, Any]:
        return {"spectra": spectra(uncut, load_moments(run.work.file("moments.safetensors")))}

    return run.work.stage("spectra", calibrated.key, work)


def measure_cuts(run: Compile, uncut: Whisper, lessons: list[Lesson], calibrated: StageResult) -> list[Cut]:
    """Return the measured cuts; none where the budget is everything."""
    config = run.config
    sides = ("encoder", "decoder") if config.max_wer is not None else parse_budget(config.budget).sides
    if not sides:
        return []
    short = sorted(lessons, key=lambda lesson: abs(len(lesson.samples) - 10 * 16000))[: config.probe_utterances]

    def work(key: str) -> dict[str, Any]:
        probe = Probe(uncut, short, config.window, config.tail_s)
        moments = load_moments(run.work.file("moments.safetensors"))
        with run.work.bar("measure", len(candidates(uncut.widths, sides))) as advance:
            return {"cuts": [asdict(c) for c in measure_sensitivity(uncut, moments, probe, sides, advance)]}

    done = run.work.stage("measure", [calibrated.key, sides, config.probe_utterances], work)
    return [Cut(**cut) for cut in done.facts["cuts"]]


def factorize_model(
    run: Compile, uncut: Whisper, cuts: list[Cut], calibrated: StageResult
) -> tuple[Whisper, StageResult]:
    """Spend the budget and cut the model."""
    widths = choose_widths(run, uncut, cuts, calibrated.key)

    def work(key: str) -> dict[str, Any]:
        cut = cut_model(uncut, load_moments(run.work.file("moments.safetensors")), widths)
        _save(cut, run.work.file("cut.safetensors"))
        return {"widths": widths.to_json()}

    done = run.work.stage("factorize", [calibrated.key, widths.to_json()], work, "cut.safetensors")
    return _load(run, widths, "cut.safetensors"), done


def learn_cut_frames(
    run: Compile, uncut: Whisper, cut: Whisper, factorized: StageResult
) -> tuple[Whisper, StageResult]:
    """Have the cut encoder learn the uncut one's frames; nothing where it was not cut."""
    config = run.config

    def work(key: str) -> dict[str, Any]:
        curve: list[dict[str, Any]] = []
        checkpoint = run.work.file(f"frames-{key}.ckpt")
        audio = [utterance.load(config.seed + i) for i, utterance in enumerate(run.utterances)]
        with run.work.bar("frames", config.frames.steps) as bar:
            learn_frames(uncut, cut, audio, config.frames, checkpoint, reporter(bar, curve, "frames"))
        _save(cut, run.work.file("framed.safetensors"))
        checkpoint.unlink(missing_ok=True)
        return {"curve": curve}

    if config.frames.steps == 0 or cut.widths.encoder == uncut.widths.encoder:
        return cut, factorized
    done = run.work.stage("frames", [factorized.key, asdict(config.frames)], work, "framed.safetensors")
    return _load(run, cut.widths, "framed.safetensors"), done


def heal_cut(run: Compile, model: Whisper, lessons: list[Lesson], before: StageResult) -> tuple[Whisper, StageResult]:
    """Heal the cut model end to end."""
    config = run.config

    def work(key: str) -> dict[str, Any]:
        return {"curve": _train(run, model, lessons, config.heal, f"heal-{key}", "healed.safetensors")}

    if config.heal.epochs == 0:
        return model, before
    done = run.work.stage("heal", [before.key, asdict(config.heal), config.window], work, "healed.safetensors")
    return _load(run, model.widths, "healed.safetensors"), done


def _train(
    run: Compile, model: Whisper, lessons: list[Lesson], config: HealConfig, name: str, artefact: str
) -> list[dict[str, Any]]:
    """Heal a model end to end, write it folded, and return the losses."""
    curve: list[dict[str, Any]] = []
    stage = name.partition("-")[0]
    checkpoint = run.work.file(f"{name}.ckpt")
    with run.work.bar(stage, 1) as bar:
        heal(
            model,
            lessons,
            run.checkpoint.tokens,
            config,
            checkpoint,
            full_window=run.full_window,
            report=reporter(bar, curve, stage),
        )
    _save(fold(model), run.work.file(artefact))
    checkpoint.unlink(missing_ok=True)
    return curve


def adapt_to_speaker(run: Compile, healed: Whisper, lessons: list[Lesson], healing: StageResult) -> Whisper:
    """Adapt the healed model to the recordings of one person."""
    config = run.config
    items = read_items(str(config.speaker))

    def work(key: str) -> dict[str, Any]:
        curve: list[dict[str, Any]] = []
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
                report=reporter(bar, curve, "adapt"),
            )
        _save(fold(healed), run.work.file("adapted.safetensors"))
        return {"curve": curve}

    run.work.stage("adapt", [healing.key, asdict(config.adapt), _audio_key(items)], work, "adapted.safetensors")
    return _load(run, healed.widths, "adapted.safetensors")


def reporter(bar: Any, curve: list[dict[str, Any]], stage: str) -> Any:
    """Return a callback that draws the bar and keeps every tenth step of a stage for the report."""

    def report(facts: dict[str, float]) -> None:
        bar.total(int(facts["steps"]))
        losses = " ".join(f"{name[5:]}={value:.3f}" for name, value in facts.items() if name.startswith("loss_"))
        bar(losses, done=int(facts["step"]) + 1)
        if facts["step"] % 10 == 0:
            curve.append({"stage": stage} | {name: round(value, 5) for name, value in facts.items()})

    return report


def _save(model: Whisper, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def _load(run: Compile, widths: Widths, name: str) -> Whisper:
    return Whisper.from_state(run.checkpoint.dims, load_file(run.work.file(name)), widths)
