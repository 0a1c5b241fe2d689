"""Logit filters of Whisper: what the next token may not be.

`LogitFilter` adds one precomputed float32 (n_vocab,) bias of 0 and -inf per step; only the timestamp
rules look at the tokens so far. Source: openai/whisper decoding.py (SuppressBlank, SuppressTokens,
ApplyTimestampRules).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whisperfold.runtime.hotwords import HotwordBias
from whisperfold.runtime.manifest import Tokens
from whisperfold.runtime.tokenizer import TIMESTAMP_S

_NEVER = np.float32(-np.inf)


def log_sum_exp(logits: np.ndarray) -> float:
    """log(sum(exp(logits))) of a float32 vector, without a log_softmax of everything."""
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()))


class LogitFilter:
    """The filters of one window; stateless, so beams can share it."""

    def __init__(
        self,
        tokens: Tokens,
        n_vocab: int,
        timestamps: bool = False,
        max_initial_timestamp_s: float = 1.0,
        audio_s: float = 30.0,
        hotwords: HotwordBias | None = None,
    ) -> None:
        """Precompute the biases.

        Args:
            tokens: special ids and suppressed tokens of the bundle.
            n_vocab: width of the logits.
            timestamps: apply the timestamp rules; otherwise timestamps are suppressed.
            max_initial_timestamp_s: the first segment starts at most this late.
            audio_s: length of the window: later timestamps are suppressed.
            hotwords: words to prefer.
        """
        self._tokens = tokens
        self._hotwords = hotwords
        self._timestamps = timestamps
        self._max_initial = tokens.timestamp_begin + round(max_initial_timestamp_s / TIMESTAMP_S)
        bias = np.zeros(n_vocab, np.float32)
        never = {
            *tokens.suppress,
            tokens.transcribe,
            tokens.translate,
            tokens.sot,
            tokens.sot_prev,
            tokens.sot_lm,
        }
        never |= {tokens.no_speech, tokens.no_timestamps, *tokens.languages.values()}
        never.discard(tokens.eot)
        bias[[token for token in never if 0 <= token < n_vocab]] = _NEVER
        if timestamps:
            bias[tokens.timestamp_begin + round(audio_s / TIMESTAMP_S) + 1 :] = _NEVER
        else:
            bias[tokens.timestamp_begin :] = _NEVER
        self._bias = bias
        self._begin_bias = bias.copy()
        self._begin_bias[[token for token in tokens.suppress_begin if token < n_vocab]] = _NEVER
        self._begin_bias[tokens.eot] = _NEVER

    def apply(self, logits: np.ndarray, sampled: Sequence[int]) -> np.ndarray:
        """Forbid tokens in place.

        Args:
            logits: float32 (n_vocab,), changed.
            sampled: tokens after the start sequence (and after a forced prefix).

        Returns:
            The same array.
        """
        logits += self._bias if sampled else self._begin_bias
        if self._hotwords is not None:
            self._hotwords.apply(logits, sampled)
        if self._timestamps:
            self._apply_timestamp_rules(logits, sampled)
        return logits

    def _apply_timestamp_rules(self, logits: np.ndarray, sampled: Sequence[int]) -> None:
        """Timestamps come in pairs, never go back, start early, and win when likelier than any text."""
        begin, eot = self._tokens.timestamp_begin, self._tokens.eot
        if not sampled:
            logits[:begin] = _NEVER
            logits[self._max_initial + 1 :] = _NEVER
            return
        if sampled[-1] >= begin:
            if len(sampled) < 2 or sampled[-2] >= begin:
                logits[begin:] = _NEVER
            else:
                logits[:eot] = _NEVER
        times = [token for token in sampled if token >= begin]
        if times:
            # a segment has a length: only the token that closes the pair may repeat the time
            is_pair_start = sampled[-1] >= begin and not (len(sampled) < 2 or sampled[-2] >= begin)
            logits[begin : times[-1] + (0 if is_pair_start else 1)] = _NEVER
        later = logits[begin:]
        if later.max() > _NEVER and log_sum_exp(later) > logits[:begin].max():
            logits[:begin] = _NEVER
