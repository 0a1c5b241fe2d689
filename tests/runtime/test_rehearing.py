"""A phrase that is heard twice in the same audio is written once; one that is said twice is written twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scripted_engine import ScriptedEngine

from whisperfold.runtime.decoding import decode
from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.rehearing import find_rehearing
from whisperfold.runtime.session import CrossCache


def pieces(text: str) -> list[str]:
    return ["" if piece == "," else piece for piece in text.split()]


@pytest.mark.parametrize(
    ("text", "positions", "kept"),
    [
        ("they say in all they say in", [15, 25, 35, 45, 15, 26, 35], 4),
        ("they say in all they say in", [15, 25, 35, 45, 60, 70, 80], None),  # said again, later
        ("they say in all they say", [15, 25, 35, 45, 15, 26], None),  # too little to tell
        ("they say , in all , they say in", [15, 25, 90, 35, 45, 15, 16, 26, 35], 6),  # marks attend anywhere
        ("part two part two part", [10, 20, 11, 20, 10], 2),
        ("part two part two part", [10, 20, 40, 50, 70], None),
        ("no no no no no", [10, 20, 30, 40, 50], None),
        ("no no no no no", [10, 10, 10, 11, 10], 1),
        ("the cat sat on a mat and a cat sat on", [5, 10, 20, 30, 40, 50, 60, 70, 10, 21, 31], 8),  # goes back
        ("a cat sat on the cat sat on", [5, 10, 20, 30, 31, 11, 21, 30], 5),
        ("say in all the say in all", [15, 25, 35, 45, 19, 41, 36], None),  # one of three elsewhere
        ("", [], None),
    ],
)
def test_the_same_words_at_the_same_place(text: str, positions: list[int], kept: int | None) -> None:
    assert find_rehearing(pieces(text), positions) == kept


class AttendingEngine(ScriptedEngine):
    """Token i, of a prefix of n_prefix tokens and the script after it, attends to places[i]."""

    def __init__(self, script: list[int], places: list[int], n_prefix: int = 0) -> None:
        super().__init__(script)
        self.places, self.n_prefix = places, n_prefix
        self.bundle = SimpleNamespace(name="attending", alignment_heads=[(0, 0), (0, 1)])

    def step(self, tokens: np.ndarray, cache: Any, positions: Any = None, attention: bool = False) -> Any:
        first = cache.length
        logits, weights = super().step(tokens, cache, positions, attention)
        if weights is not None:
            weights[:] = 0.01
            for i in range(tokens.shape[1]):
                said = first + i + 1 - self.n_initial + self.n_prefix
                at = self.places[min(max(said, 0), len(self.places) - 1)]
                weights[:, :, i, max(0, at - 4) : at + 5] = 0.5
        return logits, weights


def run(engine: AttendingEngine, **options: Any) -> Any:
    return decode(engine, CrossCache([], 1, 50), DecodingOptions(temperatures=(0.0,), **options), 1.0)  # type: ignore[arg-type]


AGAIN = ([1, 2, 3, 4, 1, 2, 3, 4, 9], [5, 10, 20, 30, 5, 10, 20, 30, 40])


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_transcript_ends_where_it_begins_to_hear_again(beam_size: int) -> None:
    result = run(AttendingEngine(*AGAIN), beam_size=beam_size)
    assert (result.tokens, result.stop) == ((1, 2, 3, 4), "eot")
    assert len(result.token_logprobs) == 4 and result.cross_attention is None


def test_the_greedy_search_stops_with_it() -> None:
    engine = AttendingEngine(*AGAIN)
    assert run(engine, attention=True, beam_size=1).cross_attention.shape[1] == 5
    assert [step[-1] for step in engine.fed[1:]] == [1, 2, 3, 4, 1, 2]


def test_what_is_said_twice_is_written_twice() -> None:
    script, _ = AGAIN
    assert run(AttendingEngine(script, [2, 6, 10, 14, 20, 26, 32, 38, 44])).tokens == tuple(script)


def test_a_forced_prefix_is_not_written_again() -> None:
    engine = AttendingEngine([1, 2, 3, 9], [5, 10, 20, 5, 10, 20, 40], n_prefix=3)
    assert run(engine, prefix=(1, 2, 3)).tokens == (1, 2, 3)


def test_without_guards_everything_is_written() -> None:
    script, places = AGAIN
    assert run(AttendingEngine(script, places), loop_guard=False).tokens == tuple(script)
