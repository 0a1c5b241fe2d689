"""Recognised segments -> txt, srt, vtt, json or jsonl text.

In: segments one at a time, as the recogniser finishes them (times in seconds). Out: text written to a stream
as early as the format allows, so that a three-hour file shows its first line at once; only ``json`` waits for
the end.

    writer = open_writer("srt", sys.stdout, source="clip.wav")
    for segment in segments:
        writer.write(segment)
    writer.finish(language="en", duration_s=11.0)
"""

import json
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from whisperfold.runtime.errors import ConfigError

FORMATS = ("txt", "srt", "vtt", "json", "jsonl")
ONE_FILE_PER_DOCUMENT = ("srt", "vtt", "json")


class WordLike(Protocol):
    """A word as the writers read it (transcript.py has them)."""

    @property
    def start_s(self) -> float:
        """Seconds from the start of the recording."""

    @property
    def end_s(self) -> float:
        """Seconds from the start of the recording."""

    @property
    def text(self) -> str:
        """The word, with its leading space as Whisper gives it."""

    @property
    def probability(self) -> float:
        """Mean probability of the word's tokens, 0 to 1."""


class SegmentLike(Protocol):
    """A segment as the writers read it (transcript.py has them)."""

    @property
    def start_s(self) -> float:
        """Seconds from the start of the recording."""

    @property
    def end_s(self) -> float:
        """Seconds from the start of the recording."""

    @property
    def text(self) -> str:
        """What was said."""

    @property
    def avg_logprob(self) -> float:
        """Mean natural logarithm of the tokens' probabilities."""

    @property
    def no_speech_prob(self) -> float:
        """Probability of the no-speech token, 0 to 1."""

    @property
    def words(self) -> Sequence[WordLike]:
        """Words with times; empty when they were not asked for."""


class Writer:
    """Takes the segments of one recording and writes them to a stream; the base of all formats.

    Attributes:
        out: where the text goes.
        source: name of the recording, as given by the user.
        timestamps: txt only: put ``[start --> end]`` before each segment.
    """

    def __init__(self, out: TextIO, source: str, timestamps: bool = False) -> None:
        self.out = out
        self.source = source
        self.timestamps = timestamps
        self.begin()

    def begin(self) -> None:
        """Prepare for the first segment; write nothing yet, the recording may be unreadable."""

    def write(self, segment: SegmentLike) -> None:
        """Write one segment."""
        raise NotImplementedError

    def finish(self, language: str | None, duration_s: float) -> None:
        """Write what comes after the last segment.

        Args:
            language: code of the recording's language, or None when unknown.
            duration_s: length of the recording.
        """

    def abandon(self) -> None:
        """The recording cannot be read on: leave the stream at the start of a line."""


class TextWriter(Writer):
    """The plain transcript: one line per recording, or one per segment when ``timestamps`` is set."""

    def begin(self) -> None:
        """Start with an empty line."""
        self._has_text = False

    def write(self, segment: SegmentLike) -> None:
        """Append the segment to the line."""
        text = segment.text.strip()
        if not text:
            return
        if self.timestamps:
            self.out.write(f"[{clock(segment.start_s)} --> {clock(segment.end_s)}] {text}\n")
        else:
            self.out.write(f" {text}" if self._has_text else text)
        self._has_text = True
        self.out.flush()

    def finish(self, language: str | None, duration_s: float) -> None:
        """End the line; a recording without speech gives no text at all, not even a line."""
        self.abandon()

    def abandon(self) -> None:
        """End the line, if there is one."""
        if self._has_text and not self.timestamps:
            self.out.write("\n")


class SubRipWriter(Writer):
    """SubRip subtitles: numbered blocks, comma before the milliseconds."""

    def begin(self) -> None:
        """Start counting."""
        self._count = 0

    def write(self, segment: SegmentLike) -> None:
        """Write one numbered block."""
        text = _cue_text(segment.text)
        if not text:
            return
        self._count += 1
        times = f"{clock(segment.start_s, ',')} --> {clock(segment.end_s, ',')}"
        self.out.write(f"{self._count}\n{times}\n{text}\n\n")
        self.out.flush()


class WebVttWriter(Writer):
    """WebVTT captions; text is escaped as the format asks."""

    def begin(self) -> None:
        """The signature is still to be written."""
        self._has_signature = False

    def write(self, segment: SegmentLike) -> None:
        """Write one cue."""
        self._sign()
        text = _cue_text(segment.text)
        if not text:
            return
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        self.out.write(f"{clock(segment.start_s)} --> {clock(segment.end_s)}\n{text}\n\n")
        self.out.flush()

    def finish(self, language: str | None, duration_s: float) -> None:
        """Without a cue the file is its signature."""
        self._sign()

    def _sign(self) -> None:
        """Write the file's signature once."""
        if not self._has_signature:
            self.out.write("WEBVTT\n\n")
            self._has_signature = True


class JsonWriter(Writer):
    """One JSON document: file, text, language, duration_s and the segments."""

    def begin(self) -> None:
        """Start with no segments."""
        self._segments: list[dict[str, Any]] = []

    def write(self, segment: SegmentLike) -> None:
        """Keep the segment for the end."""
        self._segments.append(segment_record(segment))

    def finish(self, language: str | None, duration_s: float) -> None:
        """Write the document."""
        document = {
            "file": self.source,
            "language": language,
            "duration_s": round(duration_s, 3),
            "text": " ".join(record["text"] for record in self._segments if record["text"]),
            "segments": self._segments,
        }
        json.dump(document, self.out, ensure_ascii=False, indent=1)
        self.out.write("\n")


class JsonLinesWriter(Writer):
    """One JSON object per segment and line, each with the file's name."""

    def write(self, segment: SegmentLike) -> None:
        """Write one line."""
        record = {"file": self.source, **segment_record(segment)}
        self.out.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.out.flush()


_WRITERS: dict[str, type[Writer]] = {
    "txt": TextWriter,
    "srt": SubRipWriter,
    "vtt": WebVttWriter,
    "json": JsonWriter,
    "jsonl": JsonLinesWriter,
}


def open_writer(name: str, out: TextIO, source: str, timestamps: bool = False) -> Writer:
    """Return a writer for a format.

    Args:
        name: one of FORMATS.
        out: text stream that the transcript is written to; stays open.
        source: name of the recording for json and jsonl.
        timestamps: txt only: one line per segment with its times.

    Raises:
        ConfigError: name is not a format.
    """
    check_format(name)
    return _WRITERS[name](out, source, timestamps)


def check_format(name: str, allowed: Sequence[str] = FORMATS) -> None:
    """Raise ConfigError when ``name`` is not one of the ``allowed`` formats."""
    if name not in allowed:
        raise ConfigError(f"format {name!r} is unknown; use one of {', '.join(allowed)}")


def segment_record(segment: SegmentLike) -> dict[str, Any]:
    """Return a segment as plain numbers and strings, times rounded to the millisecond."""
    record: dict[str, Any] = {
        "start_s": round(float(segment.start_s), 3),
        "end_s": round(float(segment.end_s), 3),
        "text": segment.text.strip(),
        "avg_logprob": round(float(segment.avg_logprob), 4),
        "no_speech_prob": round(float(segment.no_speech_prob), 4),
    }
    if segment.words:
        record["words"] = [
            {
                "start_s": round(float(word.start_s), 3),
                "end_s": round(float(word.end_s), 3),
                "text": word.text.strip(),
                "probability": round(float(word.probability), 4),
            }
            for word in segment.words
        ]
    return record


def clock(time_s: float, decimal: str = ".") -> str:
    """Return seconds as ``HH:MM:SS.mmm``, rounded to the millisecond."""
    milliseconds = max(0, round(time_s * 1000))
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{decimal}{milliseconds:03d}"


def _cue_text(text: str) -> str:
    """Return text that cannot end its cue early: one line, and no arrow."""
    return " ".join(text.split()).replace("-->", "->")
