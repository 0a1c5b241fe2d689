"""When a transcript cannot be trusted: loops, repetition, silence, too many tokens.

The measures are Whisper's (compression ratio, average log probability, no-speech probability) plus two
that act while decoding, so that a runaway costs milliseconds: an n-gram loop breaker and a token rate.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

MAX_NGRAM_TOKENS = 24
"""Longest phrase whose repetition is looked for."""
MIN_REPEATS = 4
"""A phrase said three times in a row is speech ("no, no, no"), four times and MIN_LOOP_TOKENS long a loop."""
MIN_LOOP_TOKENS = 12


def compression_ratio(text: str) -> float:
    """Bytes of text per zlib-compressed byte; repeated text is above 2.4 (openai/whisper utils.py)."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def find_loop(tokens: Sequence[int]) -> int | None:
    """Look for a loop at the end of tokens.

    Args:
        tokens: text tokens so far.

    Returns:
        How many tokens to keep (the phrase once), or None if there is no loop.
    """
    n_tokens = len(tokens)
    if n_tokens < MIN_LOOP_TOKENS:
        return None
    for size in range(1, min(MAX_NGRAM_TOKENS, n_tokens // MIN_REPEATS) + 1):
        repeats = max(MIN_REPEATS, -(-MIN_LOOP_TOKENS // size))
        span = repeats * size
        if span > n_tokens or tokens[-1] != tokens[-1 - size]:
            continue
        if all(tokens[-i] == tokens[-i - size] for i in range(1, span - size + 1)):
            first = n_tokens - span
            while first > 0 and tokens[first - 1] == tokens[first - 1 + size]:
                first -= 1
            return first + size
    return None


def max_tokens(audio_s: float, rate_tokens_per_s: float, extra_tokens: int, limit_tokens: int) -> int:
    """Most tokens that audio_s seconds of speech can hold; fast English speech is about 6 tokens/s."""
    return max(1, min(limit_tokens, int(audio_s * rate_tokens_per_s) + extra_tokens))
