"""A decoded window -> segments with times from the start of the recording.

Without timestamp tokens a window is one segment; with them it is cut at each closed pair
`<|1.20|> text <|3.40|>`.
"""

from __future__ import annotations

from collections.abc import Iterator

from whisperfold.runtime.decoding import DecodingResult
from whisperfold.runtime.timing import word_timestamps
from whisperfold.runtime.tokenizer import Tokenizer
from whisperfold.runtime.transcript import Segment, Word
from whisperfold.runtime.windows import AudioWindow


def window_segments(window: AudioWindow, result: DecodingResult, tokenizer: Tokenizer) -> Iterator[Segment]:
    """Yield the segments of a window that hold text.

    Args:
        window: where the audio lies in the recording.
        result: its transcript; with cross attention the segments get words.
        tokenizer: of the same bundle.
    """
    words = [word.shifted(window.start_s) for word in word_timestamps(result, tokenizer, window.duration_s)]
    for start_s, end_s, tokens in timestamp_spans(result.tokens, tokenizer, window.duration_s):
        text = tokenizer.decode(tokens).strip()
        if not text:
            continue
        own = _take_words(words, len("".join(text.split())))
        yield Segment(
            start_s=own[0].start_s if own else window.start_s + start_s,
            end_s=own[-1].end_s if own else window.start_s + end_s,
            text=text,
            avg_logprob=result.avg_logprob,
            no_speech_prob=result.no_speech_prob,
            words=tuple(own),
            language=result.language,
            temperature=result.temperature,
            compression_ratio=result.compression_ratio,
        )


def timestamp_spans(
    tokens: tuple[int, ...], tokenizer: Tokenizer, audio_s: float
) -> Iterator[tuple[float, float, list[int]]]:
    """Yield (start_s, end_s, text tokens) between timestamp tokens; the whole window where there are none."""
    start_s, text = 0.0, list[int]()
    for token in tokens:
        if not tokenizer.is_timestamp(token):
            text.append(token)
            continue
        time_s = min(audio_s, tokenizer.timestamp_s(token))
        if text:
            yield start_s, max(start_s, time_s), text
            text = []
        start_s = time_s
    if text:
        yield start_s, audio_s, text


def _take_words(words: list[Word], n_characters: int) -> list[Word]:
    """Take words off the front until they cover n_characters (spaces not counted)."""
    own = []
    while words and n_characters > 0:
        own.append(words.pop(0))
        n_characters -= len("".join(own[-1].text.split()))
    return own
