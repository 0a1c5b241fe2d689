"""Word error rate: clips and a transcriber -> word errors of each, corpus WER, interval of a difference.

    items -> transcribe -> normalise -> align -> Evaluation;   two Evaluations -> paired bootstrap interval

Corpus WER = 100 * sum(word errors) / sum(reference words) after Whisper's English normaliser
(``whisper_normalizer.english``), aligned by jiwer. Clips with an empty reference hold no speech: any text is
a failure, and they are counted apart. The interval resamples utterances, the same ones for both models
(M. Bisani, H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", 2004).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

from whisperfold.compiler.manifests import Item
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import CompileError

Transcribe = Callable[[np.ndarray], str]
"""float32 (n_samples,), mono, 16 kHz -> text."""
NORMALIZER = "whisper_normalizer.english.EnglishTextNormalizer"


@dataclass(frozen=True)
class Utterance:
    """One clip after transcription; errors = substitutions + deletions + insertions over `words`."""

    name: str
    speaker: str | None
    duration_s: float
    latency_s: float
    reference: str
    hypothesis: str
    normalized_reference: str
    normalized_hypothesis: str
    errors: int
    words: int


@dataclass(frozen=True)
class Evaluation:
    """All clips of one set through one model; `noise` are the clips that must give no text."""

    utterances: tuple[Utterance, ...]
    noise: tuple[Utterance, ...] = ()
    unlabelled: int = 0

    @property
    def wer(self) -> float | None:
        """Corpus WER in percent, None without a reference word."""
        words = sum(u.words for u in self.utterances)
        return 100 * sum(u.errors for u in self.utterances) / words if words else None

    @property
    def wer_by_speaker(self) -> dict[str, float]:
        """Corpus WER in percent of each named speaker."""
        speakers = sorted({u.speaker for u in self.utterances if u.speaker})
        parts = {s: Evaluation(tuple(u for u in self.utterances if u.speaker == s)).wer for s in speakers}
        return {speaker: wer for speaker, wer in parts.items() if wer is not None}

    @property
    def false_texts(self) -> tuple[Utterance, ...]:
        """Clips without speech that gave text."""
        return tuple(u for u in self.noise if u.hypothesis.strip())

    @property
    def latency_median_s(self) -> float:
        """Median seconds of processing per clip."""
        return statistics.median(u.latency_s for u in self.utterances + self.noise)

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of processing per second of audio."""
        everything = self.utterances + self.noise
        return sum(u.latency_s for u in everything) / sum(u.duration_s for u in everything)

    def to_dict(self) -> dict[str, Any]:
        """The figures, without the per-clip texts, for a report."""
        return {
            "wer": _rounded(self.wer, 3),
            "errors": sum(u.errors for u in self.utterances),
            "words": sum(u.words for u in self.utterances),
            "utterances": len(self.utterances),
            "unlabelled": self.unlabelled,
            "wer_by_speaker": {s: round(w, 3) for s, w in self.wer_by_speaker.items()},
            "noise_clips": len(self.noise),
            "noise_with_text": len(self.false_texts),
            "latency_median_s": round(self.latency_median_s, 4),
            "rtf": round(self.rtf, 4),
            "normalizer": NORMALIZER,
        }


def evaluate(
    transcribe: Transcribe, items: Iterable[Item], progress: Callable[[int], None] | None = None
) -> Evaluation:
    """Transcribe every labelled item and count its word errors.

    Args:
        transcribe: float32 (n_samples,) mono 16 kHz -> text.
        items: clips; those whose text is None are counted and left out.
        progress: called with the number of clips done.

    Raises:
        CompileError: no item has a text.
    """
    items = list(items)
    labelled = [item for item in items if item.text is not None]
    if not labelled:
        raise CompileError(
            f"none of the {len(items)} items has a text, a word error rate needs transcripts; "
            'add "text" to the manifest ("" for a clip without speech)'
        )
    normalize = EnglishTextNormalizer()
    heard: list[Utterance] = []
    for done, item in enumerate(labelled, 1):
        samples = item.load()
        started = time.perf_counter()
        hypothesis = transcribe(samples).strip()
        latency_s = time.perf_counter() - started
        reference = item.text or ""
        texts = (reference, hypothesis, normalize(reference).strip(), normalize(hypothesis).strip())
        errors, words = word_errors(texts[2], texts[3])
        heard.append(Utterance(item.name, item.speaker, len(samples) / SAMPLE_RATE, latency_s, *texts, errors, words))
        if progress:
            progress(done)
    noise = tuple(u for u, item in zip(heard, labelled, strict=True) if item.is_noise)
    speech = tuple(u for u, item in zip(heard, labelled, strict=True) if not item.is_noise)
    return Evaluation(speech, noise, len(items) - len(labelled))


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Return (errors, reference words) of normalised texts; a word against nothing is an insertion."""
    if not reference:
        return len(hypothesis.split()), 0
    output = jiwer.process_words(reference, hypothesis)
    return output.substitutions + output.deletions + output.insertions, len(output.references[0])


def paired_bootstrap(a: Evaluation, b: Evaluation, n: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Return (difference, low, high): WER of a minus WER of b in points, with its 95 % interval.

    Each of the n resamples draws the utterances with replacement, the same for a and b.

    Raises:
        CompileError: a and b are not the same utterances in the same order.
    """
    if [u.normalized_reference for u in a.utterances] != [u.normalized_reference for u in b.utterances]:
        raise CompileError(
            f"two evaluations of different utterances ({len(a.utterances)} and {len(b.utterances)}); "
            "a paired interval needs the same set for both: evaluate both on one manifest"
        )
    words = np.array([u.words for u in a.utterances], dtype=np.float64)
    extra = np.array([x.errors - y.errors for x, y in zip(a.utterances, b.utterances, strict=True)], dtype=np.float64)
    if not words.sum():
        raise CompileError("no reference words in these evaluations; a WER difference needs speech with transcripts")
    draws = np.random.default_rng(seed).multinomial(len(words), np.full(len(words), 1 / len(words)), size=n)
    drawn_words = draws @ words
    differences = 100 * (draws @ extra)[drawn_words > 0] / drawn_words[drawn_words > 0]
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(100 * extra.sum() / words.sum()), float(low), float(high)


def _rounded(value: float | None, digits: int) -> float | None:
    """Round what is there."""
    return None if value is None else round(value, digits)
