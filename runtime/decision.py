"""Two comparisons -> promote the new profile, or keep what is in use, and why.

    owner:   recordings that the adapter was not trained on, before and after
    canary:  other speakers (runtime/canary), before and after
    rematch: the recordings by which the profile in use was judged too: its errors then, and the new one's

The owner must gain, surely enough, and not lose what the profile in use has gained; others may lose a stated little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whisperfold.runtime.error_rate import Comparison
from whisperfold.runtime.errors import ConfigError


@dataclass(frozen=True)
class PromotionRules:
    """What a new profile must show."""

    min_probability: float = 0.7
    """Probability, by the paired bootstrap, that the owner's WER has fallen."""
    max_canary_rise: float = 0.5
    """Points by which the WER of other speakers may rise."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.min_probability <= 1.0 or self.max_canary_rise < 0.0:
            raise ConfigError("min_probability must be 0.5 to 1, max_canary_rise 0 or more")


@dataclass(frozen=True)
class Decision:
    """Whether a new profile is taken."""

    promoted: bool
    reason: str
    """One line for the owner."""
    harms_others: bool = False
    """Nothing else is wrong with it: a weaker profile may be taken."""


@dataclass(frozen=True)
class Rematch:
    """Word errors of two profiles in the recordings that both were judged by, each by its own cross-validation."""

    current: int
    new: int
    words: int


def rematch(current: Mapping[str, Any], sentences: Mapping[str, list[int]]) -> Rematch | None:
    """Return the rematch of a new profile with the current one; None where they have nothing in common.

    Args:
        current: facts of the current profile, whose "sentences" are as below.
        sentences: of the new one: digest of a recording -> errors, words.
    """
    known = current.get("sentences")
    if not isinstance(known, Mapping):
        return None
    pairs = [(known[digest], new) for digest, new in sentences.items() if digest in known]
    try:
        shared = [(int(old[0]), new[0], new[1]) for old, new in pairs if old[1] == new[1]]  # else its text is another
    except (TypeError, ValueError, LookupError):  # a damaged or foreign profile.json
        return None
    return Rematch(*(sum(column) for column in zip(*shared, strict=True))) if shared else None


def decide(owner: Comparison, canary: Comparison, rules: PromotionRules, against: Rematch | None = None) -> Decision:
    """Apply the rules; a reason names the figures."""
    change = f"your word error rate {owner.before:.1f} -> {owner.after:.1f} %"
    others = f"other speakers {canary.before:.1f} -> {canary.after:.1f} %"
    if owner.before == 0.0:
        return Decision(False, "the model already understands every word of your recordings: nothing to gain")
    if owner.difference >= 0.0:
        return Decision(False, f"no gain: {change}; more recordings may help")
    if owner.probability_better < rules.min_probability:
        sure = f"{100 * owner.probability_better:.0f} % sure, expected {100 * rules.min_probability:.0f}"
        return Decision(False, f"the gain may be luck ({sure}): {change}; more recordings will tell")
    if canary.difference > rules.max_canary_rise:
        limit = f"{canary.difference:+.2f} points, at most {rules.max_canary_rise:+.2f} allowed"
        return Decision(False, f"others would be understood worse: {others} ({limit}), though {change}", True)
    if against is not None and against.new > against.current:
        errors = f"{against.current} errors in {against.words} words of the recordings that it knows, now {against.new}"
        return Decision(False, f"the profile in use understands you better: {errors}; are the added ones good?")
    return Decision(True, f"{change}, {others}")
