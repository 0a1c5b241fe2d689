"""Word errors without jiwer, and the paired bootstrap."""

from __future__ import annotations

import random

import jiwer
import pytest

from whisperfold.runtime.error_rate import compare, edit_distance, error_rate, normalised_words, score


def test_edit_distance_is_jiwers() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.choice("abcd") for _ in range(rng.randint(1, 8))] for _ in range(2))
        out = jiwer.process_words(" ".join(a), " ".join(b))
        assert edit_distance(a, b) == out.substitutions + out.deletions + out.insertions


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't, Mr. Brown!", "dont mister brown"),
        ("a picture-book [noise]", "a picture book"),
        ("It costs 3,250 in 1905 & 42.", "it costs three thousand two hundred fifty in nineteen oh five and forty two"),
        ("call 0351", "call zero three five one"),
        ("café in 2000, 1900, 0", "cafe in two thousand nineteen hundred zero"),
    ],
)
def test_words_that_are_compared(text: str, words: str) -> None:
    assert normalised_words(text) == words.split()


def test_rate_counts_all_sentences_together() -> None:
    scores = [score("a", "one two three", "one two"), score("b", "four", "five six")]
    assert [item.errors for item in scores] == [1, 2]
    assert error_rate(scores) == 75.0
    assert error_rate([score("c", "", "")]) == 0.0


def scores(errors: list[int]) -> list:
    return [score(str(i), "a b c d", " ".join(["x"] * n + ["a b c d".split()[k] for k in range(n, 4)]))
            for i, n in enumerate(errors)]  # fmt: skip


def test_clear_gain_is_sure_and_a_tie_is_not() -> None:
    clear = compare(scores([2, 2, 1, 2, 3, 2]), scores([1, 1, 0, 1, 1, 1]))
    assert clear.probability_better == 1.0 and clear.high < 0.0
    assert clear.difference == pytest.approx(-100 * 7 / 24)
    tie = compare(scores([1, 1]), scores([1, 1]))
    assert tie.probability_better == 0.5 and tie.low == tie.high == 0.0
    assert 0.2 < compare(scores([1, 0, 2, 1]), scores([0, 1, 1, 2])).probability_better < 0.8


def test_other_sentences_are_not_compared() -> None:
    with pytest.raises(AssertionError, match="same sentences"):
        compare(scores([1, 1]), scores([1]))
