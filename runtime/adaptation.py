"""Recordings of one person -> an adapter: gradients by adapt.onnx, AdamW in numpy.

    epoch: every recording once, augmented, some with another one after it
    step:  the mean gradient of a few recordings, clipped
    after every epoch: loss of held-out recordings, checkpoint; a run that makes them worse is stopped

The held-out loss is lowest early on, but word errors go on falling: the model grows surer of everything, of its errors
too. So the last epoch is taken, and the loss only has to stay below what it was before.
Every draw depends on (seed, epoch) only, so that a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.augment import Augmentation, augment
from whisperfold.runtime.errors import ConfigError, EnrollmentError
from whisperfold.runtime.files import refusal_as, write_atomic
from whisperfold.runtime.optimizer import AdamW, schedule
from whisperfold.runtime.training_graph import Lesson, TrainingGraph
from whisperfold.runtime.windows import max_samples

KINDS = {"lora": (".lora_A", ".lora_B"), "gain": (".gain",), "both": (".lora_A", ".lora_B", ".gain")}
GAP_S = (0.2, 0.8)
"""Silence between two recordings that are learned as one, seconds."""
PRESENTATIONS = 200
"""Of all recordings together, where the number of epochs is not given."""


@dataclass(frozen=True)
class AdaptationOptions:
    """How an adapter is trained."""

    rank: int = 8
    alpha: float = 16.0
    """The product of the factors is multiplied by alpha / rank."""
    train: str = "lora"
    """lora, gain (the twins' singular values and FFN neurons), or both."""
    modules: tuple[str, ...] = ()
    """Prefixes of the modules that are trained; none is all of them."""
    learning_rate: float = 2.5e-4
    weight_decay: float = 0.01
    epochs: int = 0
    """Passes over all recordings; 0: 4 to 8, few recordings are heard more often."""
    batch: int = 2
    """Recordings per step."""
    warm_up_share: float = 0.1
    """Share of the steps in which the rate rises."""
    clip_norm: float = 1.0
    join_share: float = 0.5
    """Share of the recordings that another one follows."""
    max_joined_s: float = 15.0
    """Two that are longer together stay apart."""
    held_out_clips: int = 8
    """Most held-out recordings whose loss is looked at after an epoch: it costs as much as learning them."""
    patience: int = 2
    """Epochs that leave the held-out loss above what it was before learning, after which a run stops."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train not in KINDS:
            raise ConfigError(f"train={self.train!r}: expected one of {', '.join(KINDS)}")
        if min(self.rank, self.batch, self.patience) < 1 or self.epochs < 0 or self.learning_rate <= 0.0:
            raise ConfigError("rank, batch and patience must be at least 1, epochs 0 or more, learning_rate above 0")
        if not 0.0 <= self.join_share <= 1.0:
            raise ConfigError(f"join_share={self.join_share}: expected 0 to 1")

    def n_epochs(self, n_recordings: int) -> int:
        """Return how often each of so many recordings is heard."""
        return self.epochs or min(8, max(4, PRESENTATIONS // n_recordings))


@dataclass(frozen=True)
class StepReport:
    """Where a run is."""

    run: str
    epoch: int
    share: float
    """Of the run's planned work, 0 to 1."""
    loss: float
    resumed_share: float = 0.0
    """What an earlier process had done of it."""


@dataclass(frozen=True)
class Adapted:
    """What a run ends with."""

    adapter: Adapter
    epochs: int
    """After which the adapter was taken."""
    planned_epochs: int
    history: tuple[dict[str, float], ...]
    """Per epoch: epoch, loss, seconds, and held_out_loss where there are held-out recordings."""


class Adaptation:
    """One run, with its checkpoint.

    Args:
        graph: the training graph.
        lessons: what is learned.
        held_out: decides when to stop; may be empty.
        options: the recipe.
        stop_after: epochs after which the run ends, within the schedule of all; None runs all.
        checkpoint: file to resume from and write to, or None.
        on_step: told after every step; may raise, the last epoch's checkpoint stays.
        name: of this run, for reports.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        lessons: Sequence[Lesson],
        held_out: Sequence[Lesson] = (),
        options: AdaptationOptions | None = None,
        *,
        stop_after: int | None = None,
        checkpoint: Path | None = None,
        on_step: Callable[[StepReport], None] = lambda report: None,
        name: str = "run",
    ) -> None:
        if not lessons:
            raise EnrollmentError("no recordings to learn from")
        self.options = options or AdaptationOptions()
        self._graph, self._lessons = graph, lessons
        self._held_out = held_out[: self.options.held_out_clips]
        self._checkpoint, self._on_step, self._name = checkpoint, on_step, name
        self._n_epochs = self.options.n_epochs(len(lessons))
        self._stop_after = min(stop_after or self._n_epochs, self._n_epochs)
        self.adapter = Adapter.create(graph.bundle, self.options.rank, self.options.alpha, self.options.seed)
        prefixes, kinds = self.options.modules or ("",), KINDS[self.options.train]
        self._trained = [key for key in self.adapter.tensors if key.startswith(prefixes) and key.endswith(kinds)]
        if not self._trained:
            raise ConfigError(f"modules={prefixes}: no module starts like that; e.g. decoder.layers.0.attn")
        self._optimizer = AdamW(
            {name: self.adapter.tensors[name] for name in self._trained},
            self.options.weight_decay,
            self.options.clip_norm,
        )
        self._history: list[dict[str, float]] = []
        self._best = {name: self.adapter.tensors[name].copy() for name in self._trained}
        self._best_epoch = 0
        self._unadapted_loss = self._resumed_share = 0.0

    def run(self) -> Adapted:
        """Train to the end, from the checkpoint if there is one.

        Raises:
            EnrollmentError: the loss is no number any more, or the disk refuses the checkpoint.
        """
        if not self._resume() and self._held_out:
            self._unadapted_loss = self._held_out_loss(self.adapter)
        self._resumed_share = len(self._history) / self._stop_after
        while not self._is_over():
            self._history.append(self._epoch(len(self._history)))
            self._judge(self._history[-1])
            self._save()
        return Adapted(self._with(self._best), self._best_epoch, self._n_epochs, tuple(self._history))

    def _is_over(self) -> bool:
        """All epochs done, or the last ones did harm."""
        n_done = len(self._history)
        return n_done >= self._stop_after or n_done - self._best_epoch >= self.options.patience

    def _epoch(self, epoch: int) -> dict[str, float]:
        """Present every recording once."""
        started_s, options = time.monotonic(), self.options
        rng = np.random.default_rng((options.seed, epoch))
        order, losses = rng.permutation(len(self._lessons)), []
        per_epoch = -(-len(self._lessons) // options.batch)
        for step in range(per_epoch):
            chosen = [self._followed(self._lessons[i], rng) for i in order[step * options.batch :][: options.batch]]
            gradients, loss = self._gradients(chosen, rng)
            factor = schedule(epoch * per_epoch + step, self._n_epochs * per_epoch, options.warm_up_share)
            self._optimizer.step(gradients, options.learning_rate * factor)
            losses.append(loss)
            share = (epoch * per_epoch + step + 1) / (self._stop_after * per_epoch)
            self._on_step(StepReport(self._name, epoch, share, loss, self._resumed_share))
        return {"epoch": epoch + 1.0, "loss": float(np.mean(losses)), "seconds": time.monotonic() - started_s}

    def _followed(self, lesson: Lesson, rng: np.random.Generator) -> Lesson:
        """Return a recording, now and then with another one after it: a text need not end at its first full stop."""
        follows, gap_s = rng.random() < self.options.join_share, rng.uniform(*GAP_S)
        other = self._lessons[int(rng.integers(len(self._lessons)))]
        gap = np.zeros(round(gap_s * SAMPLE_RATE), np.float32)
        n_samples = lesson.samples.size + gap.size + other.samples.size
        longest = min(max_samples(self._graph.bundle.window), round(self.options.max_joined_s * SAMPLE_RATE))
        if not follows or n_samples > longest:
            return lesson
        samples = np.concatenate([lesson.samples, gap, other.samples])
        return Lesson(f"{lesson.name}, {other.name}", samples, f"{lesson.text.strip()} {other.text.strip()}")

    def _gradients(self, chosen: Sequence[Lesson], rng: np.random.Generator) -> tuple[dict[str, np.ndarray], float]:
        """Mean gradients and loss of some recordings."""
        total: dict[str, np.ndarray] = {}
        losses, longest = [], max_samples(self._graph.bundle.window)
        for lesson in chosen:
            samples = augment(lesson.samples, self.options.augmentation, rng, longest)
            loss, gradients = self._graph.run(samples, lesson.text, self.adapter, self._trained)
            if not np.isfinite(loss):
                raise EnrollmentError(f"the loss is {loss} at a rate of {self.options.learning_rate}; lower it")
            losses.append(loss)
            for name, gradient in gradients.items():
                total[name] = total[name] + gradient if name in total else gradient
        n = np.float32(len(losses))
        return {name: gradient / n for name, gradient in total.items()}, float(np.mean(losses))

    def _judge(self, record: dict[str, float]) -> None:
        """Keep the adapter unless it hears the held-out recordings worse than none does."""
        if self._held_out:
            record["held_out_loss"] = self._held_out_loss(self.adapter)
            if record["held_out_loss"] > self._unadapted_loss:
                return
        self._best = {name: self.adapter.tensors[name].copy() for name in self._trained}
        self._best_epoch = len(self._history)

    def _held_out_loss(self, adapter: Adapter) -> float:
        """Mean loss of the held-out recordings."""
        losses = [self._graph.run(item.samples, item.text, adapter, ())[0] for item in self._held_out]
        return float(np.mean(losses))

    def _with(self, trained: dict[str, np.ndarray]) -> Adapter:
        """An adapter with other values of what is trained."""
        return Adapter({**self.adapter.tensors, **trained}, self.adapter.rank, self.adapter.alpha)

    def _fingerprint(self) -> str:
        """Changes with all that a checkpoint depends on."""
        recipe = [asdict(self.options), self._name, self._graph.start]
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
        for lesson in (*self._lessons, *self._held_out):
            digest.update(f"{lesson.name}\0{lesson.text}\0{lesson.samples.size}\0".encode())
            digest.update(lesson.samples.tobytes())
        return digest.hexdigest()

    def _save(self) -> None:
        """Write the checkpoint of this epoch."""
        if self._checkpoint is None:
            return
        facts: dict[str, Any] = {"history": self._history, "n_steps": self._optimizer.n_steps}
        facts |= {"best_epoch": self._best_epoch, "unadapted_loss": self._unadapted_loss}
        facts["fingerprint"] = self._fingerprint()
        state = self._optimizer.state() | {f"best/{name}": array for name, array in self._best.items()}
        with refusal_as(EnrollmentError, self._checkpoint):
            write_atomic(self._checkpoint, save(state, {"facts": json.dumps(facts)}))

    def _resume(self) -> bool:
        """Go on from the checkpoint, if it is one of this very run; tell whether it is."""
        if self._checkpoint is None or not self._checkpoint.exists():
            return False
        try:
            with safe_open(str(self._checkpoint), framework="numpy") as file:
                facts = json.loads(file.metadata()["facts"])
                if facts["fingerprint"] != self._fingerprint():
                    return False
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no dict
        except (OSError, SafetensorError, KeyError, ValueError):
            return False  # a damaged checkpoint costs time, nothing else
        self._optimizer.restore(state, facts["n_steps"])
        self._history, self._best_epoch = facts["history"], facts["best_epoch"]
        self._unadapted_loss = facts["unadapted_loss"]
        self._best = {name: state[f"best/{name}"] for name in self._trained}
        return True
