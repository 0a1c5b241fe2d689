"""Live audio -> committed and tentative text.

    chunk -> VAD -> growing window -> hypothesis -> commit what is stable -> endpoint -> final

Committed text never changes. A policy commits words while the speaker talks (agreement.py), the end of the
utterance commits the rest. An utterance ends soon when its text ends a sentence, and later when it does not; the
next one goes on in the same window, because a model hears a fragment worse than a sentence in its context.

A backlog given as one chunk costs one hypothesis: partial text is skipped first, final text never.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from whisperfold.runtime.agreement import ends_sentence
from whisperfold.runtime.audio import SAMPLE_RATE, check_samples
from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.growing import GrowingWindow
from whisperfold.runtime.level import level_dbfs
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.stream_options import StreamOptions
from whisperfold.runtime.transcript import Word
from whisperfold.runtime.vad import VadOptions, VoiceDetector
from whisperfold.runtime.windows import PAD_BEFORE_S, max_samples

if TYPE_CHECKING:
    from whisperfold.runtime.transcribe import Transcriber

_FLOOR_DBFS = -100.0
"""Lowest level that a session reports."""
_STEP_SAMPLES = SAMPLE_RATE // 20
"""Pauses are looked for this often, 50 ms."""
_RECENT_SAMPLES = SAMPLE_RATE
"""Audio kept from before the speech: a start is reported 0.3 s late, and padded."""


@dataclass
class _Utterance:
    """What is known of the utterance that is being spoken."""

    number: int
    start: int
    """Sample number in the stream."""
    window: GrowingWindow
    tokens: list[int] = field(default_factory=list)
    """Committed in windows that were cut off; so are words and logprobs."""
    words: list[Word] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    speech_end: int | None = None
    """Sample number, while the speaker pauses."""
    last_voiced: int = 0
    """Sample number of the last sound in the pause that may be speech."""
    is_pause_decoded: bool = False
    shown: tuple[str, str] = ("", "")
    """Committed and tentative text of the last event."""

    def keep(self, words: list[Word]) -> None:
        """Take over what the window has committed, before it is replaced."""
        self.tokens += self.window.said
        self.words += words
        self.logprobs += self.window.logprobs[self.window.n_said :]


class StreamingSession:
    """One stream of audio; calls must not overlap."""

    def __init__(
        self, transcriber: Transcriber, options: StreamOptions | None = None, decoding: DecodingOptions | None = None
    ) -> None:
        """Start a stream at 0 s.

        Args:
            transcriber: the weights.
            options: when to commit.
            decoding: what to hear; the search is greedy (docs/decisions/0025). There is no fallback to higher
                temperatures: what it measures says little about the few tokens after a forced prefix, and a sample
                would be committed.
        """
        self.options = options or StreamOptions()
        self._engine = transcriber.engine
        attention = bool(transcriber.bundle.alignment_heads)
        decoding = decoding or DecodingOptions()
        self._decoding = replace(decoding, attention=attention, temperatures=(0.0,), beam_size=1)
        if self.options.policy == "attention-frontier" and not attention:
            raise ConfigError(f"{transcriber.bundle.name}: no alignment heads; use the policy local-agreement")
        self._by_attention = attention and self.options.policy != "local-agreement"
        self._limit = max_samples(transcriber.bundle.window)
        self._detector = VoiceDetector(VadOptions(min_silence_s=self.options.pause_s))
        self._recent = np.empty(0, np.float32)
        self._n_samples = 0  # heard
        self._n_used = 0  # sample number up to which utterances have taken audio
        self._n_utterances = 0
        self._utterance: _Utterance | None = None
        self._context: GrowingWindow | None = None
        self._cost_s = 0.0
        self.level_dbfs = _FLOOR_DBFS

    @property
    def in_speech(self) -> bool:
        """Whether somebody speaks."""
        return self._detector.in_speech

    @property
    def time_s(self) -> float:
        """Seconds heard."""
        return self._n_samples / SAMPLE_RATE

    def accept_chunk(self, samples: np.ndarray) -> list[StreamEvent]:
        """Hear more of the stream.

        Args:
            samples: float32 (n,), mono, 16 kHz, any n.

        Returns:
            What changed, in order.

        Raises:
            AudioError: empty, not float32 mono, or holding NaN.
        """
        check_samples(samples)
        self.level_dbfs = max(_FLOOR_DBFS, level_dbfs(samples))
        events: list[StreamEvent] = []
        for first in range(0, samples.size, _STEP_SAMPLES):
            events += self._hear(samples[first : first + _STEP_SAMPLES])
        if self._utterance is not None and self._is_due(self._utterance):
            events += self._partial(self._utterance)
        lag_s = samples.size / SAMPLE_RATE
        return [replace(event, lag_s=lag_s) for event in events]

    def finish(self) -> list[StreamEvent]:
        """End the stream: what is being spoken becomes final."""
        self._detector.finish()
        if self._utterance is None:
            return []
        if self._utterance.speech_end is None or not self._utterance.is_pause_decoded:
            self._decode(self._utterance, is_last=True)
        return self._close(self._utterance)

    def _hear(self, step: np.ndarray) -> list[StreamEvent]:
        """Take 50 ms: follow the voice, decode at a pause, end the utterance."""
        events: list[StreamEvent] = []
        self._n_samples += step.size
        self._recent = np.concatenate([self._recent, step])[-_RECENT_SAMPLES:]
        window = self._context if self._utterance is None else self._utterance.window
        if window is not None:
            window.hear(step)
            if self._utterance is None and self._is_old(window):
                self._context = None
        for event in self._detector.push(step):
            at = round(event.time_s * SAMPLE_RATE)
            if event.kind == "end":
                if self._utterance is not None:
                    self._utterance.speech_end = self._utterance.last_voiced = at
                    self._utterance.is_pause_decoded = False
            elif self._utterance is None:
                events.append(self._open(at))
            else:
                self._utterance.speech_end = None
        if self._utterance is not None:
            if self._utterance.window.n_samples >= self._limit:
                events += self._overflow(self._utterance)
            elif self._utterance.speech_end is not None:
                events += self._pause(self._utterance)
        return events

    def _is_old(self, window: GrowingWindow) -> bool:
        """Whether the last utterance's window is too long, or too long ago, to be the next one's left context."""
        quiet_s = (self._n_samples - self._n_used) / SAMPLE_RATE
        return window.n_samples > self.options.context_s * SAMPLE_RATE or quiet_s > self.options.context_gap_s

    def _open(self, at: int) -> StreamEvent:
        """Begin an utterance whose speech starts at a sample number."""
        window, self._context = self._context, None
        if window is None:
            first = max(self._n_used, self._n_samples - self._recent.size, at - round(PAD_BEFORE_S * SAMPLE_RATE))
            window = GrowingWindow(self._engine, first)
            window.hear(self._recent[self._recent.size - (self._n_samples - first) :])
        self._utterance = _Utterance(self._n_utterances, at, window)
        self._n_utterances += 1
        return StreamEvent("start", self._utterance.number, at / SAMPLE_RATE, self.time_s)

    def _is_due(self, utterance: _Utterance) -> bool:
        """Whether there is enough new audio for another hypothesis, at the cost of the last one."""
        if not self.options.partials or utterance.speech_end is not None:
            return False
        wait_s = max(self.options.step_s, self._cost_s / self.options.load)
        return utterance.window.n_new >= wait_s * SAMPLE_RATE

    def _partial(self, utterance: _Utterance) -> list[StreamEvent]:
        """Make a hypothesis, commit what the policy trusts."""
        self._decode(utterance, is_last=False)
        self._commit(utterance)
        if utterance.window.n_samples > self.options.window_s * SAMPLE_RATE:
            self._shorten(utterance)
        return self._changed(utterance)

    def _pause(self, utterance: _Utterance) -> list[StreamEvent]:
        """Decode at a short pause, end the utterance at a longer one; a sound in it puts both off."""
        if self._detector.is_voiced:
            utterance.last_voiced, utterance.is_pause_decoded = self._n_samples, False
            return []
        options, quiet_s = self.options, (self._n_samples - utterance.last_voiced) / SAMPLE_RATE
        if not utterance.is_pause_decoded and quiet_s >= options.pause_s:
            self._decode(utterance, is_last=True)
            self._commit(utterance)
            utterance.is_pause_decoded = True
        whole = f"{self._committed(utterance)} {utterance.window.tentative}"
        is_end = ends_sentence(whole) and utterance.window.last_probability >= options.sentence_confidence
        wait_s = options.sentence_end_s if is_end else options.utterance_end_s
        return self._close(utterance) if quiet_s >= wait_s else self._changed(utterance)

    def _commit(self, utterance: _Utterance) -> None:
        """Commit what the policy trusts."""
        if self._by_attention:
            options = self.options
            utterance.window.commit_before(options.frontier_s, options.patience_s, options.confidence)
        else:
            utterance.window.commit_agreed(self.options.frontier_s)

    def _shorten(self, utterance: _Utterance) -> None:
        """Close the part of a long window that is committed, if there is a boundary to cut at."""
        cut = utterance.window.cut()
        if cut is not None:
            words, after = cut
            utterance.keep(words)
            utterance.window = after

    def _overflow(self, utterance: _Utterance) -> list[StreamEvent]:
        """Close a window that the model cannot take any longer, committed or not."""
        self._decode(utterance, is_last=True)
        utterance.window.commit_all()
        utterance.keep(utterance.window.words())
        utterance.window = GrowingWindow(self._engine, self._n_samples)
        return self._changed(utterance)

    def _close(self, utterance: _Utterance) -> list[StreamEvent]:
        """End the utterance; one without text ends silently."""
        window = utterance.window
        window.commit_all()
        text = self._committed(utterance)
        utterance.keep(window.words())
        self._utterance, self._n_used = None, self._n_samples
        window.next_utterance()
        self._context = window
        if not text:
            return []
        end = utterance.speech_end if utterance.speech_end is not None else self._n_samples
        start_s, end_s = utterance.start / SAMPLE_RATE, end / SAMPLE_RATE
        return [
            StreamEvent(
                "final",
                utterance.number,
                start_s,
                end_s,
                text,
                words=tuple(word.within(start_s, end_s) for word in utterance.words),
                language=window.language,
                avg_logprob=float(np.mean(utterance.logprobs)),
                no_speech_prob=window.result.no_speech_prob if window.result is not None else 0.0,
            )
        ]

    def _committed(self, utterance: _Utterance) -> str:
        """Text of all that is committed of an utterance."""
        return self._engine.tokenizer.decode([*utterance.tokens, *utterance.window.said]).strip()

    def _decode(self, utterance: _Utterance, *, is_last: bool) -> None:
        """Make a hypothesis, and note what it costs; the first one with text decides the language."""
        started_s = time.perf_counter()
        utterance.window.hypothesise(self._decoding, is_last=is_last)
        self._cost_s = time.perf_counter() - started_s
        if self._decoding.language is None and utterance.window.committed:
            self._decoding = replace(self._decoding, language=utterance.window.language)

    def _changed(self, utterance: _Utterance) -> list[StreamEvent]:
        """A partial event, if there is anything new to show."""
        now = (self._committed(utterance), utterance.window.tentative)
        if now == utterance.shown:
            return []
        utterance.shown = now
        return [StreamEvent("partial", utterance.number, utterance.start / SAMPLE_RATE, self.time_s, *now)]
