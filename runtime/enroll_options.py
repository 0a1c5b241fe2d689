"""How a person is enrolled: what is learned, what a profile must show, what the device gives to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from whisperfold.runtime.adaptation import AdaptationOptions
from whisperfold.runtime.decision import PromotionRules
from whisperfold.runtime.errors import ConfigError


@dataclass(frozen=True)
class EnrollOptions:
    """How a person is enrolled."""

    adaptation: AdaptationOptions = field(default_factory=AdaptationOptions)
    rules: PromotionRules = field(default_factory=PromotionRules)
    folds: int = 0
    """Of the cross-validation; 0: by the length of the recordings."""
    language: str | None = None
    """Of the recordings; None is what the store knows of them, else English."""
    threads: int = 0
    """0: the cores there are, at most 4."""
    max_memory_mb: float = 1500.0
    """Recordings that would need more are left out."""
    canary_clips: int = 0
    """The first so many of the packaged clips; 0: all."""

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"folds={self.folds}: expected 2 or more, or 0 to choose: one leaves nothing to test on")
