"""A window that grows while its speaker talks: audio and mel, the last hypothesis, what is committed.

    committed tokens --forced--> decoder --> hypothesis = committed + tentative

The committed tokens start every later hypothesis, so they cannot change. A window that has become long is cut at the
quietest boundary between two committed words: the words before it are closed, those after it start the next
window. So an hour without a pause costs as much per second as a minute.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from whisperfold.runtime.agreement import agreed_tokens, tokens_before_frontier, whole_words
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.decoding import DecodingResult, decode
from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.mel import MelStream
from whisperfold.runtime.session import Engine
from whisperfold.runtime.timing import word_timestamps
from whisperfold.runtime.transcript import Word
from whisperfold.runtime.windows import padded_samples, quietest_sample

_POSITION_SAMPLES = 320
"""Samples per position of the encoder's output: 20 ms."""
_CUT_SEARCH_S = 0.15
"""A cut may lie this far from the time that the attention gives for a word boundary."""


class GrowingWindow:
    """One window of one utterance."""

    def __init__(
        self,
        engine: Engine,
        start: int,
        committed: tuple[int, ...] = (),
        logprobs: tuple[float, ...] = (),
    ) -> None:
        """Start empty.

        Args:
            engine: the bundle's sessions.
            start: sample number of its first sample in the stream.
            committed: tokens of words that it begins with, and that are committed already.
            logprobs: of these tokens.
        """
        self.start = start
        self.committed = committed
        self.logprobs = logprobs
        self.n_said = 0  # committed tokens that belong to earlier utterances
        self.result: DecodingResult | None = None
        self._engine = engine
        self._mel = MelStream(engine.dims.n_mels)
        self._samples = np.empty(0, np.float32)
        self._tail: tuple[int, ...] = ()  # tokens of the last hypothesis after the committed ones
        self._previous: tuple[int, ...] = ()  # the same of the hypothesis before
        self._n_judged = 0  # samples that the last hypothesis has heard

    @property
    def n_samples(self) -> int:
        """Samples heard."""
        return self._samples.size

    @property
    def n_new(self) -> int:
        """Samples heard since the last hypothesis."""
        return self._samples.size - self._n_judged

    @property
    def said(self) -> tuple[int, ...]:
        """Committed tokens of this utterance."""
        return self.committed[self.n_said :]

    @property
    def tentative(self) -> str:
        """What the last hypothesis adds to what is committed."""
        return self._engine.tokenizer.decode(self._tail).strip()

    @property
    def last_probability(self) -> float:
        """Of the last token, committed or not; 0 before the first."""
        if self.result is not None and self._tail:
            return math.exp(self.result.token_logprobs[len(self.committed) + len(self._tail) - 1])
        return math.exp(self.logprobs[-1]) if self.logprobs else 0.0

    @property
    def language(self) -> str:
        """Of the last hypothesis."""
        return self.result.language if self.result is not None else "en"

    def hear(self, samples: np.ndarray) -> None:
        """Take float32 (n,) samples at 16 kHz."""
        self._mel.push(samples)
        self._samples = np.concatenate([self._samples, samples])

    def hypothesise(self, options: DecodingOptions, is_last: bool = False) -> None:
        """Decode all of the window; a hypothesis that the guards refuse adds nothing.

        Args:
            options: how to search.
            is_last: there may be no other: a phrase in a loop is taken once, instead of waiting for a better one.
        """
        n, engine = self.n_samples, self._engine
        mel = self._mel.window(padded_samples(n, engine.bundle.window) - n)
        result = decode(engine, mel, options.changed(prefix=self.committed or None), n / SAMPLE_RATE)
        self._n_judged = n
        self._previous, self._tail = self._tail, ()
        refused = ("silence",) if is_last else ("silence", "loop")
        if result.stop not in refused and len(result.tokens) >= len(self.committed):
            self.result, self._tail = result, result.tokens[len(self.committed) :]

    def commit_agreed(self, margin_s: float) -> None:
        """Commit what the last two hypotheses share, as far as it attends to audio older than margin_s."""
        self._commit_whole(min(agreed_tokens(self._previous, self._tail), self._before(margin_s)))

    def commit_before(self, margin_s: float, patience_s: float, confidence: float) -> None:
        """Commit what attends to audio older than margin_s; less probable tokens wait until it is patience_s old."""
        sure, late = self._before(margin_s), self._before(patience_s)
        if self.result is not None:
            logprobs = self.result.token_logprobs[len(self.committed) :]
            doubtful = (i for i in range(late, sure) if logprobs[i] < math.log(confidence))
            sure = next(doubtful, sure)
        self._commit_whole(sure)

    def commit_all(self) -> None:
        """Commit the whole hypothesis."""
        self._commit(len(self._tail))

    def next_utterance(self) -> None:
        """Keep audio and text as the left context of the next utterance."""
        self.n_said, self._tail, self._previous = len(self.committed), (), ()

    def words(self) -> list[Word]:
        """Return the committed words of this utterance, times from the start of the stream; empty without attention."""
        words = self._all_words()
        return words[self._n_words(words, self.n_said) :]

    def cut(self) -> tuple[list[Word], GrowingWindow] | None:
        """Cut between two committed words.

        Returns:
            The words of this utterance before the cut, and the window after it; None when there is no boundary to
            cut at.
        """
        words = self._all_words()
        boundary = self._quietest_boundary(words)
        if boundary is None:
            return None
        sample, n_words = boundary
        n_tokens = self._n_tokens(sum(_n_characters(word.text) for word in words[:n_words]))
        after = GrowingWindow(self._engine, self.start + sample, self.committed[n_tokens:], self.logprobs[n_tokens:])
        after.hear(self._samples[sample:])
        after.n_said = max(0, self.n_said - n_tokens)
        after._tail, after._n_judged = self._tail, after.n_samples - self.n_new
        closed = words[self._n_words(words, self.n_said) : n_words]
        self.committed, self.logprobs = self.committed[:n_tokens], self.logprobs[:n_tokens]
        return closed, after

    def _all_words(self) -> list[Word]:
        """All committed words, those of earlier utterances too."""
        if self.result is None or not self.committed:
            return []
        known = replace(self.result, token_logprobs=self.logprobs)
        offset_s = self.start / SAMPLE_RATE
        return [
            word.shifted(offset_s)
            for word in word_timestamps(
                known, self._engine.tokenizer, self.n_samples / SAMPLE_RATE, len(self.committed)
            )
        ]

    def _quietest_boundary(self, words: list[Word]) -> tuple[int, int] | None:
        """(sample number in the window, words before it) of the quietest boundary in the second half."""
        search, best = round(_CUT_SEARCH_S * SAMPLE_RATE), None
        for i in range(len(words) // 2, len(words) - 1):
            at = round((words[i].end_s + words[i + 1].start_s) / 2 * SAMPLE_RATE) - self.start
            first = max(0, at - search)
            span = self._samples[first : at + search]
            if span.size < SAMPLE_RATE // 5:
                continue
            sample = first + quietest_sample(span, 0)
            around = self._samples[max(0, sample - 800) : sample + 800]
            candidate = (float(np.square(around).mean()), sample, i + 1)
            best = candidate if best is None or candidate < best else best
        return None if best is None else best[1:]

    def _n_tokens(self, n_characters: int) -> int:
        """How many committed tokens make up the first n_characters, spaces not counted."""
        decode_text = self._engine.tokenizer.decode
        counts = (_n_characters(decode_text(self.committed[:n])) for n in range(len(self.committed) + 1))
        return next(n for n, count in enumerate(counts) if count >= n_characters)

    def _n_words(self, words: list[Word], n_tokens: int) -> int:
        """How many words the first n_tokens committed tokens make up."""
        n_left, n_words = _n_characters(self._engine.tokenizer.decode(self.committed[:n_tokens])), 0
        while n_left > 0 and n_words < len(words):
            n_left -= _n_characters(words[n_words].text)
            n_words += 1
        return n_words

    def _before(self, margin_s: float) -> int:
        """How many tokens of the tail attend to audio older than margin_s; all where there is no attention."""
        if self.result is None or self.result.cross_attention is None or not self._tail:
            return len(self._tail)
        n_positions, first = self.n_samples // _POSITION_SAMPLES, len(self.committed)
        rows = self.result.cross_attention[:, first : first + len(self._tail), :n_positions]
        return tokens_before_frontier(rows, n_positions - round(margin_s * SAMPLE_RATE / _POSITION_SAMPLES))

    def _commit_whole(self, n_tokens: int) -> None:
        """Commit the whole words among the first n_tokens of the tail."""
        self._commit(whole_words(self._tail, n_tokens, self._engine.tokenizer, self.language))

    def _commit(self, n_tokens: int) -> None:
        """Move tokens from the tail to what is committed."""
        if self.result is not None and n_tokens:
            first = len(self.committed)
            self.logprobs += self.result.token_logprobs[first : first + n_tokens]
        self.committed, self._tail = self.committed + self._tail[:n_tokens], self._tail[n_tokens:]


def _n_characters(text: str) -> int:
    """Length without spaces."""
    return len("".join(text.split()))
