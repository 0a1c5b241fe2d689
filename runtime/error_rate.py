"""Reference and hypothesis -> word errors; two systems on the same sentences -> who is better, and how surely.

    WER = (substitutions + deletions + insertions) / reference words, over all sentences together
    paired bootstrap: sentences are drawn with replacement; how often is the difference below zero?

Words are compared in lower case without punctuation, accents and brackets; digits are spelled out. The normaliser is
small on purpose: both systems are judged by the same one, on the device. The test: Bisani and Ney, ICASSP 2004.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
_SPELLED = {"mr": "mister", "mrs": "missus", "dr": "doctor", "ok": "okay", "&": "and", "%": "percent"}


@dataclass(frozen=True)
class Score:
    """One sentence as one system heard it."""

    name: str
    reference: str
    hypothesis: str
    errors: int
    words: int
    """Of the reference."""


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same sentences; rates and their difference in percent."""

    before: float
    after: float
    low: float
    high: float
    """95 % interval of after - before."""
    probability_better: float
    """Share of the draws in which after is below before; half of those with a tie."""

    @property
    def difference(self) -> float:
        """Points by which the rate has changed; below zero is better."""
        return self.after - self.before


def normalised_words(text: str) -> list[str]:
    """Return the words of text that are compared."""
    text = re.sub(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>", " ", text.lower())
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"['’]", "", text)
    words = re.findall(r"\d+|[^\W\d_]+|[&%]", text)
    return [spelled for word in words for spelled in (_spell(word) if word.isdecimal() else [_SPELLED.get(word, word)])]


def score(name: str, reference: str, hypothesis: str) -> Score:
    """Return the word errors of one sentence; against an empty reference every word is an error."""
    expected, heard = normalised_words(reference), normalised_words(hypothesis)
    return Score(name, reference, hypothesis, edit_distance(expected, heard), len(expected))


def edit_distance(expected: Sequence[str], heard: Sequence[str]) -> int:
    """Return the fewest substitutions, deletions and insertions between two sequences."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def error_rate(scores: Sequence[Score]) -> float:
    """Return the WER of all sentences together, percent; 0 without words."""
    n_words = sum(item.words for item in scores)
    return 100.0 * sum(item.errors for item in scores) / n_words if n_words else 0.0


def compare(before: Sequence[Score], after: Sequence[Score], draws: int = 4000, seed: int = 0) -> Comparison:
    """Compare two systems by the paired bootstrap; both in the same order of sentences."""
    assert [item.name for item in before] == [item.name for item in after], "the same sentences, in the same order"
    words = np.array([item.words for item in before], np.float64)
    extra = np.array([new.errors - old.errors for old, new in zip(before, after, strict=True)], np.float64)
    drawn = np.random.default_rng(seed).multinomial(words.size, np.full(words.size, 1 / words.size), size=draws)
    differences = 100.0 * (drawn @ extra) / np.maximum(drawn @ words, 1.0)
    low, high = np.percentile(differences, [2.5, 97.5])
    better = float(np.mean(differences < 0) + 0.5 * np.mean(differences == 0))
    return Comparison(error_rate(before), error_rate(after), float(low), float(high), better)


def _spell(digits: str) -> list[str]:
    """A number in words up to 9999; longer ones, and those with a leading zero, digit by digit."""
    if len(digits) > 4 or (digits[0] == "0" and len(digits) > 1):
        return [_ONES[int(digit)] for digit in digits]
    number = int(digits)
    if 1100 <= number < 2000 or (number >= 2010 and number < 2100):  # as years are read
        head, rest = _below_hundred(number // 100), number % 100
        if rest == 0:
            return [*head, "hundred"]
        return [*head, *(["oh"] if rest < 10 else []), *_below_hundred(rest)]
    words: list[str] = []
    for size, label in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            words += [_ONES[number // size], label]
            number %= size
    return words + (_below_hundred(number) if number or not words else [])


def _below_hundred(number: int) -> list[str]:
    """0 to 99 in words."""
    if number < 20:
        return [_ONES[number]]
    return [_TENS[number // 10], *([_ONES[number % 10]] if number % 10 else [])]
