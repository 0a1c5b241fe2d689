"""Events of a live stream -> lines of text, JSON lines or subtitles, each as soon as it is final.

    output = open_output("srt", sys.stdout, source="microphone", language="en")
    output.event(event) ... output.finish(duration_s)

The terminal's live view (captions.py) has the same methods.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TextIO

from whisperfold.runtime.cli_options import say
from whisperfold.runtime.formats import check_format, open_writer
from whisperfold.runtime.transcript import Segment, Word

if TYPE_CHECKING:
    from whisperfold.runtime.microphone import MicrophoneStatus
    from whisperfold.runtime.stream_event import StreamEvent

FORMATS = ("text", "txt", "jsonl", "srt", "vtt")
CUE_S = 7.0
CUE_CHARS = 84
"""Longest subtitle: two lines of 42 characters for 7 s (the usual limits of broadcasters)."""


class Output(Protocol):
    """Where a live stream goes."""

    def event(self, event: "StreamEvent") -> None:
        """Show an event."""

    def status(self, status: "MicrophoneStatus") -> None:
        """Show that the microphone delivers sound, is lost, back, or cannot be understood."""

    def chunk(self, level_dbfs: float, is_speech: bool, heard_s: float, dropped: int) -> None:
        """Show the level; called about ten times a second."""

    def finish(self, duration_s: float) -> None:
        """Write what comes at the end."""


class TextOutput:
    """One line per utterance."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def event(self, event: "StreamEvent") -> None:
        """Write a final's text."""
        if event.kind == "final":
            print(event.committed.strip(), file=self._out, flush=True)

    def status(self, status: "MicrophoneStatus") -> None:
        """Say it on stderr."""
        say(status.message)

    def chunk(self, level_dbfs: float, is_speech: bool, heard_s: float, dropped: int) -> None:
        """Lines have no level."""

    def finish(self, duration_s: float) -> None:
        """Nothing comes after the last line."""


class JsonOutput(TextOutput):
    """Every event and every status as one JSON object per line."""

    def event(self, event: "StreamEvent") -> None:
        """Write the event."""
        print(json.dumps(event.record(), ensure_ascii=False), file=self._out, flush=True)

    def status(self, status: "MicrophoneStatus") -> None:
        """Write the status, and say it on stderr."""
        print(json.dumps(status.record(), ensure_ascii=False), file=self._out, flush=True)
        say(status.message)


class SubtitleOutput(TextOutput):
    """SubRip or WebVTT; a long utterance becomes several cues."""

    def __init__(self, out: TextIO, kind: str, source: str, language: str | None) -> None:
        super().__init__(out)
        self._writer, self._language = open_writer(kind, out, source), language

    def event(self, event: "StreamEvent") -> None:
        """Write a final's cues."""
        if event.kind == "final":
            for cue in cues(event):
                self._writer.write(cue)

    def finish(self, duration_s: float) -> None:
        """Write what the format has at its end."""
        self._writer.finish(self._language, duration_s)


def open_output(name: str, out: TextIO, source: str, language: str | None) -> Output:
    """Return the output of a format; errors as check_format."""
    check_format(name, FORMATS)
    if name in ("srt", "vtt"):
        return SubtitleOutput(out, name, source, language)
    return JsonOutput(out) if name == "jsonl" else TextOutput(out)


def cues(event: "StreamEvent") -> Iterator[Segment]:
    """Cut an utterance into subtitles of at most CUE_S and CUE_CHARS; without word times it stays whole."""
    if not event.words:
        yield _cue(event, event.start_s, event.end_s, event.committed, ())
        return
    cue: list[Word] = []
    for word in event.words:
        text = "".join(each.text for each in (*cue, word)).strip()
        if cue and (len(text) > CUE_CHARS or word.end_s - cue[0].start_s > CUE_S):
            yield _cue_of_words(event, cue)
            cue = []
        cue.append(word)
    yield _cue_of_words(event, cue)


def _cue_of_words(event: "StreamEvent", words: list[Word]) -> Segment:
    """One subtitle."""
    text = "".join(word.text for word in words)
    return _cue(event, words[0].start_s, words[-1].end_s, text, tuple(words))


def _cue(event: "StreamEvent", start_s: float, end_s: float, text: str, words: tuple[Word, ...]) -> Segment:
    """A segment with the utterance's figures."""
    return Segment(start_s, end_s, text, event.avg_logprob, event.no_speech_prob, words, event.language)
