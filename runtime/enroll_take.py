"""A form with a sentence read aloud -> the take: text and samples; then what is wrong with it, as a person is told.

form (upload.py) -> text, language, keep, float32 16 kHz -> without silence around it (trimming.py) -> Check
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import numpy as np
from starlette.requests import Request

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.error_rate import normalised_words
from whisperfold.runtime.http_errors import RequestError
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.recording_checks import Check, check_recording
from whisperfold.runtime.server_config import ServerConfig
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.trimming import trimmed
from whisperfold.runtime.upload import Upload, audio_blocks, receive_upload

MAX_TAKE_S = 90.0
"""Longer recordings are no sentence; much of it may be silence, which is cut off."""
MAX_TEXT_CHARACTERS = 500


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
    return Take(text, await asyncio.to_thread(_samples, upload, config), language, keep == "1")


async def check_take(recognizer: Recognizer, take: Take) -> tuple[Take, Check]:
    """Return the take without the silence around what is said, and what is wrong with it.

    It waits like a recording of others, behind live captions. It is heard with the weights in use, whoever's profile
    they hold: others hear a person well enough to tell one sentence from another.

    Raises:
        BusyError: too many recordings are waiting.
    """

    def look(transcriber: Transcriber) -> tuple[Take, Check]:
        """On a worker."""
        spoken = replace(take, samples=trimmed(take.samples))
        return spoken, check_recording(spoken.samples, take.text, transcriber, take.language)

    return await recognizer.aside(look)


def asked_language(recognizer: Recognizer, asked: str) -> str | None:
    """Return a language of the bundle; None where none was asked for, or it has one only.

    Raises:
        RequestError: 400, the bundle does not know it.
    """
    if asked and asked not in recognizer.languages:
        known = ", ".join(recognizer.languages)
        raise RequestError(400, "language", f"language {asked[:20]!r}: this bundle knows {known}", "language")
    return asked if asked and recognizer.bundle.tokens.multilingual else None


def _text(text: str) -> str:
    """The sentence that was read, on one line."""
    text = " ".join(text.split())
    if len(text) > MAX_TEXT_CHARACTERS or not normalised_words(text):
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
