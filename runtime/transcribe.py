"""The device's flow: audio -> windows -> mel -> encoder -> decoder -> text.

`Transcriber` holds the weights and is shared; `Session` holds the state of one utterance.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE, check_samples
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.decoding import DecodingResult, decode
from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.mel import MelStream, log_mel
from whisperfold.runtime.packaged import default_bundle
from whisperfold.runtime.profile import Profile
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.segments import window_segments
from whisperfold.runtime.session import DEFAULT_PROVIDERS, Engine
from whisperfold.runtime.stream import StreamingSession
from whisperfold.runtime.stream_options import StreamOptions
from whisperfold.runtime.transcript import Segment, Transcription, Word
from whisperfold.runtime.windows import AudioWindow, cut_windows, max_samples, pad, padded_samples

__all__ = ["Segment", "Session", "Transcriber", "Transcription", "Word"]


class Transcriber:
    """Speech recognition with one bundle; safe to share between threads."""

    def __init__(self, engine: Engine, profile: Profile | None = None) -> None:
        """Take over an engine, and tell whose weights it has; None: the bundle's own."""
        self.engine = engine
        self.bundle = engine.bundle
        self.profile = profile

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        check: bool = True,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
        profile: Profile | str | None = None,
    ) -> Transcriber:
        """Load a bundle.

        Args:
            bundle: its directory; None is the one that ships in the package.
            threads: threads of a run; None or 0 takes the CPUs of this process, at most 4.
            check: compare the checksums of the bundle's files.
            providers: onnxruntime's execution providers, the preferred one first.
            profile: of a person who has enrolled: from a `ProfileStore`, or a name in the user's own store.

        Raises:
            BundleError: the bundle is missing, damaged or too new.
            ProfileError: there is no such profile for this bundle, or it is damaged.
        """
        opened = Bundle.open(bundle or default_bundle(), check=check)
        if isinstance(profile, str):
            profile = ProfileStore(opened).get(profile)
        return cls(Engine(opened, threads or 0, providers, profile.weights() if profile else None), profile)

    @property
    def language(self) -> str | None:
        """Code of an English-only bundle's language, None where it is detected."""
        return None if self.engine.tokens.multilingual else "en"

    def transcribe(
        self, samples: np.ndarray, *, vad: bool = True, word_timestamps: bool = False, **options: Any
    ) -> Transcription:
        """Transcribe a clip of any length.

        Args:
            samples: float32 (n_samples,), mono, 16 kHz, in [-1, 1].
            vad: give no text where nobody speaks.
            word_timestamps: add words with times and probabilities.
            **options: fields of `DecodingOptions`.

        Returns:
            Text and segments; empty text if there is no speech.

        Raises:
            AudioError: samples are empty, not float32 mono, or hold NaN.
            ConfigError: unknown or impossible option.
        """
        check_samples(samples)
        segments = self.transcribe_blocks([samples], vad=vad, word_timestamps=word_timestamps, **options)
        return self._transcription(list(segments), samples.size / SAMPLE_RATE)

    def transcribe_blocks(
        self, blocks: Iterable[np.ndarray], *, vad: bool = True, word_timestamps: bool = False, **options: Any
    ) -> Iterator[Segment]:
        """Transcribe a long recording while it is read; memory does not grow with its length.

        Args:
            blocks: float32 (n,) at 16 kHz, any sizes, e.g. from `stream_audio`.
            vad: skip what is not speech, cut at pauses.
            word_timestamps: add words with times and probabilities.
            **options: fields of `DecodingOptions`.

        Yields:
            Segments in order, times from the start of the recording.

        Raises:
            AudioError: a block is not float32 mono or holds NaN.
            ConfigError: unknown or impossible option.
        """
        decoding = self.options(word_timestamps, **options)
        return self._segments(cut_windows(blocks, self.bundle.window, vad), decoding)

    def transcribe_window(self, samples: np.ndarray, options: DecodingOptions | None = None) -> DecodingResult:
        """Transcribe one window as it is: no VAD, no cutting.

        Args:
            samples: float32 (n_samples,), at most the bundle's max_s.
            options: how to search.

        Raises:
            AudioError: samples are empty, not float32 mono, or hold NaN.
        """
        check_samples(samples)
        mel = log_mel(pad(samples, self.bundle.window), self.engine.dims.n_mels)
        return decode(self.engine, mel, options, samples.size / SAMPLE_RATE)

    def session(self, *, word_timestamps: bool = False, **options: Any) -> Session:
        """Return the state of one utterance; options as `transcribe`."""
        return Session(self, self.options(word_timestamps, **options))

    def stream(self, options: StreamOptions | None = None, **decoding: Any) -> StreamingSession:
        """Return the state of one live stream.

        Args:
            options: when words are committed and utterances end.
            **decoding: fields of `DecodingOptions`.

        Raises:
            ConfigError: unknown or impossible option.
        """
        return StreamingSession(self, options, self.options(**decoding))

    def options(self, word_timestamps: bool = False, **options: Any) -> DecodingOptions:
        """Return decoding options, checked against this bundle before any audio is read."""
        decoding = DecodingOptions().changed(**options)
        if word_timestamps and not self.bundle.alignment_heads:
            raise ConfigError(f"{self.bundle.name}: no alignment heads, so no word timestamps; compile it again")
        if decoding.language is not None or not self.engine.tokens.multilingual:
            self.engine.tokenizer.sot_sequence(decoding.language, decoding.task)
        return decoding.changed(attention=True) if word_timestamps else decoding

    def _segments(self, windows: Iterable[AudioWindow], options: DecodingOptions) -> Iterator[Segment]:
        """Decode windows; the first one decides the language."""
        for window in windows:
            result = self.transcribe_window(window.samples, options)
            if options.language is None and result.tokens:
                options = options.changed(language=result.language)
            yield from window_segments(window, result, self.engine.tokenizer)

    def _transcription(self, segments: list[Segment], duration_s: float) -> Transcription:
        """Join segments."""
        text = " ".join(segment.text for segment in segments)
        language = segments[0].language if segments else self.language
        return Transcription(text, tuple(segments), language, duration_s)


class Session:
    """One utterance: chunks come in as they are heard, the mel grows with them, `finish` gives the text."""

    def __init__(self, transcriber: Transcriber, options: DecodingOptions) -> None:
        self._transcriber = transcriber
        self._options = options
        self._mel = MelStream(transcriber.engine.dims.n_mels)
        self._chunks: list[np.ndarray] = []

    @property
    def duration_s(self) -> float:
        """Seconds heard so far."""
        return self._mel.n_samples / SAMPLE_RATE

    def accept_chunk(self, samples: np.ndarray) -> None:
        """Hear float32 (n,) samples at 16 kHz.

        Raises:
            AudioError: empty, not float32 mono, or holding NaN.
        """
        self._chunks.append(check_samples(samples).copy())
        self._mel.push(samples)

    def finish(self) -> Transcription:
        """Return the transcript of the utterance and start a new one; a long one is cut at pauses."""
        transcriber, options, chunks, mel = self._transcriber, self._options, self._chunks, self._mel
        self._chunks, self._mel = [], MelStream(transcriber.engine.dims.n_mels)
        duration_s, policy = mel.n_samples / SAMPLE_RATE, transcriber.bundle.window
        if not chunks:
            return Transcription("", (), transcriber.language, 0.0)
        if mel.n_samples > max_samples(policy):
            windows = cut_windows(chunks, policy, vad=True)
            return transcriber._transcription(list(transcriber._segments(windows, options)), duration_s)
        frames = mel.window(padded_samples(mel.n_samples, policy) - mel.n_samples)
        result = decode(transcriber.engine, frames, options, duration_s)
        window = AudioWindow(0.0, np.concatenate(chunks))
        return transcriber._transcription(
            list(window_segments(window, result, transcriber.engine.tokenizer)), duration_s
        )
