"""Laws of live streams, on the packaged clip; thresholds are not pinned."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from whisperfold.runtime.audio import SAMPLE_RATE, load_audio
from whisperfold.runtime.decoding import decode
from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.errors import AudioError, ConfigError
from whisperfold.runtime.growing import GrowingWindow
from whisperfold.runtime.stream import StreamingSession
from whisperfold.runtime.stream_event import StreamEvent
from whisperfold.runtime.stream_options import StreamOptions
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.vad import speech_segments
from whisperfold.runtime.windows import max_samples

POLICIES = ("local-agreement", "attention-frontier")
CHUNKS_S = (0.02, 0.25, 1.0)
UNHURRIED = 1e9
"""A load at which hypotheses are made by the clock of the audio, not of the machine: the same on every run."""
Play = Callable[..., list[StreamEvent]]


@pytest.fixture(scope="module")
def play(transcriber: Transcriber, jfk: np.ndarray) -> Play:
    """Stream samples (the packaged clip) in chunks of a size; a run is made once for all tests of this file."""
    made: dict[Any, list[StreamEvent]] = {}

    def play(samples: np.ndarray = jfk, chunk_s: float = 0.25, **options: Any) -> list[StreamEvent]:
        key = (id(samples), samples.size, chunk_s, tuple(options.items()))
        if key not in made:
            session = transcriber.stream(StreamOptions(**{"load": UNHURRIED, **options}))
            made[key] = [*hear(session, samples, chunk_s), *session.finish()]
        return made[key]

    return play


@pytest.fixture
def windows_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Length of the window of every hypothesis that the test makes."""
    lengths_s: list[float] = []
    hypothesise = GrowingWindow.hypothesise

    def counted(window: GrowingWindow, *options: Any, **more: Any) -> None:
        lengths_s.append(window.n_samples / SAMPLE_RATE)
        hypothesise(window, *options, **more)

    monkeypatch.setattr(GrowingWindow, "hypothesise", counted)
    return lengths_s


@pytest.fixture(scope="module")
def pauses(jfk: np.ndarray) -> int:
    """How often the speaker of the clip pauses, at its end too."""
    return len(speech_segments(jfk))


@pytest.fixture(scope="module")
def monologue(jfk: np.ndarray) -> np.ndarray:
    """A minute of the clip's words, again and again without a pause: 22 words each time, 173 in all."""
    spoken = np.concatenate(
        [jfk[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)] for start_s, end_s in speech_segments(jfk)]
    )
    return np.tile(spoken, 8)[: 60 * SAMPLE_RATE]


def hear(session: StreamingSession, samples: np.ndarray, chunk_s: float) -> Iterator[StreamEvent]:
    """Give samples in chunks."""
    n = round(chunk_s * SAMPLE_RATE)
    for first in range(0, samples.size, n):
        yield from session.accept_chunk(samples[first : first + n])


def finals(events: list[StreamEvent]) -> list[StreamEvent]:
    return [event for event in events if event.kind == "final"]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def said(events: list[StreamEvent]) -> list[str]:
    return words_of(" ".join(event.committed for event in finals(events)))


def errors(reference: list[str], hypothesis: list[str]) -> int:
    """Words that are wrong, missing or too many."""
    matcher = difflib.SequenceMatcher(None, reference, hypothesis, autojunk=False)
    return sum(max(b - a, d - c) for kind, a, b, c, d in matcher.get_opcodes() if kind != "equal")


def check_committed_never_changes(events: list[StreamEvent]) -> None:
    """The law, and the grammar of a stream: start, partials, at most one final, one utterance after the other."""
    committed: dict[int, str] = {}
    ended: set[int] = set()
    for before, event in itertools.pairwise([None, *events]):
        if event.kind == "start":
            assert event.utterance == len(committed), "utterances are numbered from 0"
            committed[event.utterance] = ""
        assert event.utterance == len(committed) - 1, "one utterance at a time"
        assert event.utterance not in ended, "nothing comes after a final"
        assert event.committed.startswith(committed[event.utterance]), "committed text changed"
        assert before is None or before.utterance != event.utterance or before.start_s == event.start_s
        committed[event.utterance] = event.committed
        if event.kind == "final":
            assert event.committed.strip() and event.tentative == ""
            ended.add(event.utterance)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_text_is_that_of_the_whole_recording(
    play: Play, transcriber: Transcriber, jfk: np.ndarray, policy: str
) -> None:
    assert errors(words_of(transcriber.transcribe(jfk).text), said(play(policy=policy))) <= 3


@pytest.mark.parametrize("chunk_s", CHUNKS_S)
def test_committed_text_never_changes(play: Play, chunk_s: float) -> None:
    check_committed_never_changes(play(chunk_s=chunk_s))


def test_committed_text_never_changes_with_the_frontier(play: Play) -> None:
    check_committed_never_changes(play(policy="attention-frontier"))


def test_text_is_committed_before_the_utterance_ends(play: Play) -> None:
    for policy in POLICIES:
        assert any(event.committed for event in play(policy=policy) if event.kind == "partial"), policy


@pytest.mark.parametrize("chunk_s", CHUNKS_S)
def test_the_size_of_chunks_hardly_matters(play: Play, chunk_s: float) -> None:
    usual, other = play(), play(chunk_s=chunk_s)
    assert errors(said(usual), said(other)) <= 2
    assert len(finals(usual)) == len(finals(other))
    for one, two in zip(finals(usual), finals(other), strict=True):
        assert one.start_s == two.start_s and one.end_s == two.end_s


def test_words_are_the_text_and_follow_each_other(play: Play) -> None:
    for event in (event for policy in POLICIES for event in finals(play(policy=policy))):
        assert "".join(word.text for word in event.words).strip() == event.committed
        assert all(word.start_s <= word.end_s and 0.0 < word.probability <= 1.0 for word in event.words)
        starts_s, ends_s = [word.start_s for word in event.words], [word.end_s for word in event.words]
        assert starts_s == sorted(starts_s) and ends_s == sorted(ends_s)


def test_words_lie_within_their_utterance(play: Play) -> None:
    for event in (event for policy in POLICIES for event in finals(play(policy=policy))):
        assert event.start_s <= event.words[0].start_s, event.committed
        assert event.words[-1].end_s <= event.end_s, event.committed


def test_utterances_follow_each_other(play: Play) -> None:
    done = finals(play())
    assert all(event.start_s < event.end_s for event in done)
    assert all(one.end_s <= two.start_s for one, two in itertools.pairwise(done))


def test_events_are_plain_json(play: Play) -> None:
    records = [json.loads(json.dumps(event.record())) for event in play()]
    assert {record["type"] for record in records} == {"start", "partial", "final"}
    final = next(record for record in records if record["type"] == "final")
    assert final["text"] == final["committed"] and final["tentative"] == "" and final["language"] == "en"
    assert [word["text"] for word in final["words"]] == final["text"].split()
    assert final["avg_logprob"] < 0.0 <= final["no_speech_prob"] <= 1.0


def test_an_event_says_how_much_audio_waited(play: Play) -> None:
    assert {event.lag_s for event in play() if event.kind == "partial"} == {0.25}


@pytest.mark.parametrize("kind", ["silence", "hiss", "hum", "clicks"])
def test_noise_gives_no_text(transcriber: Transcriber, kind: str) -> None:
    random, n = np.random.default_rng(0), 8 * SAMPLE_RATE
    clicks = np.zeros(n, np.float32)
    clicks[:: SAMPLE_RATE // 3] = 0.9
    samples = {
        "silence": np.zeros(n, np.float32),
        "hiss": 0.1 * random.standard_normal(n, np.float32),
        "hum": (0.3 * np.sin(2 * np.pi * 50 * np.arange(n) / SAMPLE_RATE)).astype(np.float32),
        "clicks": clicks,
    }[kind]
    session = transcriber.stream()
    events = [*hear(session, samples, 0.1), *session.finish()]
    assert not [event for event in events if event.committed or event.tentative]


def test_recorded_noise_gives_no_final(transcriber: Transcriber, speech_dir: Path) -> None:
    for path in sorted((speech_dir / "noise").glob("*.flac"))[:3]:
        session = transcriber.stream()
        assert not finals([*hear(session, load_audio(path)[: 20 * SAMPLE_RATE], 0.5), *session.finish()]), path.name


def test_a_backlog_costs_one_hypothesis_per_pause(
    transcriber: Transcriber, jfk: np.ndarray, pauses: int, windows_s: list[float]
) -> None:
    session = transcriber.stream()
    events = session.accept_chunk(jfk)
    finishing = session.finish()
    assert len(windows_s) <= 2 * pauses, "a pause is decoded, and again if a sound in it was none"
    partials = [event for event in events if event.kind == "partial"]
    assert len(partials) <= 2 * pauses
    assert finals([*events, *finishing])


def test_a_backlog_without_a_pause_costs_one_hypothesis(
    transcriber: Transcriber, monologue: np.ndarray, windows_s: list[float]
) -> None:
    session = transcriber.stream()
    session.accept_chunk(monologue[: 7 * SAMPLE_RATE])
    assert len(windows_s) == 1


def test_finish_gives_the_open_utterance(transcriber: Transcriber, jfk: np.ndarray) -> None:
    session = transcriber.stream()
    events = list(hear(session, jfk[: 2 * SAMPLE_RATE], 0.25))
    assert session.in_speech and not finals(events)
    (final,) = session.finish()
    assert final.kind == "final" and words_of(final.committed)[:4] == ["and", "so", "my", "fellow"]
    check_committed_never_changes([*events, final])
    assert session.finish() == [], "nothing is open any more"


def test_finish_without_speech(transcriber: Transcriber) -> None:
    session = transcriber.stream()
    assert session.finish() == []
    session = transcriber.stream()
    session.accept_chunk(np.zeros(SAMPLE_RATE, np.float32))
    assert session.finish() == []


def test_without_partials_finals_stay(play: Play) -> None:
    events = play(partials=False)
    check_committed_never_changes(events)
    assert errors(said(play()), said(events)) <= 3


def test_two_streams_do_not_know_of_each_other(play: Play, transcriber: Transcriber, jfk: np.ndarray) -> None:
    options = StreamOptions(load=UNHURRIED)
    one, other = transcriber.stream(options), transcriber.stream(options)
    heard = list[StreamEvent]()
    for first in range(0, jfk.size, SAMPLE_RATE):
        heard += one.accept_chunk(jfk[first : first + SAMPLE_RATE])
        other.accept_chunk(jfk[jfk.size - first - SAMPLE_RATE :][:SAMPLE_RATE])
    assert [event.committed for event in finals([*heard, *one.finish()])] == [
        event.committed for event in finals(play(chunk_s=1.0))
    ]


@pytest.mark.parametrize(
    "policy",
    [
        "local-agreement",
        "attention-frontier",
    ],
)
def test_a_monologue_keeps_its_window_and_loses_no_words(
    transcriber: Transcriber, monologue: np.ndarray, windows_s: list[float], policy: str
) -> None:
    options = StreamOptions(policy=policy, load=UNHURRIED, window_s=6.0)
    session = transcriber.stream(options, temperatures=0.0)
    events = [*hear(session, monologue, 2.0), *session.finish()]
    check_committed_never_changes(events)
    assert max(windows_s) <= max_samples(transcriber.bundle.window) / SAMPLE_RATE
    assert np.mean(windows_s) < options.window_s + 2.0, "long windows are cut, not only at the limit"
    assert len(said(events)) == pytest.approx(173, rel=0.1)
    words = [word for event in finals(events) for word in event.words]
    assert len(words) == pytest.approx(173, rel=0.1)
    starts_s = [word.start_s for word in words]
    assert starts_s == sorted(starts_s)
    overlaps_s = [one.end_s - two.start_s for one, two in itertools.pairwise(words)]
    assert max(overlaps_s) <= 0.1, "words on both sides of a cut are measured in two windows"


def test_a_device_that_makes_no_partials_keeps_to_the_limit(
    transcriber: Transcriber, monologue: np.ndarray, windows_s: list[float]
) -> None:
    limit_s = max_samples(transcriber.bundle.window) / SAMPLE_RATE
    session = transcriber.stream(StreamOptions(partials=False), temperatures=0.0)
    events = [*hear(session, monologue[: round((limit_s + 4.0) * SAMPLE_RATE)], 1.0), *session.finish()]
    check_committed_never_changes(events)
    assert limit_s <= max(windows_s) <= limit_s + 0.05
    assert said(events)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "hope"}, "policy 'hope': expected local-agreement or attention-frontier"),
        ({"step_s": 0.0}, "expected above 0"),
        ({"load": 0.0}, "expected above 0"),
        ({"window_s": -1.0}, "expected above 0"),
        ({"utterance_end_s": 0.0}, "expected above 0"),
        ({"pause_s": -0.1}, "pause_s=-0.1"),
        ({"pause_s": 0.3, "sentence_end_s": 0.2}, "sentence_end_s=0.2"),
        ({"sentence_end_s": 0.9, "utterance_end_s": 0.5}, "utterance_end_s=0.5"),
        ({"sentence_confidence": 1.0}, "sentence_confidence=1.0: expected 0 or more, below 1"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        StreamOptions(**options)


@pytest.mark.parametrize(("probability", "wait_s"), [(0.9, 0.2), (0.3, 0.8)])
def test_an_improbable_full_stop_ends_nothing_yet(
    transcriber: Transcriber, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch, probability: float, wait_s: float
) -> None:
    monkeypatch.setattr(GrowingWindow, "last_probability", probability)
    monkeypatch.setattr("whisperfold.runtime.stream.ends_sentence", lambda text: True)
    session = transcriber.stream(StreamOptions(sentence_end_s=0.2, utterance_end_s=0.8, partials=False))
    samples = np.concatenate([jfk[: round(2.2 * SAMPLE_RATE)], np.zeros(2 * SAMPLE_RATE, np.float32)])
    events = ((session.time_s, event) for event in hear(session, samples, 0.05))
    waited_s = [time_s - event.end_s for time_s, event in events if event.kind == "final"]
    assert waited_s == [pytest.approx(wait_s, abs=0.1)]


def test_no_hypothesis_is_a_sample(transcriber: Transcriber, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a higher temperature says would be committed."""
    asked: list[tuple[float, ...]] = []

    def noted(engine: Any, mel: Any, options: DecodingOptions, audio_s: float) -> Any:
        asked.append(options.temperatures)
        return decode(engine, mel, options, audio_s)

    monkeypatch.setattr("whisperfold.runtime.growing.decode", noted)
    session = transcriber.stream(logprob_threshold=0.0)
    assert said([*hear(session, jfk[: 5 * SAMPLE_RATE], 0.25), *session.finish()])
    assert set(asked) == {(0.0,)}


def test_decoding_options_are_checked_when_a_stream_starts(transcriber: Transcriber) -> None:
    with pytest.raises(ConfigError, match="option 'langauge': unknown, the nearest is 'language'"):
        transcriber.stream(langauge="en")
    with pytest.raises(ConfigError, match="English-only"):
        transcriber.stream(language="de")


def test_the_frontier_needs_alignment_heads(transcriber: Transcriber, jfk: np.ndarray) -> None:
    bundle = replace(transcriber.bundle, manifest={**transcriber.bundle.manifest, "alignment_heads": []})
    without: Any = SimpleNamespace(engine=transcriber.engine, bundle=bundle)
    with pytest.raises(ConfigError, match="no alignment heads; use the policy local-agreement"):
        StreamingSession(without, StreamOptions(policy="attention-frontier"))
    session = StreamingSession(without)
    events = [*session.accept_chunk(jfk[: 5 * SAMPLE_RATE]), *session.finish()]
    assert finals(events) and not any(event.words for event in events), "text without times"


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.float32),
        np.zeros(160, np.float64),
        np.zeros(160, np.int16),
        np.zeros((160, 2), np.float32),
        np.full(160, np.nan, np.float32),
    ],
    ids=["empty", "float64", "int16", "stereo", "nan"],
)
def test_bad_samples_are_refused_and_the_stream_goes_on(transcriber: Transcriber, samples: np.ndarray) -> None:
    session = transcriber.stream()
    with pytest.raises(AudioError):
        session.accept_chunk(samples)
    session.accept_chunk(np.full(1600, 0.1, np.float32))
    assert session.time_s == pytest.approx(0.1) and session.level_dbfs == pytest.approx(-20.0, abs=0.01)


def test_silence_has_a_level(transcriber: Transcriber) -> None:
    session = transcriber.stream()
    session.accept_chunk(np.zeros(1600, np.float32))
    assert session.level_dbfs == -100.0 and not session.in_speech
