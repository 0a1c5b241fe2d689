"""The training loop: AdamW is torch's, the loss falls, a killed run goes on as if it had not been killed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime.adaptation import GAP_S, Adaptation, AdaptationOptions, StepReport
from whisperfold.runtime.augment import Augmentation, augment
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import ConfigError, EnrollmentError
from whisperfold.runtime.optimizer import AdamW, schedule
from whisperfold.runtime.training_graph import Lesson, TrainingGraph
from whisperfold.runtime.windows import max_samples

OPTIONS = AdaptationOptions(rank=2, alpha=4.0, epochs=3, batch=2, learning_rate=2e-3)


@pytest.fixture(scope="module")
def graph(bundle: Bundle) -> TrainingGraph:
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    return TrainingGraph(bundle, 2)


@pytest.fixture(scope="module")
def lessons(jfk: np.ndarray) -> list[Lesson]:
    return [
        Lesson("a", jfk[: 2 * 16000], "End so my fellow."),
        Lesson("b", jfk[3 * 16000 : 5 * 16000], "Ask knot what."),
        Lesson("c", jfk[8 * 16000 :], "Ask wot you kan do for your country."),
    ]


def test_adamw_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(4, 3)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(ours.copy()))
    mine = AdamW({"w": ours}, 0.1, 1.0)
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for step in range(20):
        gradient = rng.normal(size=(4, 3)).astype(np.float32) * (10 if step % 3 else 0.01)
        theirs.grad = torch.tensor(gradient)
        expected = torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        reference.step()
        assert mine.step({"w": gradient}, 0.01) == pytest.approx(float(expected), rel=1e-5)
    assert np.allclose(ours, theirs.detach().numpy(), atol=1e-6)


def test_rate_rises_then_falls_to_nothing() -> None:
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.01


def test_augmentation_keeps_the_words_and_changes_the_rest(jfk: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    fast = augment(jfk, Augmentation(speed=(1.1, 1.1), gain_db=(0.0, 0.0), noise_share=0.0), rng)
    assert fast.dtype == np.float32 and fast.size == pytest.approx(jfk.size / 1.1, rel=0.001)
    noisy = augment(jfk, Augmentation((1.0, 1.0), (0.0, 0.0), 1.0, (20.0, 20.0)), rng)
    snr_db = 10 * np.log10(np.mean(jfk**2) / np.mean((noisy - jfk) ** 2))
    assert snr_db == pytest.approx(20.0, abs=0.5)


def test_it_learns_new_words_and_reports(graph: TrainingGraph, lessons: list[Lesson]) -> None:
    reports: list[StepReport] = []
    still = replace(OPTIONS, epochs=6, augmentation=Augmentation((1.0, 1.0), (0.0, 0.0), 0.0))
    result = Adaptation(graph, lessons, (), still, on_step=reports.append).run()
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < 0.6 * losses[0]
    assert result.epochs == 6 and reports[-1].share == 1.0 and len(reports) == 12
    after = graph.run(lessons[2].samples, lessons[2].text, result.adapter, ())[0]
    assert after < losses[0]


def test_a_killed_run_ends_where_a_whole_one_does(graph: TrainingGraph, lessons: list[Lesson], tmp_path: Path) -> None:
    whole = Adaptation(graph, lessons, lessons[:1], OPTIONS).run()
    checkpoint = tmp_path / "run.safetensors"

    def killed(report: StepReport) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Adaptation(graph, lessons, lessons[:1], OPTIONS, checkpoint=checkpoint, on_step=killed).run()
    assert checkpoint.stat().st_mode & 0o777 == 0o600
    steps: list[StepReport] = []
    again = Adaptation(graph, lessons, lessons[:1], OPTIONS, checkpoint=checkpoint, on_step=steps.append)
    resumed = again.run()
    assert {step.epoch for step in steps} == {2}
    assert [e["loss"] for e in resumed.history] == [e["loss"] for e in whole.history]
    for name, array in whole.adapter.tensors.items():
        assert np.array_equal(resumed.adapter.tensors[name], array), name


def test_checkpoints_of_other_recordings_and_damaged_ones_are_not_used(
    graph: TrainingGraph, lessons: list[Lesson], tmp_path: Path
) -> None:
    checkpoint, options = tmp_path / "run.safetensors", replace(OPTIONS, epochs=1)
    first = Adaptation(graph, lessons[:1], (), options, checkpoint=checkpoint).run()
    other = Adaptation(graph, lessons[1:2], (), options, checkpoint=checkpoint).run()
    assert other.history[0]["loss"] != first.history[0]["loss"]
    checkpoint.write_bytes(b"half a")
    assert len(Adaptation(graph, lessons[:1], (), options, checkpoint=checkpoint).run().history) == 1


class FakeGraph:
    """Held-out losses from a list; gradients of one."""

    def __init__(self, bundle: Bundle, held_out: list[float]) -> None:
        self.bundle, self.start, self._losses = bundle, (0,), iter(held_out)

    def run(self, samples, text, adapter, trained):
        if not trained:
            return next(self._losses), {}
        return 1.0, {name: np.ones_like(adapter.tensors[name]) for name in trained}


def test_it_stops_when_it_does_harm_and_takes_the_last_good_epoch(bundle: Bundle, lessons: list[Lesson]) -> None:
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    fake = FakeGraph(bundle, [3.0, 2.0, 2.5, 3.1, 9.0])
    result = Adaptation(fake, lessons, lessons[:1], replace(OPTIONS, epochs=8, patience=2)).run()
    assert result.epochs == 2 and len(result.history) == 4
    short = Adaptation(FakeGraph(bundle, []), lessons, (), replace(OPTIONS, epochs=8), stop_after=2).run()
    assert len(short.history) == 2


def test_few_recordings_are_heard_more_often() -> None:
    assert [AdaptationOptions().n_epochs(n) for n in (8, 25, 40, 50, 400)] == [8, 8, 5, 4, 4]
    assert AdaptationOptions(epochs=2).n_epochs(8) == 2


def test_only_what_is_named_is_trained(bundle: Bundle, lessons: list[Lesson]) -> None:
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    options = replace(OPTIONS, epochs=1, train="gain", modules=("decoder.layers.0",))
    run = Adaptation(FakeGraph(bundle, []), lessons, (), options)
    changed = [name for name, array in run.run().adapter.tensors.items() if name.endswith(".gain") and array.any()]
    assert changed and all(name.startswith("decoder.layers.0") for name in changed)
    with pytest.raises(ConfigError, match="no module starts"):
        Adaptation(FakeGraph(bundle, []), lessons, (), replace(OPTIONS, modules=("nothing",)))


def test_impossible_options_and_losses(bundle: Bundle, lessons: list[Lesson]) -> None:
    for wrong in ({"train": "all"}, {"rank": 0}, {"join_share": 1.5}):
        with pytest.raises(ConfigError):
            AdaptationOptions(**wrong)
    with pytest.raises(EnrollmentError, match="no recordings"):
        Adaptation(FakeGraph(bundle, []), [])
    if "adapt" in bundle.manifest:
        fake = FakeGraph(bundle, [])
        fake.run = lambda *args: (float("nan"), {})
        with pytest.raises(EnrollmentError, match="the loss is nan"):
            Adaptation(fake, lessons, (), OPTIONS).run()


def test_a_full_window_is_not_slowed_down_beyond_it(bundle: Bundle, jfk: np.ndarray) -> None:
    slow = Augmentation(speed=(0.9, 0.9), gain_db=(0.0, 0.0), noise_share=0.0)
    for size, expected in ((jfk.size, jfk.size), (jfk.size - 8000, jfk.size), (32000, 32000 / 0.9)):
        changed = augment(jfk[:size], slow, np.random.default_rng(0), max_samples=jfk.size)
        assert changed.size == pytest.approx(expected, rel=1e-3) and changed.size <= jfk.size
    assert augment(jfk, slow, np.random.default_rng(0)).size > jfk.size
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    seen: list[int] = []
    fake, longest = FakeGraph(bundle, []), max_samples(bundle.window)
    fake.run = lambda samples, *rest: seen.append(samples.size) or FakeGraph.run(fake, samples, *rest)
    full = [Lesson("full", np.resize(jfk, longest), "And so")]
    Adaptation(fake, full, (), replace(OPTIONS, epochs=8, augmentation=slow)).run()
    assert len(seen) == 8 and max(seen) <= longest


def test_some_recordings_are_followed_by_another_one(bundle: Bundle) -> None:
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    lessons = [Lesson(text, np.full(n * 16000, n / 10, np.float32), text) for n, text in ((2, "Two."), (4, "Four."))]
    still = replace(OPTIONS, epochs=40, augmentation=Augmentation((1.0, 1.0), (0.0, 0.0), 0.0))

    def heard(**changes: float) -> list[tuple[str, float]]:
        """Texts and seconds of all presentations."""
        fake, seen = FakeGraph(bundle, []), []
        fake.run = lambda samples, text, *rest: (
            seen.append((text, samples.size / 16000)) or FakeGraph.run(fake, samples, text, *rest)
        )
        Adaptation(fake, lessons, (), replace(still, **changes)).run()
        assert len(seen) == 80
        return seen

    seconds = {"Two.": 2, "Four.": 4, "Two. Two.": 4, "Two. Four.": 6, "Four. Two.": 6, "Four. Four.": 8}
    for text, length_s in (found := heard(join_share=0.5)):
        assert seconds[text] + ("." in text[:-1]) * GAP_S[0] <= length_s <= seconds[text] + GAP_S[1]
    assert {text for text, _ in found} == set(seconds)
    assert 25 <= sum("." in text[:-1] for text, _ in found) <= 55
    assert {text for text, _ in heard(join_share=0.0)} == {"Two.", "Four."}
    assert {text for text, _ in heard(join_share=1.0, max_joined_s=5.0)} == {"Two.", "Four.", "Two. Two."}


def test_a_checkpoint_of_another_language_is_not_used_and_a_resumed_run_says_so(
    bundle: Bundle, lessons: list[Lesson], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    checkpoint, options = tmp_path / "run.safetensors", replace(OPTIONS, epochs=4)

    def run(start: tuple[int, ...], die_in: int = 9) -> list[StepReport]:
        """Steps of a run that dies in an epoch."""
        fake, steps = FakeGraph(bundle, []), []
        fake.start = start

        def on_step(report: StepReport) -> None:
            steps.append(report)
            if report.epoch == die_in:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            Adaptation(fake, lessons, (), options, checkpoint=checkpoint, on_step=on_step).run()
        return steps

    assert {step.resumed_share for step in run((1, 2), die_in=3)} == {0.0}
    again = run((1, 2), die_in=3)
    assert [(step.epoch, step.resumed_share) for step in again] == [(3, 0.75)]
    assert run((1, 3))[0].epoch == 0

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whisperfold.runtime.adaptation.write_atomic", full)
    with pytest.raises(EnrollmentError, match="run.safetensors: No space left on device; free space"):
        run((1, 4))
