"""A form with a sentence read aloud -> the take: text, and samples without the silence around what is said.

form (upload.py) -> text, language, keep -> float32 16 kHz -> voice detector -> 0.4 s before speech ... 0.4 s after
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from starlette.requests import Request

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.error_rate import normalised_words
from whisperfold.runtime.http_errors import RequestError
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.server_config import ServerConfig
from whisperfold.runtime.upload import Upload, audio_blocks, receive_upload
from whisperfold.runtime.vad import VoiceDetector
from whisperfold.runtime.workers import FINAL

MAX_TAKE_S = 90.0
"""Longer recordings are no sentence; much of it may be silence, which is cut off."""
MAX_TEXT_CHARACTERS = 500
MARGIN_S = 0.4
"""Silence kept on both sides of what is said."""


@dataclass(frozen=True)
class Take:
    """One reading of a sentence."""

    text: str
    samples: np.ndarray
    """float32 (n,), mono, 16 kHz."""
    language: str | None
    """Of multilingual bundles, where it was given."""
    keep: bool
    """Whether it shall be kept if nothing is wrong with it."""


async def receive_take(request: Request) -> Take:
    """Take in a form with file, text, and perhaps language and keep.

    Raises:
        RequestError: 4xx, what is wrong with the form.
        AudioError: the file cannot be read.
        ClientDisconnect: the client is gone.
    """
    recognizer, config = request.app.state.recognizer, request.app.state.config
    recognizer.check_room()  # before a large body is taken in for nothing
    upload = await receive_upload(request, config)
    try:
        text = _text(upload.text("text"))
        language = asked_language(recognizer, upload.text("language"))
        keep = upload.text("keep", "0")
        if keep not in ("0", "1"):
            raise RequestError(400, "option", f"keep={keep[:20]!r}: expected 0 or 1", "keep")
    except BaseException:
        upload.close()
        raise
    samples = await asyncio.to_thread(_samples, upload, config)
    spoken = await recognizer.run(FINAL, lambda: trimmed(samples))
    return Take(text, spoken, language, keep == "1")


def asked_language(recognizer: Recognizer, asked: str) -> str | None:
    """Return a language of the bundle; None where none was asked for, or it has one only.

    Raises:
        RequestError: 400, the bundle does not know it.
    """
    if asked and asked not in recognizer.languages:
        known = ", ".join(recognizer.languages)
        raise RequestError(400, "language", f"language {asked[:20]!r}: this bundle knows {known}", "language")
    return asked if asked and recognizer.bundle.tokens.multilingual else None


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Return float32 (n,) samples at 16 kHz without the silence around what is said; all of them if nothing is."""
    detector = VoiceDetector()
    events = detector.push(samples)
    if not events:
        return samples
    first = round((events[0].time_s - MARGIN_S) * SAMPLE_RATE)
    last = samples.size if detector.in_speech else round((events[-1].time_s + MARGIN_S) * SAMPLE_RATE)
    return samples[max(0, first) : last]


def _text(text: str) -> str:
    """The sentence that was read, on one line."""
    text = " ".join(text.split())
    if not normalised_words(text) or len(text) > MAX_TEXT_CHARACTERS:
        expected = f"expected the words that are said, at most {MAX_TEXT_CHARACTERS} characters"
        raise RequestError(400, "text", f"text: {len(text)} characters; {expected}", "text")
    return text


def _samples(upload: Upload, config: ServerConfig) -> np.ndarray:
    """The whole recording, float32 (n,)."""
    blocks: list[np.ndarray] = []
    for block in audio_blocks(upload, config):
        blocks.append(block)
        if sum(item.size for item in blocks) > MAX_TAKE_S * SAMPLE_RATE:
            raise RequestError(413, "duration", f"longer than {MAX_TAKE_S:.0f} s: read one sentence at a time", "file")
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
