import io
import json

import pytest

from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.listen_output import CUE_CHARS, CUE_S, cues, open_output
from whisperfold.runtime.microphone import MicrophoneStatus
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.transcript import Word


def event(kind="final", committed="Hello world.", words=(), start_s=1.0, end_s=2.0):
    return StreamEvent(kind, 0, start_s, end_s, committed, "", words, "en", -0.1, 0.01, 0.0)


def words(n, word_s=0.5, text=" word"):
    return tuple(Word(index * word_s, (index + 1) * word_s, text, 0.9) for index in range(n))


def write(name, *events):
    out = io.StringIO()
    output = open_output(name, out, "microphone", "en")
    for each in events:
        output.event(each)
    output.finish(3.0)
    return out.getvalue()


@pytest.mark.parametrize("name", ["text", "txt"])
def test_text_has_finals_only(name):
    assert write(name, event("start", ""), event("partial", "Hello"), event()) == "Hello world.\n"


def test_jsonl_has_status_too(capsys):
    out = io.StringIO()
    open_output("jsonl", out, "microphone", "en").status(MicrophoneStatus("lost", "gone", 1.5))
    assert json.loads(out.getvalue()) == {"type": "status", "status": "lost", "message": "gone", "at_s": 1.5}
    assert "gone" in capsys.readouterr().err


def test_subtitles_are_written_with_each_final():
    out = io.StringIO()
    output = open_output("vtt", out, "microphone", "en")
    output.event(event())
    assert out.getvalue() == "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nHello world.\n\n"


def test_subtitles_without_speech_are_still_a_file():
    assert write("vtt") == "WEBVTT\n\n" and write("srt") == ""


def test_an_utterance_without_word_times_is_one_cue():
    (cue,) = cues(event())
    assert (cue.start_s, cue.end_s, cue.text) == (1.0, 2.0, "Hello world.")


def test_a_long_utterance_is_cut_and_loses_no_word():
    said = words(60)
    found = list(cues(event(committed=" ".join(["word"] * 60), words=said)))
    assert len(found) >= 5
    assert [word for cue in found for word in cue.words] == list(said)
    assert all(cue.end_s - cue.start_s <= CUE_S and len(cue.text.strip()) <= CUE_CHARS for cue in found)
    assert all(first.end_s <= second.start_s for first, second in zip(found, found[1:], strict=False))


def test_a_word_longer_than_a_cue_stays_whole():
    (cue,) = cues(event(words=words(1, text=" " + "a" * 100)))
    assert cue.text.strip() == "a" * 100


def test_unknown_format():
    with pytest.raises(ConfigError, match="use one of text, txt, jsonl, srt, vtt"):
        open_output("docx", io.StringIO(), "microphone", "en")
