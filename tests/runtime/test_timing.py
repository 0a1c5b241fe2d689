"""Words with times: the warping path, and words of a clip whose times are known."""

import numpy as np
import pytest

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.decoding import DecodingResult
from whisperfold.runtime.segments import timestamp_spans
from whisperfold.runtime.timing import align, dtw_path, median_filter, word_timestamps
from whisperfold.runtime.tokenizer import Tokenizer
from whisperfold.runtime.transcribe import Transcriber


def slow_dtw(cost: np.ndarray) -> float:
    """Cheapest path by the textbook loop."""
    n, m = cost.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            total[i, j] = cost[i - 1, j - 1] + min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
    return float(total[n, m])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 9), (20, 60)])
def test_path_is_the_cheapest(shape: tuple[int, int]) -> None:
    cost = np.random.default_rng(0).normal(size=shape)
    rows, columns = dtw_path(cost)
    assert (rows[0], columns[0]) == (0, 0) and (rows[-1] + 1, columns[-1] + 1) == shape
    steps = np.diff(np.stack([rows, columns]), axis=1)
    assert ((steps >= 0) & (steps <= 1)).all() and (steps.sum(axis=0) > 0).all()
    assert cost[rows, columns].sum() == pytest.approx(slow_dtw(cost))


def test_median_filter() -> None:
    values = np.zeros((1, 20), np.float32)
    values[0, 10] = 9.0
    assert median_filter(values).max() == 0.0
    assert np.array_equal(median_filter(values[:, :3]), values[:, :3])
    noise = np.random.default_rng(0).normal(size=20)
    mirrored = np.pad(noise, 3, mode="reflect")
    assert np.array_equal(median_filter(noise), [np.median(mirrored[i : i + 7]) for i in range(20)])


def test_align_finds_the_diagonal() -> None:
    attention = np.full((2, 5, 100), 1e-4, np.float32)
    for token in range(5):
        attention[:, token, 20 * token : 20 * token + 20] = 0.05
    assert np.abs(align(attention) - [0, 20, 40, 60, 80]).max() <= 4


def test_words_of_the_sample_clip(transcriber: Transcriber, jfk: np.ndarray) -> None:
    words = transcriber.transcribe(jfk, word_timestamps=True).segments[0].words
    text = "".join(word.text for word in words).strip()
    assert text == transcriber.transcribe(jfk).text
    assert all(0.0 <= word.start_s <= word.end_s <= 11.0 for word in words)
    assert all(a.end_s <= b.start_s + 1e-6 for a, b in zip(words, words[1:], strict=False))
    assert all(0.0 < word.probability <= 1.0 for word in words)
    by_name = {word.text.strip(" ,.").lower(): word for word in words}
    for name, start_s, end_s in (("americans", 1.7, 2.4), ("fellow", 1.3, 1.9)):  # heard in the clip
        assert abs(by_name[name].start_s - start_s) < 0.4 and abs(by_name[name].end_s - end_s) < 0.4
    assert 9.5 < by_name["country"].end_s < 11.0


def fake_result(tokens: list[int], n_rows: int, n_positions: int = 100) -> DecodingResult:
    attention = np.full((1, n_rows, n_positions), 1.0 / n_positions, np.float32)
    return DecodingResult(tuple(tokens), "", -0.1, 0.0, 1.0, 0.0, tuple([-0.1] * len(tokens)), attention)


def test_a_transcript_without_eot_ends_with_the_audio(bundle: Bundle) -> None:
    tokenizer = Tokenizer(bundle)
    tokens = tokenizer.encode(" one two three")
    words = word_timestamps(fake_result(tokens, len(tokens)), tokenizer, 1.5)
    assert [word.text for word in words] == [" one", " two", " three"]
    assert all(word.end_s <= 1.5 for word in words)
    assert word_timestamps(fake_result([], 1), tokenizer, 1.5) == []


def test_punctuation_stays_with_its_word(bundle: Bundle) -> None:
    tokenizer = Tokenizer(bundle)
    tokens = tokenizer.encode(' He said, "yes!" (no).')
    words = word_timestamps(fake_result(tokens, len(tokens) + 1), tokenizer, 2.0)
    assert "".join(word.text for word in words) == ' He said, "yes!" (no).'
    assert all(any(character.isalpha() for character in word.text) for word in words)


def test_timestamp_tokens_cut_a_window(bundle: Bundle) -> None:
    tokenizer = Tokenizer(bundle)
    begin = bundle.tokens.timestamp_begin
    tokens = (begin, 11, 12, begin + 50, begin + 60, 13, begin + 900)
    assert list(timestamp_spans(tokens, tokenizer, 3.0)) == [
        (0.0, 1.0, [11, 12]),
        (pytest.approx(1.2), 3.0, [13]),
    ]
    assert list(timestamp_spans((11, 12), tokenizer, 3.0)) == [(0.0, 3.0, [11, 12])]
    assert list(timestamp_spans((), tokenizer, 3.0)) == []
