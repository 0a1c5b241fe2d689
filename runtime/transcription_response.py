"""Segments -> the body that was asked for: json, text, srt, vtt, verbose_json, or server-sent events.

Shapes: openai/types/audio/transcription*.py of the official client; srt and vtt: runtime/formats.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from whisperfold.runtime.formats import open_writer
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.transcript import Segment
from whisperfold.runtime.transcription_request import TranscriptionRequest

_MEDIA_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


def render(asked: TranscriptionRequest, segments: Sequence[Segment], recognizer: Recognizer) -> Response:
    """Return the whole answer."""
    language = _language(asked, segments, recognizer.languages)
    if asked.response_format == "verbose_json":
        return JSONResponse(verbose_record(asked, segments, language))
    if asked.response_format == "json":
        return JSONResponse({"text": joined(segments), "usage": _usage(asked)})
    out = io.StringIO()
    name = "txt" if asked.response_format == "text" else asked.response_format
    writer = open_writer(name, out, asked.filename)
    for segment in segments:
        writer.write(segment)
    writer.finish(language, asked.blocks.read_s)
    return PlainTextResponse(out.getvalue(), media_type=_MEDIA_TYPES[asked.response_format])


def verbose_record(asked: TranscriptionRequest, segments: Sequence[Segment], language: str | None) -> dict[str, Any]:
    """OpenAI's verbose_json; times in seconds from the start of the recording."""
    record: dict[str, Any] = {
        "task": asked.task,
        "language": "en" if asked.task == "translate" else language,
        "duration": round(asked.blocks.read_s, 3),
        "text": joined(segments),
        "segments": [_segment_record(number, segment) for number, segment in enumerate(segments)],
        "usage": _usage(asked),
    }
    if "word" in asked.granularities:
        record["words"] = [
            {
                "word": word.text.strip(),
                "start": round(word.start_s, 3),
                "end": round(word.end_s, 3),
                "probability": round(word.probability, 4),
            }
            for segment in segments
            for word in segment.words
        ]
    return record


def segment_event(asked: TranscriptionRequest, segment: Segment, found: list[Segment]) -> Iterator[dict[str, Any]]:
    """Yield what a new segment adds to the stream, and append it to found."""
    yield {"type": "transcript.text.delta", "delta": f"{' ' if found else ''}{segment.text}"}
    found.append(segment)
    if asked.response_format == "verbose_json":
        record = _segment_record(len(found) - 1, segment)
        yield {**record, "id": str(record["id"]), "type": "transcript.text.segment", "speaker": ""}


def done_event(asked: TranscriptionRequest, found: Sequence[Segment]) -> dict[str, Any]:
    """The last event: the whole text."""
    event: dict[str, Any] = {"type": "transcript.text.done", "text": joined(found)}
    if asked.response_format == "verbose_json":
        return {**verbose_record(asked, found, _language(asked, found, ())), **event}
    return event


def joined(segments: Sequence[Segment]) -> str:
    """Text of all segments."""
    return " ".join(segment.text for segment in segments)


def _language(asked: TranscriptionRequest, segments: Sequence[Segment], languages: Sequence[str]) -> str | None:
    """What was heard, asked for, or is the only one there is."""
    if segments:
        return segments[0].language
    asked_for: str | None = asked.options.get("language")
    return asked_for or (languages[0] if len(languages) == 1 else None)


def _usage(asked: TranscriptionRequest) -> dict[str, Any]:
    """What OpenAI bills by."""
    return {"type": "duration", "seconds": round(asked.blocks.read_s, 3)}


def _segment_record(number: int, segment: Segment) -> dict[str, Any]:
    """OpenAI's segment."""
    return {
        "id": number,
        "seek": 0,
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": segment.temperature,
        "avg_logprob": round(segment.avg_logprob, 4),
        "compression_ratio": round(segment.compression_ratio, 3),
        "no_speech_prob": round(segment.no_speech_prob, 4),
    }
