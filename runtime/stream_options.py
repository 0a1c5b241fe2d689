"""How a stream is heard: when hypotheses are made, words committed and utterances ended."""

from __future__ import annotations

from dataclasses import dataclass

from whisperfold.runtime.agreement import POLICIES
from whisperfold.runtime.errors import ConfigError


@dataclass(frozen=True)
class StreamOptions:
    """When hypotheses are made, words committed and utterances ended."""

    policy: str | None = None
    """What commits words while the speaker talks: "attention-frontier" or "local-agreement"; None takes the first where
    the bundle has alignment heads (docs/decisions/0008)."""
    step_s: float = 0.6
    """Least new audio between two hypotheses; more of them commit more that is wrong (docs/decisions/0019)."""
    load: float = 0.25
    """Most time spent on partial hypotheses, per second of audio: a slow device makes fewer."""
    frontier_s: float = 0.8
    """Words that attend to newer audio than this wait."""
    patience_s: float = 1.6
    """attention-frontier: improbable words wait until they attend to audio that is older than this."""
    confidence: float = 0.5
    """attention-frontier: words with a token below this probability are improbable."""
    pause_s: float = 0.1
    """Quiet after which the text is decoded as if it were the end, so that the final is ready when it is."""
    sentence_end_s: float = 0.2
    """Quiet after which an utterance is over when its text ends a sentence ..."""
    sentence_confidence: float = 0.5
    """... and its last mark is at least so probable: at any pause a model likes to write a full stop."""
    utterance_end_s: float = 0.8
    """Quiet after which an utterance is over in any case."""
    window_s: float = 15.0
    """A window that has grown longer is cut between committed words."""
    context_s: float = 12.0
    """An utterance that starts within this time from the start of the last window goes on in it ..."""
    context_gap_s: float = 2.0
    """... unless it has been quiet for this long: the guards against noise then judge what is heard on its own."""
    partials: bool = True
    """Make hypotheses while the speaker talks."""

    def __post_init__(self) -> None:
        if self.policy not in (None, *POLICIES):
            raise ConfigError(f"policy {self.policy!r}: expected {' or '.join(POLICIES)}")
        if min(self.step_s, self.load, self.window_s, self.utterance_end_s) <= 0.0:
            raise ConfigError("step_s, load, window_s and utterance_end_s: expected above 0")
        if not (0.0 < self.confidence < 1.0 and self.frontier_s <= self.patience_s):
            raise ConfigError(
                f"confidence={self.confidence}, frontier_s={self.frontier_s}, patience_s={self.patience_s}: "
                "expected 0 < confidence < 1 and frontier_s <= patience_s"
            )
        if not 0.0 <= self.sentence_confidence < 1.0:
            raise ConfigError(f"sentence_confidence={self.sentence_confidence}: expected 0 or more, below 1")
        if not 0.0 < self.pause_s <= self.sentence_end_s <= self.utterance_end_s:
            raise ConfigError(
                f"pause_s={self.pause_s}, sentence_end_s={self.sentence_end_s}, utterance_end_s="
                f"{self.utterance_end_s}: expected 0 < pause_s <= sentence_end_s <= utterance_end_s"
            )
