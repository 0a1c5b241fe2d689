"""A stream whose every utterance begins on the newest weights: a profile is switched between two utterances.

The session stays the same one, with its voice detector and what it has just heard, so no sound is lost and times and
numbers go on. What belongs to the old weights, the left context, is left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from whisperfold.runtime.stream import StreamingSession
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.stream_options import StreamOptions
from whisperfold.runtime.transcribe import Transcriber


class FollowingSession(StreamingSession):
    """A `StreamingSession` that changes over by itself; calls must not overlap."""

    def __init__(
        self,
        transcriber: Transcriber,
        newest: Callable[[], Transcriber | None],
        options: StreamOptions | None = None,
        **decoding: Any,
    ) -> None:
        """Start a stream at 0 s.

        Args:
            transcriber: the weights of now.
            newest: gives those that new utterances should run on; None: no change.
            options: when to commit.
            **decoding: fields of `DecodingOptions`.

        Raises:
            ConfigError: unknown or impossible option.
        """
        super().__init__(transcriber, options, transcriber.options(**decoding))
        self._transcriber = self._next = transcriber
        self._newest, self._asked = newest, decoding

    def fresh(self) -> FollowingSession:
        """Return a new session with the same options, on the newest weights."""
        return FollowingSession(self._newest() or self._transcriber, self._newest, self.options, **self._asked)

    def accept_chunk(self, samples: np.ndarray) -> list[StreamEvent]:
        """Hear more of the stream, as `StreamingSession.accept_chunk`; look for newer weights first."""
        self._next = self._newest() or self._transcriber  # in speech too: so they are there when the utterance ends
        return super().accept_chunk(samples)

    def _hear(self, step: np.ndarray) -> list[StreamEvent]:
        """Take 50 ms; where no utterance is open, on the newest weights."""
        if self._utterance is None and self._next is not self._transcriber:
            self._change_over(self._next)
        return super()._hear(step)

    def _change_over(self, newest: Transcriber) -> None:
        """Take over from a fresh session what depends on the weights."""
        fresh = StreamingSession(newest, self.options, newest.options(**self._asked))
        self._transcriber, self._engine, self._decoding = newest, fresh._engine, fresh._decoding
        self._by_attention, self._limit, self._context = fresh._by_attention, fresh._limit, None
