"""Beam search: the best of several transcripts that grow side by side in one decoder batch.

Source: openai/whisper decoding.py (BeamSearchDecoder, patience 1, score = mean log probability).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whisperfold.runtime.filters import LogitFilter, log_sum_exp
from whisperfold.runtime.guards import find_loop
from whisperfold.runtime.session import Engine, KVCache


@dataclass
class _Beam:
    """One transcript so far."""

    tokens: list[int]
    logprobs: list[float]

    @property
    def total(self) -> float:
        """Log probability of the whole transcript."""
        return sum(self.logprobs)

    @property
    def score(self) -> float:
        """Mean log probability, so that long transcripts are not at a loss."""
        return self.total / max(1, len(self.logprobs))


def beam_search(
    engine: Engine,
    logits: np.ndarray,
    cache: KVCache,
    logit_filter: LogitFilter,
    prefix: list[int],
    limit_tokens: int,
    beam_size: int,
    *,
    loop_guard: bool = False,
) -> tuple[list[int], list[float], str]:
    """Search with beam_size transcripts.

    Args:
        engine: the bundle's sessions.
        logits: float32 (n_vocab,) after the start sequence.
        cache: after the start sequence, batch 1.
        logit_filter: Whisper's filters.
        prefix: forced tokens that the filters must see.
        limit_tokens: most tokens of a transcript.
        beam_size: transcripts kept per step.
        loop_guard: stop when the likeliest transcript repeats itself.

    Returns:
        Tokens without eot, log probabilities (eot's last if reached), and "eot", "loop" or "limit".
    """
    eot = engine.tokens.eot
    beams, rows_logits, finished = [_Beam([], [])], logits[None], list[_Beam]()
    for _ in range(limit_tokens):
        candidates: list[tuple[float, int, int, float]] = []
        for row, beam in enumerate(beams):
            scores = logit_filter.apply(rows_logits[row].copy(), prefix + beam.tokens)
            scores -= log_sum_exp(scores)
            for token in np.argpartition(scores, -beam_size - 1)[-beam_size - 1 :].tolist():
                candidates.append((beam.total + float(scores[token]), row, token, float(scores[token])))
        kept, rows = list[_Beam](), list[int]()
        for total, row, token, logprob in sorted(candidates, reverse=True):
            if total == -np.inf or len(kept) == beam_size:
                break
            grown = _Beam([*beams[row].tokens, token], [*beams[row].logprobs, logprob])
            if token == eot:
                if len(finished) < beam_size:
                    finished.append(grown)
            else:
                kept.append(grown)
                rows.append(row)
        if len(finished) >= beam_size or not kept or len(kept[0].tokens) >= limit_tokens:
            beams = kept
            break
        beams = kept
        if loop_guard and find_loop(beams[0].tokens) is not None:
            if not finished:
                return beams[0].tokens, beams[0].logprobs, "loop"
            break
        cache = engine.reorder(cache, np.array(rows, np.int64))
        step_logits, _ = engine.step(np.array([[beam.tokens[-1]] for beam in beams], np.int64), cache)
        rows_logits = step_logits[:, 0]
    if finished:
        best = max(finished, key=lambda beam: beam.score)
        return best.tokens[:-1], best.logprobs, "eot"
    best = max(beams, key=lambda beam: beam.score)
    return best.tokens, best.logprobs, "limit"
