"""Words with timestamps: dynamic time warping through the cross attention of the alignment heads.

    attention (heads, tokens, T) -> z-score over tokens -> median over 7 positions -> mean over heads
    -> cheapest monotonic path token/position -> a word lasts from its first token's jump to the next word's

Source: openai/whisper timing.py. T is 20 ms per position.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from whisperfold.runtime.attention import median_filter
from whisperfold.runtime.decoding import DecodingResult
from whisperfold.runtime.tokenizer import TIMESTAMP_S, Tokenizer
from whisperfold.runtime.transcript import Word

_PREPENDED = frozenset("\"'“¿([{-")
"""Punctuation that belongs to the next word."""
_APPENDED = frozenset("\"'.。,，!！?？:：”)]}、;…-")
"""Punctuation that belongs to the word before."""


def word_timestamps(
    result: DecodingResult, tokenizer: Tokenizer, audio_s: float, n_tokens: int | None = None
) -> list[Word]:
    """Return the words of a decoded window.

    Args:
        result: of `decode` with attention=True.
        tokenizer: of the same bundle.
        audio_s: seconds of audio in the window, without padding; no word ends later.
        n_tokens: return the words of the first n tokens only; all of them are aligned.

    Returns:
        Words with times in seconds from the window's start; empty if there is no text or no attention.
    """
    rows = [i for i, token in enumerate(result.tokens) if token < tokenizer.tokens.eot]
    text_tokens = [result.tokens[i] for i in rows if n_tokens is None or i < n_tokens]
    if not text_tokens or result.cross_attention is None or result.cross_attention.shape[0] == 0:
        return []
    n_positions = max(1, min(result.cross_attention.shape[2], round(audio_s / TIMESTAMP_S)))
    if result.cross_attention.shape[1] > len(result.tokens):
        rows = [*rows, len(result.tokens)]  # the row of eot ends the last word
    starts_s = align(result.cross_attention[:, rows, :n_positions]) * TIMESTAMP_S
    bounds_s = np.append(starts_s, audio_s)
    probabilities = np.exp([result.token_logprobs[i] for i in rows[: len(text_tokens)]])
    words, first = [], 0
    for text, ids in tokenizer.split_words(text_tokens, result.language):
        last = first + len(ids)
        words.append(Word(float(bounds_s[first]), float(bounds_s[last]), text, float(probabilities[first:last].mean())))
        first = last
    return _merge_punctuation(_shorten(words))


def align(attention: np.ndarray) -> np.ndarray:
    """Return the position at which each token begins.

    Args:
        attention: float32 (n_heads, n_tokens, n_positions), softmax weights.

    Returns:
        int64 (n_tokens,), not decreasing.
    """
    weights = attention / np.maximum(attention.sum(axis=-1, keepdims=True), 1e-9)
    spread = weights.std(axis=-2, keepdims=True)
    weights = (weights - weights.mean(axis=-2, keepdims=True)) / np.maximum(spread, 1e-9)
    tokens, positions = dtw_path(-median_filter(weights).mean(axis=0))
    is_jump = np.diff(tokens, prepend=-1) > 0
    return positions[is_jump]


def dtw_path(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cheapest monotonic path from corner to corner, computed one anti-diagonal at a time.

    Args:
        cost: float (n, m).

    Returns:
        Row and column indices along the path, int64, each not decreasing.
    """
    n, m = cost.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0.0
    trace = np.zeros((n + 1, m + 1), np.int8)  # 0 diagonal, 1 from the row above, 2 from the column before
    for diagonal in range(2, n + m + 1):
        i = np.arange(max(1, diagonal - m), min(n, diagonal - 1) + 1)
        j = diagonal - i
        both, above, before = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        step = np.where((both < above) & (both < before), 0, np.where((above < both) & (above < before), 1, 2))
        trace[i, j] = step
        total[i, j] = cost[i - 1, j - 1] + np.choose(step, [both, above, before])
    trace[0, :], trace[:, 0] = 2, 1
    row, column, path = n, m, []
    while row > 0 or column > 0:
        path.append((row - 1, column - 1))
        step_back = trace[row, column]
        row, column = row - (step_back != 2), column - (step_back != 1)
    indices = np.array(path[::-1], np.int64)
    indices = indices[(indices >= 0).all(axis=1)]
    return indices[:, 0], indices[:, 1]


def _shorten(words: list[Word]) -> list[Word]:
    """Cut words that swallowed a pause: at most twice the median length, and never below 0.7 s.

    The pause lies before a word, unless it is the last one or a punctuation mark.
    """
    lengths_s = [word.end_s - word.start_s for word in words if word.end_s > word.start_s]
    longest_s = max(0.7, 2.0 * min(0.7, float(np.median(lengths_s)))) if lengths_s else 0.7
    out = list(words)
    for i, word in enumerate(words):
        if word.end_s - word.start_s <= longest_s:
            continue
        if i == len(words) - 1 or word.text.strip() in _APPENDED:
            out[i] = replace(word, end_s=word.start_s + longest_s)
        else:
            out[i] = replace(word, start_s=word.end_s - longest_s)
    return out


def _merge_punctuation(words: list[Word]) -> list[Word]:
    """Attach punctuation to its word; the word keeps its own times and probability."""
    merged: list[Word] = []
    opening = ""
    for i, word in enumerate(words):
        bare = word.text.strip()
        is_mark = bool(bare) and all(character in _PREPENDED | _APPENDED for character in bare)
        if is_mark and word.text.startswith(" ") and bare in _PREPENDED and i + 1 < len(words):
            opening += word.text
        elif is_mark and merged and not word.text.startswith(" "):
            merged[-1] = replace(merged[-1], text=merged[-1].text + word.text)
        else:
            merged.append(replace(word, text=opening + (word.text.lstrip() if opening else word.text)))
            opening = ""
    return merged
