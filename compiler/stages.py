"""The compiler's stages that train nothing: what each needs, the key of its inputs, its artefact in the work folder.

Those that train are in training_stages.py. A stage takes the result of the one before it, whose key is part of its own,
and returns its own; see pipeline.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from whisperfold.compiler import bundling
from whisperfold.compiler.adapt_graph import EMBEDDING
from whisperfold.compiler.blocks import Blocks, quantize_blocks, second_moment
from whisperfold.compiler.budget import (
    FRACTIONS,
    Cut,
    Probe,
    candidates,
    measure_sensitivity,
    parse_budget,
)
from whisperfold.compiler.calibrate import calibrate, load_moments, save_moments
from whisperfold.compiler.config import CompileConfig
from whisperfold.compiler.factorize import cut_model, spectra
from whisperfold.compiler.manifests import Item, read_items
from whisperfold.compiler.spending import choose_widths
from whisperfold.compiler.teacher import Lesson, teach
from whisperfold.compiler.utterances import Utterance, cut_short, join_clips
from whisperfold.compiler.vocabulary import ALL, Vocabulary, cut_vocabulary
from whisperfold.compiler.work import StageResult, Work
from whisperfold.models.dims import Widths
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper

HEARD = 16
"""Lessons from which loud channels are told (smooth.py)."""
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

    def save(self, model: Whisper, name: str) -> None:
        """Write a model's weights into the work folder."""
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, self.work.file(name))

    def load(self, widths: Widths, name: str) -> Whisper:
        """Read a model of some widths from the work folder."""
        return Whisper.from_state(self.checkpoint.dims, load_file(self.work.file(name)), widths)

    def load_audio(self) -> list[np.ndarray]:
        """Read the speech of all utterances, float32 (n,) at 16 kHz each."""
        return [utterance.load(self.config.seed + i) for i, utterance in enumerate(self.utterances)]

    @property
    def full_window(self) -> bool:
        """True where the bundle will always encode 30 s."""
        return self.config.window == "full"


def read_utterances(config: CompileConfig) -> list[Utterance]:
    """Read the audio sets; clips of one speaker are joined, some of what comes of it is cut short."""
    found: list[Utterance] = []
    for i, path in enumerate(config.audio or (str(SHIPPED_SPEECH),)):
        joined = join_clips(read_items(path), config.join_s, config.seed)
        found += joined if i == 0 else joined[:: config.every_nth]
    return cut_short(found, config.cut_short_share, config.seed)


def audio_key(items: list[Item]) -> list[Any]:
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
    groups = [(len(u.items), round(u.duration_s, 3) if u.is_cut_short else None) for u in run.utterances]
    inputs = [
        run.checkpoint.provenance["sha256"],
        audio_key(items),
        groups,
        config.max_teacher_wer,
        config.seed,
    ]
    return run.work.stage("teach", inputs, work, "teacher.safetensors")


def prepare_export(run: Compile, original: Whisper, lessons: list[Lesson]) -> None:
    """Set what the bundle's graphs are made with: clips that tell loud channels, 4-bit embedding, vocabulary."""
    run.heard = lessons[bundling.PARITY_LESSONS :][-HEARD:] or lessons
    run.blocks = quantize_embedding(run, original, lessons)
    run.vocabulary = choose_vocabulary(run, lessons)


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

    done = run.work.stage("measure", [calibrated.key, sides, config.probe_utterances, FRACTIONS], work)
    return [Cut(**cut) for cut in done.facts["cuts"]]


def factorize_model(
    run: Compile, uncut: Whisper, cuts: list[Cut], calibrated: StageResult
) -> tuple[Whisper, StageResult]:
    """Spend the budget and cut the model."""
    widths = choose_widths(run, uncut, cuts, calibrated.key)

    def work(key: str) -> dict[str, Any]:
        cut = cut_model(uncut, load_moments(run.work.file("moments.safetensors")), widths)
        run.save(cut, "cut.safetensors")
        return {"widths": widths.to_json()}

    done = run.work.stage("factorize", [calibrated.key, widths.to_json()], work, "cut.safetensors")
    return run.load(widths, "cut.safetensors"), done
