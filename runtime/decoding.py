"""Search loop: cross caches in, tokens out; greedy, sampling, beams, and the fallback between them.

    [sot_prev, prompt ...] sot [language task] [no_timestamps] prefix ...   first step, two logit rows
    token -> logits -> filters -> argmax -> token                            one logit row per step
    until eot, a loop, or more tokens than the audio can hold

Source: openai/whisper decoding.py and transcribe.py (filters, fallback, thresholds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.filters import LogitFilter, log_sum_exp
from whisperfold.runtime.guards import compression_ratio, find_loop, max_tokens
from whisperfold.runtime.session import CrossCache, Engine, KVCache
from whisperfold.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class DecodingResult:
    """One window's transcript."""

    tokens: tuple[int, ...]
    """Produced tokens, prefix included, without start sequence and eot."""
    text: str
    avg_logprob: float
    """Mean log probability of the produced tokens and eot; 0 if none."""
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    token_logprobs: tuple[float, ...]
    """Log probability of each of tokens; 0 for a forced prefix."""
    cross_attention: np.ndarray | None = None
    """float32 (n_alignment_heads, len(tokens) + 1, T): row i is what produced token i, the last one eot."""
    language: str = "en"
    stop: str = "eot"
    """"eot", "loop" (cut by the loop guard), "limit" (token rate) or "silence" (no text by a guard)."""


@dataclass
class _Search:
    """What one search over one window starts from, and what all its attempts share."""

    engine: Engine
    cross: CrossCache
    initial: list[int]
    prefix: list[int]
    filter: LogitFilter
    limit_tokens: int
    options: DecodingOptions
    no_speech_prob: float = 0.0
    blank_prob: float = 0.0
    first_logits: np.ndarray | None = None
    first_attention: np.ndarray | None = None
    first_cache: KVCache | None = None

    def start(self) -> tuple[np.ndarray, KVCache, np.ndarray | None]:
        """Run (once) the start sequence; return its last logits, a cache of its own, and attention."""
        if self.first_cache is None:
            tokens = np.array([self.initial + self.prefix], np.int64)
            sot = self.initial.index(self.engine.tokens.sot)
            positions = np.array([sot, tokens.shape[1] - 1], np.int64)
            cache = self.engine.new_cache(self.cross)
            logits, attention = self.engine.step(tokens, cache, positions, self.options.attention)
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
class _Attempt:
    """Tokens of one attempt without the prefix, log probabilities (eot's last if reached), attention."""

    tokens: list[int]
    logprobs: list[float]
    stop: str
    attention: list[np.ndarray]

    @property
    def avg_logprob(self) -> float:
        """Mean over tokens and eot."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else 0.0


def decode(
    engine: Engine,
    mel: np.ndarray | CrossCache,
    options: DecodingOptions | None = None,
    audio_s: float | None = None,
) -> DecodingResult:
    """Transcribe one window.

    Args:
        engine: the bundle's sessions.
        mel: float32 (n_mels, frames), or the cross cache that `Engine.encode` made of it.
        options: how to search; defaults to `DecodingOptions()`.
        audio_s: seconds of audio in the window without its padding, for the token rate; default all of it.

    Returns:
        The best attempt.

    Raises:
        ConfigError: options that the model cannot do.
    """
    options = options or DecodingOptions()
    cross = mel if isinstance(mel, CrossCache) else engine.encode(mel)
    language = _language(engine, cross, options)
    search = _new_search(engine, cross, options, language, audio_s)
    best: tuple[_Attempt, float, float, str] | None = None
    for temperature in options.temperatures:
        attempt = _attempt(search, temperature)
        text = engine.tokenizer.decode(search.prefix + attempt.tokens).strip()
        ratio = compression_ratio(text)
        candidate = (attempt, temperature, ratio, text)
        if best is None or _rank(candidate, options) > _rank(best, options):
            best = candidate
        if _is_silence(search, attempt) or _passes(candidate, options):
            best = candidate
            break
    assert best is not None
    attempt, temperature, ratio, text = best
    if _is_silence(search, attempt):
        attempt, ratio, text = _Attempt([], [], "silence", []), 0.0, ""
        return _result(search, attempt, "", 0.0, temperature, language)
    return _result(search, attempt, text, ratio, temperature, language)


def detect_language(engine: Engine, cross: CrossCache) -> dict[str, float]:
    """Return the probability of every language of a multilingual model, most probable first.

    Raises:
        ConfigError: the model is English-only.
    """
    languages = engine.tokens.languages
    if not engine.tokens.multilingual or not languages:
        raise ConfigError(f"{engine.bundle.name}: English-only, cannot detect languages; use a multilingual bundle")
    logits, _ = engine.step(np.array([[engine.tokens.sot]], np.int64), engine.new_cache(cross))
    scores = logits[0, 0, list(languages.values())]
    shares = np.exp(scores - log_sum_exp(scores))
    return dict(sorted(zip(languages, shares.tolist(), strict=True), key=lambda item: -item[1]))


def _language(engine: Engine, cross: CrossCache, options: DecodingOptions) -> str:
    """The language asked for, or the most probable one."""
    if options.language is not None:
        return options.language
    return next(iter(detect_language(engine, cross))) if engine.tokens.multilingual else "en"


def _new_search(
    engine: Engine, cross: CrossCache, options: DecodingOptions, language: str, audio_s: float | None
) -> _Search:
    """Start sequence, filters and token limit of one window."""
    tokenizer, half = engine.tokenizer, engine.dims.n_text_ctx // 2
    initial = tokenizer.sot_sequence(language, options.task, options.timestamps)
    if options.prompt and options.prompt.strip():
        words = tokenizer.encode(" " + options.prompt.strip())[-(half - 1) :]
        initial = [engine.tokens.sot_prev, *words, *initial]
    prefix = _prefix_tokens(tokenizer, options.prefix)[: half - len(tokenizer.sot_sequence(language, options.task))]
    window_s = cross.n_audio_positions * 0.02
    rate = max_tokens(
        audio_s if audio_s is not None else window_s, options.max_tokens_per_s, options.extra_tokens, half
    )
    room = engine.dims.n_text_ctx - len(initial) - len(prefix)
    bias = engine.hotword_bias(options.hotwords, options.hotword_boost) if options.hotwords else None
    logit_filter = LogitFilter(engine.tokens, engine.dims.n_vocab, options.timestamps, audio_s=window_s, hotwords=bias)
    limit = max(1, min(rate - len(prefix), half, room))
    return _Search(engine, cross, initial, prefix, logit_filter, limit, options)


def _prefix_tokens(tokenizer: Tokenizer, prefix: str | tuple[int, ...] | None) -> list[int]:
    """Text is encoded as it would stand in a transcript, with a leading space."""
    if isinstance(prefix, str):
        return tokenizer.encode(" " + prefix.strip()) if prefix.strip() else []
    return list(prefix or ())


def _attempt(search: _Search, temperature: float) -> _Attempt:
    """One search at one temperature."""
    if temperature == 0.0 and search.options.beam_size > 1:
        from whisperfold.runtime.beam import beam_search

        logits, cache, _ = search.start()
        tokens, logprobs, stop = beam_search(
            search.engine,
            logits,
            cache,
            search.filter,
            search.prefix,
            search.limit_tokens,
            search.options.beam_size,
        )
        attention = [_replay(search, tokens)] if search.options.attention else []
        return _guarded(search, _Attempt(tokens, logprobs, stop, attention))
    return _one_path(search, temperature)


def _one_path(search: _Search, temperature: float) -> _Attempt:
    """Greedy (temperature 0) or sampled tokens until eot, a loop or the limit."""
    engine, options = search.engine, search.options
    eot, prefix = engine.tokens.eot, search.prefix
    tokens, logprobs = list[int](), list[float]()
    random = np.random.default_rng([options.seed, round(temperature * 1000)])
    logits, cache, attention = search.start()
    rows = [] if attention is None else [attention]
    stop = "eot" if search.blank_prob > options.blank_threshold else "limit"
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
        if stop == "loop" or len(tokens) >= search.limit_tokens:
            break
        step_logits, attention = engine.step(np.array([[token]], np.int64), cache, attention=options.attention)
        logits = step_logits[0, 0]
        if attention is not None:
            rows.append(attention[0])
    return _guarded(search, _Attempt(tokens, logprobs, stop, rows))


def _guarded(search: _Search, attempt: _Attempt) -> _Attempt:
    """Cut a loop to one repetition."""
    kept = find_loop(attempt.tokens) if search.options.loop_guard else None
    if kept is not None:
        attempt.tokens, attempt.logprobs, attempt.stop = (
            attempt.tokens[:kept],
            attempt.logprobs[:kept],
            "loop",
        )
    return attempt


def _replay(search: _Search, tokens: list[int]) -> np.ndarray:
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


def _is_silence(search: _Search, attempt: _Attempt) -> bool:
    """Whether the model says there is no speech, or is unsure of its words and says there may be none."""
    options = search.options
    if search.blank_prob > options.blank_threshold:
        return True
    if search.prefix:  # the window holds speech: its probability says nothing about what comes after the prefix
        return False
    return search.no_speech_prob > options.no_speech_threshold and attempt.avg_logprob < options.logprob_threshold


def _passes(candidate: tuple[_Attempt, float, float, str], options: DecodingOptions) -> bool:
    """Whether an attempt needs no further temperature."""
    attempt, _, ratio, _ = candidate
    return (
        attempt.stop != "loop"
        and ratio <= options.compression_ratio_threshold
        and attempt.avg_logprob >= options.logprob_threshold
    )


def _rank(candidate: tuple[_Attempt, float, float, str], options: DecodingOptions) -> tuple[bool, float]:
    """Order of attempts when none passes: those without repetition first, then by log probability."""
    attempt, _, ratio, _ = candidate
    return attempt.stop != "loop" and ratio <= options.compression_ratio_threshold, attempt.avg_logprob


def _result(
    search: _Search, attempt: _Attempt, text: str, ratio: float, temperature: float, language: str
) -> DecodingResult:
    """Put prefix, tokens and attention together."""
    tokens: Sequence[int] = [] if attempt.stop == "silence" else search.prefix + attempt.tokens
    n_produced = len(attempt.tokens)
    logprobs = [0.0] * (len(tokens) - n_produced) + attempt.logprobs[:n_produced]
    attention = None
    if attempt.attention and tokens:
        attention = np.concatenate(attempt.attention, axis=1)[:, : len(tokens) + 1]
    return DecodingResult(
        tokens=tuple(tokens),
        text=text,
        avg_logprob=attempt.avg_logprob,
        no_speech_prob=search.no_speech_prob,
        compression_ratio=ratio,
        temperature=temperature,
        token_logprobs=tuple(logprobs),
        cross_attention=attention,
        language=language,
        stop=attempt.stop,
    )
