"""What a live stream says: an utterance has started, its text has grown, it is over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from whisperfold.runtime.transcript import Word


@dataclass(frozen=True)
class StreamEvent:
    """What changed in an utterance."""

    kind: Literal["start", "partial", "final"]
    utterance: int
    """Number of the utterance in the stream, from 0."""
    start_s: float
    """Seconds from the start of the stream."""
    end_s: float
    """As far as the text goes: what was heard, or where the speech ended."""
    committed: str = ""
    """Text of the utterance that never changes; in "final" all of it."""
    tentative: str = ""
    """Text after it that may still change."""
    words: tuple[Word, ...] = ()
    """In "final": with times; empty where the bundle has no alignment heads."""
    language: str = "en"
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    lag_s: float = 0.0
    """Length of the chunk that made this event: more than a second means that the device does not keep up."""

    def shifted(self, offset_s: float, first_utterance: int = 0) -> StreamEvent:
        """Return the event of a stream that began offset_s, and first_utterance utterances, into a longer one."""
        return replace(
            self,
            utterance=self.utterance + first_utterance,
            start_s=self.start_s + offset_s,
            end_s=self.end_s + offset_s,
            words=tuple(word.shifted(offset_s) for word in self.words),
        )

    def record(self) -> dict[str, Any]:
        """Return plain numbers and strings for JSON; "final" has the words."""
        out: dict[str, Any] = {
            "type": self.kind,
            "utterance": self.utterance,
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
        }
        if self.kind != "start":
            out |= {"committed": self.committed, "tentative": self.tentative}
        if self.kind == "final":
            out |= {
                "text": self.committed,
                "language": self.language,
                "avg_logprob": round(self.avg_logprob, 4),
                "no_speech_prob": round(self.no_speech_prob, 4),
                "words": [word.record() for word in self.words],
            }
        return out | {"lag_s": round(self.lag_s, 3)}
