"""Hot words: names and terms that the decoder should expect -> a bias on the next token's logits.

    trie of token sequences, one per spelling          " Kyiv" -> [6707, 85], " kyiv" -> ...
    the tokens so far end inside a hot word            bias its next tokens by `boost`
    otherwise                                          bias first tokens by a share of it

It needs no vocabulary of a special kind: whatever the tokenizer makes of a word is what the trie holds. A bias can
only tip a choice between likely tokens; what was not said stays unlikely.

Source: prefix-trie biasing as in contextual shallow fusion (Zhao et al. 2019, arXiv 1911.02242), per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.tokenizer import Tokenizer

MAX_HOTWORDS = 500
"""More would bias everything, and so nothing."""
FIRST_SHARE = 0.5
"""Bias of a hot word's first token as a share of the boost: it is added at every step of the transcript."""


class HotwordBias:
    """The trie of one list of hot words; stateless between steps, so beams can share it."""

    def __init__(self, words: Iterable[str], tokenizer: Tokenizer, boost: float = 2.0) -> None:
        """Build the trie.

        Args:
            words: as they should be spelled; several words in one entry are a phrase.
            tokenizer: of the bundle.
            boost: added to the logits of tokens that go on with a hot word, nats.

        Raises:
            ConfigError: an empty entry, more than MAX_HOTWORDS, or a boost outside 0 to 20.
        """
        entries = [word.strip() for word in words]
        if not all(entries):
            raise ConfigError("hotword '': empty, expected a word or a phrase")
        if len(entries) > MAX_HOTWORDS:
            raise ConfigError(f"{len(entries)} hot words, expected at most {MAX_HOTWORDS}; keep the ones that matter")
        if not 0.0 <= boost <= 20.0:
            raise ConfigError(f"hotword_boost={boost}: expected 0 to 20 (nats)")
        self._boost = np.float32(boost)
        self._next: dict[tuple[int, ...], set[int]] = {}
        for sequence in {tuple(tokenizer.encode(" " + word)) for word in entries}:
            for length in range(len(sequence)):
                self._next.setdefault(sequence[:length], set()).add(sequence[length])
        self._longest = max((len(prefix) for prefix in self._next), default=0)
        self._first = np.array(sorted(self._next.get((), ())), np.int64)

    def apply(self, logits: np.ndarray, sampled: Sequence[int]) -> None:
        """Raise the logits of tokens that begin or continue a hot word.

        Args:
            logits: float32 (n_vocab,), changed.
            sampled: text tokens so far.
        """
        logits[self._first] += FIRST_SHARE * self._boost
        for length in range(min(self._longest, len(sampled)), 0, -1):
            following = self._next.get(tuple(sampled[len(sampled) - length :]))
            if following:
                logits[list(following)] += self._boost
                return
