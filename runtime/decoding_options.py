"""How a window is decoded: language, search, guards."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import Any

from whisperfold.runtime.errors import ConfigError


@dataclass(frozen=True)
class DecodingOptions:
    """How a window is decoded."""

    language: str | None = None
    """Whisper's code; None detects it (multilingual) or is English."""
    task: str = "transcribe"
    """"transcribe" or "translate"."""
    timestamps: bool = False
    """Let the model write timestamp tokens; short-window bundles are not trained for it."""
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Tried in this order until the text passes the thresholds."""
    beam_size: int = 3
    """Beams at temperature 0; 1 is greedy (docs/decisions/0025)."""
    prompt: str | None = None
    """Text said before, or words to expect."""
    prefix: str | tuple[int, ...] | None = None
    """Text, or text tokens, that the transcript of this window must start with."""
    hotwords: tuple[str, ...] = ()
    """Names and terms to prefer, as they should be spelled."""
    hotword_boost: float = 2.0
    """Added to the logits that go on with a hot word, nats."""
    compression_ratio_threshold: float = 2.4
    """Above: repetition, next temperature."""
    logprob_threshold: float = -1.0
    """Average log probability below: next temperature."""
    no_speech_threshold: float = 0.6
    """No-speech probability above and log probability below its threshold: no text."""
    gibberish_threshold: float = -1.5
    """Average log probability below: no text; not even badly heard speech comes near it (docs/decisions/0019)."""
    blank_threshold: float = 0.5
    """Probability of an empty transcript above: no text."""
    max_tokens_per_s: float = 10.0
    """Most tokens per second of audio; fast speech has about 6."""
    extra_tokens: int = 8
    """Added to the most tokens, for very short clips."""
    loop_guard: bool = True
    """Stop when a phrase repeats, and keep it once."""
    attention: bool = False
    """Return the cross attention of the alignment heads."""
    seed: int = 0
    """Of sampling at temperatures above 0."""

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) < 0.0:
            raise ConfigError(f"temperatures={self.temperatures}: expected at least one, each 0 or more")
        if self.beam_size < 1:
            raise ConfigError(f"beam_size={self.beam_size}: expected 1 (greedy) or more")
        if self.max_tokens_per_s <= 0.0 or self.extra_tokens < 0:
            raise ConfigError(
                f"max_tokens_per_s={self.max_tokens_per_s}, extra_tokens={self.extra_tokens}: "
                "expected above 0, and 0 or more"
            )

    def changed(self, **overrides: Any) -> DecodingOptions:
        """Return a copy with some options changed.

        Raises:
            ConfigError: no such option; the message names the nearest one.
        """
        known = [key.name for key in fields(self)]
        for name in overrides:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.0)[0]
                raise ConfigError(f"option {name!r}: unknown, the nearest is {near!r}")
        if isinstance(overrides.get("temperatures"), float | int):
            overrides["temperatures"] = (float(overrides["temperatures"]),)
        return replace(self, **overrides)


PLAIN_GREEDY = DecodingOptions(
    temperatures=(0.0,),
    beam_size=1,
    no_speech_threshold=1.0,
    gibberish_threshold=-1e9,
    blank_threshold=1.0,
    max_tokens_per_s=1000.0,
    loop_guard=False,
)
"""The bare search, without fallback and guards: parity with the original is measured with it."""
