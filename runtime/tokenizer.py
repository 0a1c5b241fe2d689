"""Token ids <-> text (byte-level BPE), special tokens, words.

    id < eot                     text
    sot, languages, tasks ...    special, never part of the text
    id >= timestamp_begin        time, 0.02 s each

Source: openai/whisper tokenizer.py; the vocabulary is the bundle's tokenizer.json.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence

import tokenizers

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BundleError, ConfigError

TIMESTAMP_S = 0.02
"""Seconds per timestamp token, and per position of the encoder's output."""
_NO_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages written without spaces: a word is a character there."""


class Tokenizer:
    """Text and special tokens of one checkpoint."""

    def __init__(self, bundle: Bundle) -> None:
        """Load the vocabulary of a bundle.

        Raises:
            BundleError: its tokenizer.json is none.
        """
        self.tokens = bundle.tokens
        try:
            self._bpe = tokenizers.Tokenizer.from_buffer(bundle.read("tokenizer.json"))
        except ValueError as error:
            path = bundle.file(bundle.stored("tokenizer.json"))
            raise BundleError(f"{path}: not a tokenizer ({error}); compile the bundle again") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of text, without special tokens."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; special tokens and timestamps are left out."""
        return str(self._bpe.decode([token for token in tokens if token < self.tokens.eot], skip_special_tokens=False))

    def is_timestamp(self, token: int) -> bool:
        """Whether token stands for a time."""
        return token >= self.tokens.timestamp_begin

    def timestamp_s(self, token: int) -> float:
        """Seconds from the window's start that a timestamp token stands for."""
        return (token - self.tokens.timestamp_begin) * TIMESTAMP_S

    def sot_sequence(
        self, language: str | None = None, task: str = "transcribe", timestamps: bool = False
    ) -> list[int]:
        """Return the tokens that start a transcript.

        Args:
            language: Whisper's code, e.g. "de"; needed by multilingual models.
            task: "transcribe" or "translate" (into English).
            timestamps: let the model write timestamp tokens.

        Returns:
            English-only [sot], multilingual [sot, language, task], and no_timestamps unless timestamps.

        Raises:
            ConfigError: unknown language or task, or one that this model cannot do.
        """
        if task not in ("transcribe", "translate"):
            raise ConfigError(f"task {task!r}: expected transcribe or translate")
        sequence = [self.tokens.sot]
        if self.tokens.multilingual:
            if language not in self.tokens.languages:
                known = ", ".join(sorted(self.tokens.languages)[:12])
                raise ConfigError(f"language {language!r}: expected one of {known} ...")
            sequence += [self.tokens.languages[language], getattr(self.tokens, task)]
        elif language not in (None, "en") or task == "translate":
            raise ConfigError(
                f"language {language!r}, task {task}: this model is English-only; use a multilingual bundle"
            )
        return sequence if timestamps else [*sequence, self.tokens.no_timestamps]

    def split_words(self, tokens: Sequence[int], language: str | None = None) -> list[tuple[str, list[int]]]:
        """Group text tokens into words.

        Args:
            tokens: text tokens; special ones are ignored.
            language: decides whether spaces separate words.

        Returns:
            (word with its leading space, its tokens), joined: the whole text. Punctuation is a word here.
        """
        pieces = self._split_unicode([token for token in tokens if token < self.tokens.eot])
        if language in _NO_SPACES:
            return pieces
        words: list[tuple[str, list[int]]] = []
        for text, ids in pieces:
            is_punctuation = text.strip() in string.punctuation
            if not words or text.startswith(" ") or is_punctuation:
                words.append((text, list(ids)))
            else:
                words[-1] = (words[-1][0] + text, words[-1][1] + ids)
        return words

    def _split_unicode(self, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Shortest runs of tokens that decode to whole characters."""
        pieces: list[tuple[str, list[int]]] = []
        whole = self.decode(tokens)
        pending: list[int] = []
        offset = 0
        for token in tokens:
            pending.append(token)
            text = self.decode(pending)
            broken = text.find("\ufffd")
            if broken < 0 or whole[offset + broken : offset + broken + 1] == "\ufffd":
                pieces.append((text, pending))
                offset += len(text)
                pending = []
        if pending:
            pieces.append((self.decode(pending), pending))
        return pieces
