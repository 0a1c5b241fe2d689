"""A phrase that the model hears twice in the same audio, told apart from one that was said twice.

    tokens, and where each attends -> a run that repeats earlier tokens at the same places -> how many tokens to keep

At the end of a short window Whisper may start again where it should stop: "They say, in all our blood, they say, in all
our blood." Who says a phrase twice says it at two times, and the cross attention follows them; a model that hears it
twice looks at the same 20 ms again (docs/decisions/0019).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whisperfold.runtime.agreement import MARKS
from whisperfold.runtime.attention import strongest_positions
from whisperfold.runtime.tokenizer import Tokenizer

_RUN = 3
"""Word pieces in a row that must repeat."""
_NEAR_POSITIONS = 5
"""How far apart (20 ms each) two tokens may attend and count as one sound, for every piece between them ..."""
_MOST_POSITIONS = 15
"""... up to this."""


class Heard:
    """The tokens of a window as they are produced, and where in the audio each was heard."""

    def __init__(self, tokenizer: Tokenizer, n_positions: int) -> None:
        """Start empty.

        Args:
            tokenizer: of the bundle.
            n_positions: encoder positions (20 ms) of the audio without its padding.
        """
        self._tokenizer = tokenizer
        self._n_positions = max(1, n_positions)
        self._pieces = list[str]()
        self._positions = list[int]()

    def attend(self, attention: np.ndarray) -> None:
        """Take float32 (n_heads, n, T): what the next n tokens attend to."""
        self._positions += strongest_positions(attention[:, :, : self._n_positions]).tolist()

    def say(self, tokens: Sequence[int]) -> None:
        """Take the tokens."""
        self._pieces += [self._piece(token) for token in tokens]

    def again(self) -> int | None:
        """Return how many tokens to keep where the last ones were heard before, else None."""
        return find_rehearing(self._pieces, self._positions)

    def _piece(self, token: int) -> str:
        """A token's text without case and marks; parts of characters go by their number."""
        text = self._tokenizer.decode([token])
        return str(token) if "\ufffd" in text else text.strip(MARKS).lower()


def find_rehearing(pieces: Sequence[str], positions: Sequence[int]) -> int | None:
    """Look for a repetition of what was heard at the end of a transcript.

    Args:
        pieces: text of every token, without case and marks; empty ones (a comma) are passed over.
        positions: where each attends, in encoder positions; there may be more of them than pieces.

    Returns:
        How many tokens to keep, or None if the last ones are new.
    """
    spoken = [i for i, piece in enumerate(pieces) if piece]
    words, at = [pieces[i] for i in spoken], [positions[i] for i in spoken]
    n = len(words)
    for shift in range(1, n - _RUN + 1):
        near = min(_NEAR_POSITIONS * shift, _MOST_POSITIONS)
        if all(
            words[i] == words[i - shift] and abs(at[i] - at[i - shift]) <= near for i in range(n - 1, n - _RUN - 1, -1)
        ):
            first = n - _RUN
            while first > shift and words[first - 1] == words[first - 1 - shift]:
                first -= 1
            return spoken[first]
    return None
