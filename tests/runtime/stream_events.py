"""What a stream of the runtime says, made up."""

from __future__ import annotations

from typing import Literal

from whisperfold.runtime.stream_event import StreamEvent


def event(
    kind: Literal["start", "partial", "final"],
    committed: str = "",
    tentative: str = "",
    utterance: int = 0,
    language: str = "en",
) -> StreamEvent:
    """Half a second of an utterance with this text."""
    return StreamEvent(kind, utterance, 0.5, 1.0, committed, tentative, (), language, -0.1, 0.1, 0.0)
