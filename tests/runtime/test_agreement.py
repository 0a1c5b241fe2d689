"""What of a hypothesis may be committed."""

from __future__ import annotations

import numpy as np
import pytest

from whisperfold.runtime.agreement import agreed_tokens, ends_sentence, tokens_before_frontier, whole_words
from whisperfold.runtime.tokenizer import Tokenizer
from whisperfold.runtime.transcribe import Transcriber


@pytest.fixture(scope="module")
def tokenizer(transcriber: Transcriber) -> Tokenizer:
    return transcriber.engine.tokenizer


@pytest.mark.parametrize(
    ("previous", "current", "shared"),
    [
        ((), (), 0),
        ((), (1, 2), 0),
        ((1, 2, 3), (1, 2, 3), 3),
        ((1, 2, 3), (1, 2, 4, 3), 2),
        ((1, 2), (1, 2, 3), 2),
        ((1, 2, 3), (1,), 1),
        ((5, 1, 2), (4, 1, 2), 0),
    ],
)
def test_two_hypotheses_agree_on_their_beginning(
    previous: tuple[int, ...], current: tuple[int, ...], shared: int
) -> None:
    assert agreed_tokens(previous, current) == agreed_tokens(current, previous) == shared


def attention_at(positions: list[int], n_positions: int = 60, n_heads: int = 2) -> np.ndarray:
    """Each token looks at a plateau around its position, wide enough for the median filter to keep."""
    rows = np.full((n_heads, len(positions), n_positions), 0.01, np.float32)
    for i, at in enumerate(positions):
        rows[:, i, max(0, at - 4) : at + 5] = 0.5
        rows[:, i, max(0, at - 3) : at + 4] = 1.0
    return rows


@pytest.mark.parametrize(
    ("positions", "frontier", "n_tokens"),
    [
        ([5, 15, 25, 35], 60, 4),
        ([5, 15, 25, 35], 30, 3),
        ([5, 45, 15, 25], 30, 1),
        ([45, 5, 15], 30, 0),
        ([5, 15], 0, 0),
        ([5, 15], -10, 0),
    ],
)
def test_tokens_wait_that_look_behind_the_frontier_and_all_after_them(
    positions: list[int], frontier: int, n_tokens: int
) -> None:
    assert tokens_before_frontier(attention_at(positions), frontier) == n_tokens


def test_one_odd_head_and_one_odd_position_do_not_decide() -> None:
    attention = attention_at([5, 15, 25], n_heads=3)
    attention[0, 1] = attention_at([50])[0, 0]
    attention[1, 0, 55] = 2.0
    assert tokens_before_frontier(attention, 40) == 3


@pytest.mark.parametrize(
    ("text", "kept", "committed"),
    [
        (" the cat sat on the mat", " the cat sat", " the cat sat"),
        (" the cat, sat on", " the cat,", " the cat,"),
        (" the cat sat.", " the cat sat.", " the cat sat"),
        (' "the cat sat!', ' "the cat sat!', ' "the cat sat'),
        (" the cat sat...", " the cat sat...", " the cat sat"),
        (' "the cat sat."', ' "the cat sat."', ' "the cat sat'),
        (" the cat. It sat", " the cat.", " the cat."),
        (" don't stop", " don", ""),
        ("...", "...", ""),
        ("", "", ""),
    ],
)
def test_whole_words_without_the_marks_at_the_end(tokenizer: Tokenizer, text: str, kept: str, committed: str) -> None:
    tokens = tokenizer.encode(text)
    n = whole_words(tokens, len(tokenizer.encode(kept)), tokenizer, "en")
    assert tokenizer.decode(tokens[:n]) == committed


def test_never_part_of_a_word(tokenizer: Tokenizer) -> None:
    text = " Kierkegaard, Szymborska and Nguyen's naïve café."
    tokens = tokenizer.encode(text)
    assert len(tokens) > len(text.split()) + 4, "words of several tokens"
    for n_tokens in range(len(tokens) + 1):
        n = whole_words(tokens, n_tokens, tokenizer, "en")
        assert n <= n_tokens
        rest = tokenizer.decode(tokens[n:])
        assert not rest or not rest[0].isalpha(), f"cut inside a word before {rest!r}"


@pytest.mark.parametrize("text", ["Yes.", "Really?", "No!", 'He said "no."', "(So it is.)", "好。", "Done. "])
def test_ends_of_sentences(text: str) -> None:
    assert ends_sentence(text)


@pytest.mark.parametrize("text", ["", "and so", "well,", "I mean...", "one:", "a. b", " "])
def test_not_ends_of_sentences(text: str) -> None:
    assert not ends_sentence(text)
