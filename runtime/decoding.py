"""A window's transcript: attempts at rising temperatures until one passes, and what counts as no speech.

    mel -> encoder -> cross caches -> search.py, temperature 0 -> passes? -> else the next temperature -> the best

Source: openai/whisper decoding.py and transcribe.py (filters, fallback, thresholds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.filters import LogitFilter, log_sum_exp
from whisperfold.runtime.guards import compression_ratio, max_tokens
from whisperfold.runtime.search import Attempt, Search, make_attempt
from whisperfold.runtime.session import CrossCache, Engine
from whisperfold.runtime.tokenizer import TIMESTAMP_S, Tokenizer


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
    best: tuple[Attempt, float, float, str] | None = None
    for temperature in options.temperatures:
        attempt = make_attempt(search, temperature)
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
    is_gibberish = attempt.avg_logprob < options.gibberish_threshold and not search.prefix
    if is_gibberish or _is_silence(search, attempt):
        return _result(search, Attempt([], [], "silence", []), "", 0.0, temperature, language)
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
) -> Search:
    """Start sequence, filters and token limit of one window."""
    tokenizer, half = engine.tokenizer, engine.dims.n_text_ctx // 2
    initial = tokenizer.sot_sequence(language, options.task, options.timestamps)
    if options.prompt and options.prompt.strip():
        words = tokenizer.encode(" " + options.prompt.strip())[-(half - 1) :]
        initial = [engine.tokens.sot_prev, *words, *initial]
    prefix = _prefix_tokens(tokenizer, options.prefix)[: half - len(tokenizer.sot_sequence(language, options.task))]
    window_s = cross.n_audio_positions * TIMESTAMP_S
    heard_s = audio_s if audio_s is not None else window_s
    rate = max_tokens(heard_s, options.max_tokens_per_s, options.extra_tokens, half)
    room = engine.dims.n_text_ctx - len(initial) - len(prefix)
    bias = engine.hotword_bias(options.hotwords, options.hotword_boost) if options.hotwords else None
    logit_filter = LogitFilter(engine.tokens, engine.dims.n_vocab, options.timestamps, audio_s=window_s, hotwords=bias)
    limit = max(1, min(rate - len(prefix), half, room))
    return Search(engine, cross, initial, prefix, logit_filter, limit, round(heard_s / TIMESTAMP_S), options)


def _prefix_tokens(tokenizer: Tokenizer, prefix: str | tuple[int, ...] | None) -> list[int]:
    """Text is encoded as it would stand in a transcript, with a leading space."""
    if isinstance(prefix, str):
        return tokenizer.encode(" " + prefix.strip()) if prefix.strip() else []
    return list(prefix or ())


def _is_silence(search: Search, attempt: Attempt) -> bool:
    """Whether the model says there is no speech, or is unsure of its words and says there may be none."""
    options = search.options
    if search.is_blank:
        return True
    if search.prefix:  # the window holds speech: its probability says nothing about what comes after the prefix
        return False
    return search.no_speech_prob > options.no_speech_threshold and attempt.avg_logprob < options.logprob_threshold


def _passes(candidate: tuple[Attempt, float, float, str], options: DecodingOptions) -> bool:
    """Whether an attempt needs no further temperature."""
    attempt, _, ratio, _ = candidate
    return (
        attempt.stop != "loop"
        and ratio <= options.compression_ratio_threshold
        and attempt.avg_logprob >= options.logprob_threshold
    )


def _rank(candidate: tuple[Attempt, float, float, str], options: DecodingOptions) -> tuple[bool, float]:
    """Order of attempts when none passes: those without repetition first, then by log probability."""
    attempt, _, ratio, _ = candidate
    return attempt.stop != "loop" and ratio <= options.compression_ratio_threshold, attempt.avg_logprob


def _result(
    search: Search, attempt: Attempt, text: str, ratio: float, temperature: float, language: str
) -> DecodingResult:
    """Put prefix, tokens and attention together."""
    tokens: Sequence[int] = [] if attempt.stop == "silence" else search.prefix + attempt.tokens
    n_produced = len(attempt.tokens)
    logprobs = [0.0] * (len(tokens) - n_produced) + attempt.logprobs[:n_produced]
    attention = None
    if search.options.attention and attempt.attention and tokens:
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
