"""Which tokens of a hypothesis may be committed, while its speaker still talks.

    LocalAgreement-2     what two successive hypotheses share (Macháček et al. 2023, arXiv 2307.14743)
    attention frontier   what looks at audio that is older than a margin (AlignAtt, Papi et al. 2023, arXiv 2305.11408)

Both count whole words, and leave the marks at the end of a hypothesis: "the cat." may go on "the cat sat".
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from whisperfold.runtime.attention import strongest_positions
from whisperfold.runtime.tokenizer import Tokenizer

MARKS = string.punctuation + string.whitespace + "…“”‘’。，！？、"
"""What a token may hold beside words."""
POLICIES = ("local-agreement", "attention-frontier")


def agreed_tokens(previous: Sequence[int], current: Sequence[int]) -> int:
    """Return how many leading tokens two hypotheses share."""
    n = 0
    for a, b in zip(previous, current, strict=False):
        if a != b:
            break
        n += 1
    return n


def tokens_before_frontier(attention: np.ndarray, frontier: int) -> int:
    """Return how many leading tokens attend to positions before a frontier.

    Args:
        attention: float32 (n_heads, n_tokens, n_positions), cross attention of the alignment heads.
        frontier: first position (20 ms) that counts as too new.

    Returns:
        Index of the first token whose strongest position is at or behind the frontier, n_tokens if there is none.
    """
    late = np.flatnonzero(strongest_positions(attention) >= frontier)
    return int(late[0]) if late.size else attention.shape[1]


def whole_words(tokens: Sequence[int], n_tokens: int, tokenizer: Tokenizer, language: str) -> int:
    """Return n_tokens rounded down to the end of a word, without the marks at the end of the hypothesis.

    Args:
        tokens: of the hypothesis, after what is committed.
        n_tokens: how many of them a policy would commit.
        tokenizer: splits them into words.
        language: decides whether spaces separate words.
    """
    end = 0
    for _, ids in tokenizer.split_words(tokens, language):
        if end + len(ids) > n_tokens:
            return end
        end += len(ids)
    while end and not tokenizer.decode(tokens[end - 1 : end]).strip(MARKS):
        end -= 1
    return end


def ends_sentence(text: str) -> bool:
    """Whether text ends as a sentence does."""
    return text.rstrip(" \"'”’)]").endswith((".", "!", "?", "。", "！", "？")) and not text.rstrip().endswith("...")
