"""The fields of an OpenAI transcription form -> what the recogniser is asked, checked before any work.

file model language prompt temperature response_format timestamp_granularities[] stream
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.http_errors import RequestError
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.server_config import ServerConfig
from whisperfold.runtime.upload import Upload, audio_blocks

RESPONSE_FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("word", "segment")
_IS_TRUE = {"true": True, "1": True, "false": False, "0": False, "": False}


class CountedBlocks:
    """Blocks of samples, and how many seconds of them have been read."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks = blocks
        self.read_s = 0.0

    def __iter__(self) -> CountedBlocks:
        return self

    def __next__(self) -> np.ndarray:
        block = next(self._blocks)
        self.read_s += block.size / SAMPLE_RATE
        return block

    def close(self) -> None:
        """Close the source."""
        self._blocks.close()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class TranscriptionRequest:
    """What a client wants."""

    blocks: CountedBlocks
    filename: str
    task: str
    response_format: str
    granularities: tuple[str, ...]
    stream: bool
    options: dict[str, Any]
    """Keyword arguments of `Recognizer.segments`."""


def read_request(upload: Upload, task: str, recognizer: Recognizer, config: ServerConfig) -> TranscriptionRequest:
    """Check a form.

    Args:
        upload: fields and file.
        task: transcribe or translate.
        recognizer: knows its languages.
        config: names of models, limits.

    Raises:
        RequestError: 400 with the field's name in param, 404 another model.
    """
    _check_model(upload.text("model"), recognizer, config)
    if task == "translate" and len(recognizer.languages) == 1:
        raise RequestError(
            400, "task", f"{recognizer.name} is English-only and cannot translate; serve a multilingual bundle"
        )
    response_format = upload.text("response_format") or "json"
    _check_choice("response_format", response_format, RESPONSE_FORMATS)
    granularities = upload.texts("timestamp_granularities")
    for granularity in granularities:
        _check_choice("timestamp_granularities", granularity, GRANULARITIES)
    if granularities and response_format != "verbose_json":
        raise RequestError(
            400, "option", "timestamp_granularities needs response_format=verbose_json", "timestamp_granularities"
        )
    stream = _IS_TRUE.get(upload.text("stream").lower())
    if stream is None:
        raise RequestError(400, "option", f"stream={upload.text('stream')[:20]!r}: expected true or false", "stream")
    options: dict[str, Any] = {"task": task, "word_timestamps": "word" in granularities}
    if language := _language(upload.text("language"), recognizer):
        options["language"] = language
    if prompt := upload.text("prompt").strip():
        options["prompt"] = prompt
    if temperature := _temperature(upload.text("temperature")):
        options["temperatures"] = (temperature,)
    blocks = CountedBlocks(audio_blocks(upload, config))
    return TranscriptionRequest(blocks, upload.filename, task, response_format, granularities, stream, options)


def _check_model(name: str, recognizer: Recognizer, config: ServerConfig) -> None:
    """Another model than the one that is there is an error, as with OpenAI."""
    known = (recognizer.name, *config.model_aliases)
    if name not in known:
        found = f"model {name[:60]!r} is not here" if name else "no model given"
        raise RequestError(404 if name else 400, "model", f"{found}; use {' or '.join(known[:2])}", "model")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in known:
        raise RequestError(400, "option", f"{name}={value[:40]!r}: expected {', '.join(known)}", name)


def _language(asked: str, recognizer: Recognizer) -> str | None:
    """Whisper's code for "en" or "en-US"; None detects it."""
    code = asked.strip().replace("_", "-").split("-")[0].lower()
    if code and code not in recognizer.languages:
        raise RequestError(
            400,
            "language",
            f"language={asked[:20]!r}: {recognizer.name} knows {', '.join(recognizer.languages)}",
            "language",
        )
    return code or None


def _temperature(asked: str) -> float:
    """0 to 1; 0 lets the decoder raise it where the text is doubtful."""
    try:
        value = float(asked or 0.0)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise RequestError(400, "option", f"temperature={asked[:20]!r}: expected 0 to 1", "temperature")
    return value
