import io
import json
from dataclasses import dataclass, field

import pytest

from whisperfold.runtime import formats
from whisperfold.runtime.errors import ConfigError


@dataclass
class Word:
    start_s: float
    end_s: float
    text: str
    probability: float = 0.5


@dataclass
class Segment:
    start_s: float
    end_s: float
    text: str
    avg_logprob: float = -0.25
    no_speech_prob: float = 0.01
    words: list[Word] = field(default_factory=list)


SEGMENTS = [
    Segment(0.0, 1.2344, " And so, my fellow"),
    Segment(1.5, 3723.9999, " a <b> & --> c\n\nd", words=[Word(1.5, 2.0, " a", 0.87654)]),
    Segment(3724.0, 3725.0, "  "),
]


def written(name: str, segments=SEGMENTS, **options) -> str:
    out = io.StringIO()
    writer = formats.open_writer(name, out, "clip.wav", **options)
    for segment in segments:
        writer.write(segment)
    writer.finish(language="en", duration_s=3725.00001)
    return out.getvalue()


@pytest.mark.parametrize(
    ("time_s", "text"),
    [(0, "00:00:00.000"), (0.9996, "00:00:01.000"), (59.9999, "00:01:00.000"), (-0.1, "00:00:00.000")],
)
def test_clock_rounds_once_and_carries(time_s, text):
    assert formats.clock(time_s) == text


def test_clock_of_more_than_99_hours():
    assert formats.clock(360_000 + 3661.5, ",") == "101:01:01,500"


def test_txt_is_one_line():
    assert written("txt") == "And so, my fellow a <b> & --> c\n\nd\n"


def test_txt_without_speech_is_no_text_at_all():
    assert written("txt", []) == ""
    assert written("txt", SEGMENTS[2:]) == ""


def test_txt_with_timestamps_has_a_line_per_segment():
    assert written("txt", SEGMENTS[:1], timestamps=True) == "[00:00:00.000 --> 00:00:01.234] And so, my fellow\n"


def test_srt_numbers_only_what_has_text_and_text_cannot_break_a_block():
    assert written("srt") == (
        "1\n00:00:00,000 --> 00:00:01,234\nAnd so, my fellow\n\n2\n00:00:01,500 --> 01:02:04,000\na <b> & -> c d\n\n"
    )


def test_vtt_has_its_signature_and_escapes():
    text = written("vtt")
    assert text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.234\n")
    assert "\na &lt;b&gt; &amp; -&gt; c d\n" in text
    assert written("vtt", []) == "WEBVTT\n\n"


def test_json_is_one_document():
    document = json.loads(written("json"))
    assert document["file"] == "clip.wav"
    assert document["language"] == "en"
    assert document["duration_s"] == 3725.0
    assert document["text"] == "And so, my fellow a <b> & --> c\n\nd"
    assert document["segments"][0] == {
        "start_s": 0.0,
        "end_s": 1.234,
        "text": "And so, my fellow",
        "avg_logprob": -0.25,
        "no_speech_prob": 0.01,
    }
    assert document["segments"][1]["words"] == [{"start_s": 1.5, "end_s": 2.0, "text": "a", "probability": 0.8765}]
    assert json.loads(written("json", []))["segments"] == []


def test_jsonl_is_one_line_per_segment_as_it_comes():
    lines = written("jsonl").splitlines()
    assert [json.loads(line)["file"] for line in lines] == ["clip.wav"] * 3
    assert written("jsonl", []) == ""


def test_segment_text_beyond_ascii_stays_readable():
    assert "für 東京" in written("jsonl", [Segment(0, 1, "für 東京")])


def test_unknown_format_names_the_known_ones():
    with pytest.raises(ConfigError, match="'docx' is unknown; use one of txt, srt, vtt, json, jsonl"):
        formats.open_writer("docx", io.StringIO(), "clip.wav")
