"""One search over one window: cross caches in, tokens out; greedy, sampling or beams.

    [sot_prev, prompt ...] sot [language task] [no_timestamps] prefix ...   first step, two logit rows
    token -> logits -> filters -> argmax -> token                            one logit row per step
    until eot, a loop, a phrase that was heard already, or more tokens than the audio can hold

decoding.py decides which attempts are made and which one counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whisperfold.runtime.beam import beam_search
from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.filters import LogitFilter, log_sum_exp
from whisperfold.runtime.guards import find_loop
from whisperfold.runtime.rehearing import Heard
from whisperfold.runtime.session import CrossCache, Engine, KVCache


@dataclass
class Search:
    """What one search over one window starts from, and what all its attempts share."""

    engine: Engine
    cross: CrossCache
    initial: list[int]
    prefix: list[int]
    filter: LogitFilter
    limit_tokens: int
    n_positions: int
    options: DecodingOptions
    no_speech_prob: float = 0.0
    blank_prob: float = 0.0
    first_logits: np.ndarray | None = None
    first_attention: np.ndarray | None = None
    first_cache: KVCache | None = None

    @property
    def watches(self) -> bool:
        """Whether the cross attention is read: asked for, or needed by the guard against a phrase heard twice."""
        return self.options.attention or (self.options.loop_guard and bool(self.engine.bundle.alignment_heads))

    @property
    def is_blank(self) -> bool:
        """Whether the model hears nothing at all; known after `start`."""
        return self.blank_prob > self.options.blank_threshold

    def start(self) -> tuple[np.ndarray, KVCache, np.ndarray | None]:
        """Run (once) the start sequence; return its last logits, a cache of its own, and attention."""
        if self.first_cache is None:
            tokens = np.array([self.initial + self.prefix], np.int64)
            sot = self.initial.index(self.engine.tokens.sot)
            positions = np.array([sot, tokens.shape[1] - 1], np.int64)
            cache = self.engine.new_cache(self.cross)
            logits, attention = self.engine.step(tokens, cache, positions, self.watches)
            rows = logits[0]
            self.no_speech_prob = _probability(rows[0], self.engine.tokens.no_speech)
            self.blank_prob = 0.0 if self.prefix else _probability(rows[1], self.engine.tokens.eot)
            self.first_logits, self.first_cache = rows[1], cache
            if attention is not None:
                self.first_attention = attention[0][:, len(self.initial) - 1 :]
        assert self.first_logits is not None
        cache = self.first_cache
        return (
            self.first_logits.copy(),
            KVCache(cache.cross, list(cache.past), cache.length),
            self.first_attention,
        )


@dataclass
class Attempt:
    """Tokens of one attempt without the prefix, log probabilities (eot's last if reached), attention."""

    tokens: list[int]
    logprobs: list[float]
    stop: str
    attention: list[np.ndarray]

    @property
    def avg_logprob(self) -> float:
        """Mean over tokens and eot."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else 0.0


def make_attempt(search: Search, temperature: float) -> Attempt:
    """One search at one temperature."""
    if temperature == 0.0 and search.options.beam_size > 1:
        return _beams(search)
    return _one_path(search, temperature)


def _beams(search: Search) -> Attempt:
    """Several transcripts side by side, the best of them."""
    logits, cache, attention = search.start()
    if search.is_blank:
        return Attempt([], [], "eot", [] if attention is None else [attention])
    tokens, logprobs, stop = beam_search(
        search.engine,
        logits,
        cache,
        search.filter,
        search.prefix,
        search.limit_tokens,
        search.options.beam_size,
        loop_guard=search.options.loop_guard,
    )
    rows = [_replay(search, tokens)] if search.watches else []
    return _once(search, _guarded(search, Attempt(tokens, logprobs, stop, rows)))


def _one_path(search: Search, temperature: float) -> Attempt:
    """Greedy (temperature 0) or sampled tokens until eot, a loop or the limit."""
    engine, options = search.engine, search.options
    eot, prefix = engine.tokens.eot, search.prefix
    tokens, logprobs = list[int](), list[float]()
    random = np.random.default_rng([options.seed, round(temperature * 1000)])
    logits, cache, attention = search.start()
    rows = [] if attention is None else [attention]
    heard = _heard(search, attention)
    stop = "eot" if search.is_blank else "limit"
    while stop == "limit":
        search.filter.apply(logits, prefix + tokens)
        token = _sample(logits, temperature, random)
        logprobs.append(float(logits[token]) - log_sum_exp(logits))
        if token == eot:
            stop = "eot"
            break
        tokens.append(token)
        if options.loop_guard and find_loop(tokens) is not None:
            stop = "loop"
        if heard is not None:
            heard.say([token])
            kept = heard.again()
            if kept is not None:
                return _cut(Attempt(tokens, logprobs, stop, rows), kept - len(prefix), "eot")
        if stop == "loop" or len(tokens) >= search.limit_tokens:
            break
        step_logits, attention = engine.step(np.array([[token]], np.int64), cache, attention=search.watches)
        logits = step_logits[0, 0]
        if attention is not None:
            rows.append(attention[0])
            if heard is not None:
                heard.attend(attention[0])
    return _guarded(search, Attempt(tokens, logprobs, stop, rows))


def _heard(search: Search, attention: np.ndarray | None) -> Heard | None:
    """What the guard against a phrase heard twice knows after the start sequence; None where it is off."""
    if attention is None or not search.options.loop_guard:
        return None
    heard = Heard(search.engine.tokenizer, search.n_positions)
    heard.say(search.prefix)
    heard.attend(attention)
    return heard


def _guarded(search: Search, attempt: Attempt) -> Attempt:
    """Cut a loop to one repetition."""
    kept = find_loop(attempt.tokens) if search.options.loop_guard else None
    return attempt if kept is None else _cut(attempt, kept, "loop")


def _once(search: Search, attempt: Attempt) -> Attempt:
    """Cut a finished transcript where it begins to hear again what it has heard."""
    heard = _heard(search, attempt.attention[0]) if attempt.attention else None
    if heard is None:
        return attempt
    for token in attempt.tokens:
        heard.say([token])
        kept = heard.again()
        if kept is not None:
            return _cut(attempt, kept - len(search.prefix), "eot")
    return attempt


def _cut(attempt: Attempt, kept: int, stop: str) -> Attempt:
    """Keep so many tokens; none if fewer than none are left."""
    kept = max(0, kept)
    return Attempt(attempt.tokens[:kept], attempt.logprobs[:kept], stop, attempt.attention)


def _replay(search: Search, tokens: list[int]) -> np.ndarray:
    """Cross attention of a finished transcript in one decoder run (beams do not keep theirs)."""
    cache = search.engine.new_cache(search.cross)
    whole = np.array([search.initial + search.prefix + tokens], np.int64)
    _, attention = search.engine.step(whole, cache, attention=True)
    assert attention is not None
    return np.asarray(attention[0][:, len(search.initial) - 1 :])


def _sample(logits: np.ndarray, temperature: float, random: np.random.Generator) -> int:
    """argmax, or a draw from softmax(logits / temperature) by the Gumbel trick."""
    if temperature == 0.0:
        return int(logits.argmax())
    return int((logits / temperature + random.gumbel(size=logits.size).astype(np.float32)).argmax())


def _probability(logits: np.ndarray, token: int) -> float:
    """softmax(logits)[token]."""
    return float(np.exp(logits[token] - log_sum_exp(logits)))
