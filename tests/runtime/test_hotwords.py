"""Hot words: the bias on logits, and what it does to a transcript."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.hotwords import FIRST_SHARE, MAX_HOTWORDS, HotwordBias
from whisperfold.runtime.transcribe import Transcriber

N_VOCAB = 50
TOKENIZER: Any = SimpleNamespace(encode=lambda text: [int(number) for number in text.split()])
"""A word is a number, and that is its token."""


def biased(words: list[str], sampled: list[int], boost: float = 2.0) -> dict[int, float]:
    """Token -> what is added to its logit, where something is."""
    logits = np.zeros(N_VOCAB, np.float32)
    HotwordBias(words, TOKENIZER, boost).apply(logits, sampled)
    return {int(token): float(logits[token]) for token in np.flatnonzero(logits)}


def test_a_first_token_gets_a_share_always() -> None:
    for sampled in ([], [9], [9, 8, 7]):
        assert biased(["1 2 3", "4"], sampled) == {1: 2.0 * FIRST_SHARE, 4: 2.0 * FIRST_SHARE}


def test_what_goes_on_with_a_hot_word_gets_it_all() -> None:
    first = 2.0 * FIRST_SHARE
    assert biased(["1 2 3"], [9, 1]) == {1: first, 2: 2.0}
    assert biased(["1 2 3"], [9, 1, 2]) == {1: first, 3: 2.0}
    assert biased(["1 2 3"], [1, 2, 3]) == {1: first}, "the word is over"
    assert biased(["1 2 3"], [1, 9, 2]) == {1: first}, "another word came between"


def test_words_that_begin_alike_share_the_bias() -> None:
    assert biased(["1 2", "1 3", "1 2 4"], [1]) == {1: 2.0 * FIRST_SHARE, 2: 2.0, 3: 2.0}


def test_the_longest_match_decides() -> None:
    assert biased(["1 2 3", "2 7"], [1, 2]) == {1: 2.0 * FIRST_SHARE, 2: 2.0 * FIRST_SHARE, 3: 2.0}
    assert biased(["1 2", "2 7"], [1, 2]) == {1: 2.0 * FIRST_SHARE, 2: 2.0 * FIRST_SHARE, 7: 2.0}


def test_the_same_word_twice_is_one() -> None:
    assert biased(["1 2", "1 2", " 1 2 "], [1]) == biased(["1 2"], [1])


def test_no_words_and_no_boost_change_nothing() -> None:
    assert biased([], [1, 2]) == {}
    assert biased(["1 2"], [1], boost=0.0) == {}


def test_a_word_stands_after_a_space(transcriber: Transcriber) -> None:
    tokenizer = transcriber.engine.tokenizer
    logits = np.zeros(transcriber.engine.dims.n_vocab, np.float32)
    HotwordBias(["Szymborska"], tokenizer).apply(logits, [])
    assert np.flatnonzero(logits).tolist() == tokenizer.encode(" Szymborska")[:1]


@pytest.mark.parametrize(
    ("words", "boost", "message"),
    [
        (["1", ""], 2.0, "hotword '': empty"),
        (["1", " \t"], 2.0, "hotword '': empty"),
        (["1"] * (MAX_HOTWORDS + 1), 2.0, f"{MAX_HOTWORDS + 1} hot words, expected at most {MAX_HOTWORDS}"),
        (["1"], -0.1, "hotword_boost=-0.1: expected 0 to 20"),
        (["1"], 20.5, "hotword_boost=20.5: expected 0 to 20"),
    ],
)
def test_impossible_hot_words(words: list[str], boost: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HotwordBias(words, TOKENIZER, boost)


@pytest.fixture(scope="module")
def opening(jfk: np.ndarray) -> np.ndarray:
    """And so, my fellow Americans, ask not"""
    return jfk[: round(4.5 * SAMPLE_RATE)]


def test_a_phrase_tips_a_close_choice(transcriber: Transcriber, opening: np.ndarray) -> None:
    assert "fellow Americans" in transcriber.transcribe(opening).text
    text = transcriber.transcribe(opening, hotwords=("fellow America",), hotword_boost=5.0).text
    assert "fellow America" in text and "Americans" not in text


def test_a_phrase_tips_it_in_a_stream_too(transcriber: Transcriber, opening: np.ndarray) -> None:
    session = transcriber.stream(hotwords=("fellow America",), hotword_boost=5.0)
    events = [*session.accept_chunk(opening), *session.finish()]
    text = " ".join(event.committed for event in events if event.kind == "final")
    assert "fellow America" in text and "Americans" not in text


def test_what_was_not_said_is_not_written(transcriber: Transcriber, opening: np.ndarray) -> None:
    names = ("Kubernetes", "Szymborska", "Nguyen", "Kierkegaard", "Zürich")
    assert transcriber.transcribe(opening, hotwords=names).text == transcriber.transcribe(opening).text


@pytest.mark.parametrize("hotwords", [("",), ("a",) * (MAX_HOTWORDS + 1)])
def test_a_transcript_refuses_impossible_hot_words(
    transcriber: Transcriber, opening: np.ndarray, hotwords: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="hot ?word"):
        transcriber.transcribe(opening, hotwords=hotwords)
