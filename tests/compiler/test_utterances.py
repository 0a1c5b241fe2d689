"""What is learned from: clips joined by speaker, some cut short, and which teacher's texts are believed."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from whisperfold.compiler.manifests import Item
from whisperfold.compiler.teacher import strays
from whisperfold.compiler.utterances import CUT_SHORT, GAP_S, MIN_CUT_S, cut_short, join_clips

RATE = 16_000


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Three clips of anna, one of ben: 2 s each, every sample of a clip has its number / 10."""
    found = []
    for number, speaker in enumerate(["anna", "anna", "anna", "ben"], 1):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.full(2 * RATE, number / 10, np.float32), RATE, subtype="FLOAT")
        found.append(Item(path, f"text {number}", speaker, 2.0))
    return found


def test_clips_of_one_speaker_are_joined_with_gaps(items: list[Item]) -> None:
    anna, ben = join_clips(items, (20.0, 20.0), seed=0)
    assert (anna.text, ben.text) == ("text 1 text 2 text 3", "text 4")
    samples = anna.load(seed=0)
    assert [(samples == np.float32(n / 10)).sum() for n in (1, 2, 3)] == [2 * RATE] * 3
    n_gaps = (samples == 0.0).sum()
    assert 2 * GAP_S[0] * RATE - 2 <= n_gaps <= 2 * GAP_S[1] * RATE
    assert np.array_equal(samples, anna.load(seed=0)) and samples.size != anna.load(seed=1).size


def test_what_is_cut_short_is_a_beginning(items: list[Item]) -> None:
    whole = join_clips(items, (20.0, 20.0), seed=0)
    for was, cut in zip(whole, cut_short(whole, 1.0, seed=0), strict=True):
        assert cut.is_cut_short and cut.text == was.text
        assert MIN_CUT_S <= cut.duration_s <= max(MIN_CUT_S, CUT_SHORT[1] * was.duration_s)
        assert np.array_equal(cut.load(3), was.load(3)[: round(cut.duration_s * RATE)])
    assert cut_short(whole, 0.0, seed=0) == whole


def test_a_share_is_cut_short(items: list[Item]) -> None:
    many = join_clips(items, (1.0, 1.0), seed=0) * 100
    n_cut = sum(utterance.is_cut_short for utterance in cut_short(many, 0.35, seed=0))
    assert 110 <= n_cut <= 170


@pytest.mark.parametrize(
    ("hypothesis", "is_cut_short", "expected"),
    [
        ("one two three four", False, False),
        ("one two", False, True),
        ("one two", True, False),
        ("one too", True, True),
        ("four five six", True, True),
    ],
)
def test_a_text_strays_from_its_reference(hypothesis: str, is_cut_short: bool, expected: bool) -> None:
    assert strays(hypothesis, "one two three four", 0.4, is_cut_short=is_cut_short) is expected


def test_nothing_strays_without_a_reference() -> None:
    assert not strays("anything", "", 0.4, is_cut_short=True)
