"""Word errors, corpus WER, the paired interval, and verify() on stand-ins for models."""

import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
from rich.console import Console

from whisperfold.compiler import verify as verify_module
from whisperfold.compiler.manifests import Item, read_items
from whisperfold.compiler.verify import print_report, verify
from whisperfold.compiler.wer import Evaluation, Utterance, evaluate, paired_bootstrap, word_errors
from whisperfold.runtime.decoding_options import PLAIN_GREEDY, DecodingOptions
from whisperfold.runtime.errors import CompileError

TEXTS = ["Mr. Hale couldn't go!", "the colour of twenty five apples", "", "red green blue grey"]
HEARD = ["mister hale could not go", "the color of 25 apple", " you ", "red blue gray pink"]
SPEAKERS = ["anna", "ben", None, "anna"]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    lines = []
    for i, (text, speaker) in enumerate(zip(TEXTS, SPEAKERS, strict=True)):
        # The length tells the stand-in which clip it hears.
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(1600 * (i + 1), np.float32), 16_000)
        lines.append({"audio": f"{i}.wav", "text": text, "speaker": speaker})
    soundfile.write(tmp_path / "9.wav", np.zeros(160, np.float32), 16_000)
    lines.append({"audio": "9.wav", "text": None, "speaker": "anna"})
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def hear(samples: np.ndarray) -> str:
    return HEARD[len(samples) // 1600 - 1]


def test_evaluate_normalises_counts_and_sets_noise_apart(manifest: Path) -> None:
    done: list[int] = []
    evaluation = evaluate(hear, read_items(manifest), done.append)
    assert [(u.errors, u.words) for u in evaluation.utterances] == [(0, 5), (1, 5), (2, 4)]
    assert evaluation.utterances[0].normalized_reference == "mister hale could not go"
    assert evaluation.wer == pytest.approx(100 * 3 / 14)
    assert evaluation.wer_by_speaker == pytest.approx({"anna": 200 / 9, "ben": 20.0})
    assert [u.hypothesis for u in evaluation.false_texts] == ["you"]
    assert evaluation.unlabelled == 1
    assert done == [1, 2, 3, 4]
    assert 0 < evaluation.rtf and 0 < evaluation.latency_median_s


def test_corpus_wer_is_jiwers(manifest: Path) -> None:
    utterances = evaluate(hear, read_items(manifest)).utterances
    expected = jiwer.wer([u.normalized_reference for u in utterances], [u.normalized_hypothesis for u in utterances])
    assert Evaluation(utterances).wer == pytest.approx(100 * expected)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b", "a b", (0, 2)),
        ("a b c", "", (3, 3)),
        ("", "x y", (2, 0)),
        ("", "", (0, 0)),
        ("a b", "b a c", (2, 2)),
    ],
)
def test_word_errors(reference: str, hypothesis: str, expected: tuple[int, int]) -> None:
    errors, words = word_errors(reference, hypothesis)
    assert words == expected[1]
    assert errors == expected[0] if hypothesis != "b a c" else errors in (2, 3)


def test_unlabelled_set_is_an_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(160, np.float32), 16_000)
    with pytest.raises(CompileError, match='none of the 1 items has a text.*add "text" to the manifest'):
        evaluate(hear, [Item(tmp_path / "a.wav")])


def made(errors: list[int], words: int = 10) -> Evaluation:
    return Evaluation(
        tuple(Utterance(str(i), None, 1.0, 0.1, "r", "h", f"r{i}", "h", e, words) for i, e in enumerate(errors))
    )


def test_bootstrap_of_a_model_with_itself_is_zero() -> None:
    a = made([1, 2, 0, 3])
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0)


def test_bootstrap_is_paired_seeded_and_has_the_right_width() -> None:
    rng = np.random.default_rng(3)
    shared = rng.integers(0, 9, 200)
    extra = rng.integers(0, 2, 200)
    a, b = made(list(shared + extra)), made(list(shared))
    difference, low, high = paired_bootstrap(a, b)
    assert difference == pytest.approx(100 * extra.sum() / 2000)
    assert low < difference < high
    # 95 % of a mean of 200 draws; the spread of `shared` must not enter.
    assert (high - low) / 2 == pytest.approx(1.96 * 10 * extra.std() / np.sqrt(200), rel=0.1)
    assert paired_bootstrap(a, b, seed=0) == (difference, low, high)
    assert paired_bootstrap(b, a)[0] == pytest.approx(-difference)


def test_bootstrap_needs_the_same_utterances() -> None:
    with pytest.raises(CompileError, match=r"different utterances \(2 and 3\).*evaluate both on one manifest"):
        paired_bootstrap(made([1, 1]), made([1, 1, 1]))
    with pytest.raises(CompileError, match="no reference words"):
        paired_bootstrap(made([1], words=0), made([0], words=0))


class StandIn:
    """A Transcriber whose texts are known; `window` answers differ so that the path taken shows."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def transcribe(self, samples: np.ndarray, beam_size: int) -> Any:
        text = self.texts[len(samples) // 1600 - 1]
        return SimpleNamespace(text=text if beam_size == DecodingOptions().beam_size else f"{text} {beam_size}")

    def transcribe_window(self, samples: np.ndarray, options: DecodingOptions) -> Any:
        return SimpleNamespace(text="plain window" if options == PLAIN_GREEDY else f"window {options.beam_size}")


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    paths = {}
    texts = {"good": TEXTS, "bad": HEARD}
    for name in texts:
        paths[name] = tmp_path / name
        paths[name].mkdir()
        (paths[name] / "manifest.json").write_text("{}")
    opened = SimpleNamespace(
        open=lambda path: SimpleNamespace(path=path, manifest={"name": path.name, "precision": "int8"}, size_bytes=2)
    )
    monkeypatch.setattr(verify_module, "Bundle", opened)
    stand_in = SimpleNamespace(open=lambda path, threads=None: StandIn(texts[path.name]))
    monkeypatch.setattr(verify_module, "Transcriber", stand_in)
    return paths


def test_verify_two_bundles(manifest: Path, bundles: dict[str, Path]) -> None:
    report = verify(bundles["bad"], manifest, against=bundles["good"], threads=2)
    assert report["model"]["wer"] == 21.429 and report["against"]["wer"] == 0.0
    assert report["difference"]["points"] == 21.429
    assert report["difference"]["low"] <= 21.429 <= report["difference"]["high"]
    assert report["model"]["noise_with_text"] == 1 and report["against"]["noise_with_text"] == 0
    assert report["model"]["bytes"] == 2
    assert len(report["model"]["clips"]) == 4
    json.dumps(report)


def test_verify_without_speech_detector(manifest: Path, bundles: dict[str, Path]) -> None:
    report = verify(bundles["good"], manifest, vad=False)
    assert {clip["hypothesis"] for clip in report["model"]["clips"]} == {f"window {DecodingOptions().beam_size}"}
    assert "against" not in report and "difference" not in report
    report = verify(bundles["good"], manifest, plain=True)
    assert {clip["hypothesis"] for clip in report["model"]["clips"]} == {"plain window"} and not report["vad"]


def test_verify_searches_as_it_is_asked(manifest: Path, bundles: dict[str, Path]) -> None:
    report = verify(bundles["good"], manifest, beam_size=1)
    assert all(clip["hypothesis"].split()[-1] == "1" for clip in report["model"]["clips"])
    report = verify(bundles["good"], manifest, beam_size=1, vad=False)
    assert {clip["hypothesis"] for clip in report["model"]["clips"]} == {"window 1"}


def test_verify_against_a_source(manifest: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    (manifest.parent / "model.bin").write_bytes(b"abc")
    sources, reference = ModuleType("sources"), ModuleType("reference")
    sources.load_source = lambda name: loaded.append(name) or SimpleNamespace(path=manifest.parent)  # type: ignore[attr-defined]
    reference.OriginalTranscriber = lambda checkpoint: SimpleNamespace(transcribe_window=hear)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "whisperfold.models.sources", sources)
    monkeypatch.setitem(sys.modules, "whisperfold.compiler.reference", reference)
    report = verify(bundles["good"], manifest, against="tiny.en")
    assert loaded == ["tiny.en"]
    assert report["against"]["bytes"] == 3
    assert report["against"]["name"] == "tiny.en (original, 30 s)" and report["against"]["wer"] == 21.429


def test_tables(manifest: Path, bundles: dict[str, Path]) -> None:
    console = Console(file=io.StringIO(), width=120)
    print_report(verify(bundles["bad"], manifest, against=bundles["good"]), console, worst=1)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "21.43" in text and "WER % of anna" in text and "1 of 1" in text
    assert "difference +21.43 points, 95 % interval [+" in text
    assert "3: 2 errors of 4 words" in text
