"""What a transcription is: words in segments, times in seconds from the start of the recording."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Word:
    """One word with its punctuation."""

    start_s: float
    end_s: float
    text: str
    """With its leading space, as Whisper gives it."""
    probability: float
    """Mean probability of its tokens, 0 to 1."""

    def shifted(self, offset_s: float) -> Word:
        """Return the word offset_s later: from a window's time to the recording's."""
        return replace(self, start_s=self.start_s + offset_s, end_s=self.end_s + offset_s)

    def within(self, start_s: float, end_s: float) -> Word:
        """Return the word with its times moved into a stretch."""
        start, end = (min(max(time_s, start_s), end_s) for time_s in (self.start_s, self.end_s))
        return replace(self, start_s=start, end_s=end)

    def record(self) -> dict[str, Any]:
        """Return plain numbers and strings for JSON, times rounded to the millisecond."""
        return {
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "text": self.text.strip(),
            "probability": round(self.probability, 4),
        }


@dataclass(frozen=True)
class Segment:
    """What was said between two pauses."""

    start_s: float
    end_s: float
    text: str
    avg_logprob: float
    """Mean log probability of the window's tokens."""
    no_speech_prob: float
    words: tuple[Word, ...] = ()
    """Empty unless word timestamps were asked for."""
    language: str = "en"
    temperature: float = 0.0
    compression_ratio: float = 0.0


@dataclass(frozen=True)
class Transcription:
    """A whole recording or utterance."""

    text: str
    """Segments joined by spaces; empty if there is no speech."""
    segments: tuple[Segment, ...]
    language: str | None
    """Whisper's code, None if there was no speech to detect it from."""
    duration_s: float
    """Length of the recording, seconds."""
