"""The whole flow on real speech and on everything that is no speech."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisperfold.runtime.audio import load_audio
from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.errors import AudioError, BundleError, ConfigError
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.windows import max_samples


def plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split())


JFK = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


def test_the_sample_clip(transcriber: Transcriber, jfk: np.ndarray) -> None:
    result = transcriber.transcribe(jfk)
    assert plain(result.text) == JFK
    assert result.duration_s == 11.0 and result.language == "en"
    (segment,) = result.segments
    assert segment.text == result.text and (segment.start_s, segment.end_s) == (0.0, 11.0)
    assert segment.avg_logprob > -0.6 and segment.no_speech_prob < 0.6 and segment.words == ()


def test_blocks_give_the_same_text(transcriber: Transcriber, jfk: np.ndarray) -> None:
    segments = list(transcriber.transcribe_blocks(np.array_split(jfk, 9)))
    assert [segment.text for segment in segments] == [transcriber.transcribe(jfk).text]


def test_a_session_gives_the_same_text(transcriber: Transcriber, jfk: np.ndarray) -> None:
    session = transcriber.session()
    for chunk in np.array_split(jfk, 23):
        session.accept_chunk(chunk)
    assert session.duration_s == 11.0
    result = session.finish()
    # words, not letters: int8 scales turn the last bit of an incremental mel into another comma
    assert plain(result.text) == plain(transcriber.transcribe(jfk).text) and result.duration_s == 11.0
    assert session.duration_s == 0.0 and session.finish().text == ""  # ready for the next utterance


def test_a_session_may_be_longer_than_a_window(transcriber: Transcriber, jfk: np.ndarray) -> None:
    session = transcriber.session()
    for _ in range(3):
        session.accept_chunk(jfk)
    assert plain(session.finish().text).count("country can do for you") == 3


def test_a_window_alone(transcriber: Transcriber, jfk: np.ndarray) -> None:
    result = transcriber.transcribe_window(jfk, DecodingOptions(temperatures=(0.0,)))
    assert plain(result.text) == JFK and len(result.token_logprobs) == len(result.tokens)


def test_threads_share_a_transcriber(transcriber: Transcriber, jfk: np.ndarray) -> None:
    with ThreadPoolExecutor(3) as pool:
        texts = list(pool.map(lambda _: transcriber.transcribe(jfk).text, range(3)))
    assert set(texts) == {transcriber.transcribe(jfk).text}


def test_long_audio_has_right_offsets(transcriber: Transcriber, jfk: np.ndarray) -> None:
    gap = np.zeros(16_000 * 6, np.float32)
    recording = np.concatenate([gap, jfk, gap, jfk])
    result = transcriber.transcribe(recording, word_timestamps=True)
    assert plain(result.text).count("country can do for you") == 2
    words = [word for segment in result.segments for word in segment.words]
    fellow = [word.start_s for word in words if "fellow" in word.text.lower()]
    assert np.abs(np.array(fellow) - [7.4, 24.4]).max() < 0.6
    assert all(a.start_s <= b.start_s for a, b in zip(words, words[1:], strict=False))
    assert result.text == " ".join(segment.text for segment in result.segments)


def test_three_hours_in_flat_memory(transcriber: Transcriber, jfk: np.ndarray) -> None:
    """180 blocks of a minute with little speech: nothing but the current window is held."""
    import resource

    def blocks() -> Iterator[np.ndarray]:
        silence = np.zeros(16_000 * 60, np.float32)
        speech = np.concatenate([jfk, silence[jfk.size :]])
        for minute in range(180):
            yield speech if minute % 60 == 0 else silence

    list(transcriber.transcribe_blocks([jfk, jfk]))  # warm up
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    segments = list(transcriber.transcribe_blocks(blocks(), vad=True))
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert [round(segment.start_s / 3600) for segment in segments] == [0, 1, 2]
    assert grown_kb < 60_000  # three hours are 691 MB


def noises(seconds: int = 60) -> dict[str, np.ndarray]:
    random, time_s = np.random.default_rng(0), np.arange(16_000 * seconds) / 16_000
    made: dict[str, Any] = {
        "zeros": np.zeros(time_s.size),
        "white": 0.1 * random.standard_normal(time_s.size),
        "hum": 0.3 * np.sin(2 * np.pi * 50 * time_s),
    }
    return {name: samples.astype(np.float32) for name, samples in made.items()}


@pytest.mark.parametrize("name", ["zeros", "white", "hum"])
@pytest.mark.parametrize("seconds", [2, 60])
def test_noise_gives_no_text(transcriber: Transcriber, name: str, seconds: int) -> None:
    result = transcriber.transcribe(noises(seconds)[name])
    assert result.text == "" and result.segments == () and result.duration_s == seconds


def test_recorded_noise_gives_no_text(transcriber: Transcriber, speech_dir: Path) -> None:
    for line in (speech_dir / "noise.jsonl").read_text().splitlines():
        samples = load_audio(speech_dir / json.loads(line)["audio"])
        assert transcriber.transcribe(samples).text == ""


@pytest.mark.parametrize("vad", [True, False])
@pytest.mark.parametrize("n_samples", [1, 100, 800, 5000])
def test_tiny_clips(transcriber: Transcriber, jfk: np.ndarray, n_samples: int, vad: bool) -> None:
    result = transcriber.transcribe(jfk[16_000 : 16_000 + n_samples], vad=vad)
    assert len(result.text.split()) <= 4
    if vad and n_samples <= 800:
        assert result.text == ""


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(16_000, np.int16), "dtype int16.*/ 32768"),
        (np.zeros((16_000, 2), np.float32), "expected mono"),
        (np.full(16_000, np.nan, np.float32), "16000 of 16000 are NaN"),
        (np.full(16_000, np.inf, np.float32), "NaN or infinite"),
    ],
)
def test_bad_samples(transcriber: Transcriber, samples: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        transcriber.transcribe(samples)
    with pytest.raises(AudioError, match=message):
        transcriber.transcribe_window(samples)
    with pytest.raises(AudioError, match=message):
        transcriber.session().accept_chunk(samples)
    if samples.size:
        with pytest.raises(AudioError, match=message):
            list(transcriber.transcribe_blocks([samples]))


def test_bad_options_are_refused_before_any_audio_is_read(transcriber: Transcriber) -> None:
    def never() -> Iterator[np.ndarray]:
        raise AssertionError("audio was read")
        yield

    with pytest.raises(ConfigError, match="'beamsize': unknown, the nearest is 'beam_size'"):
        transcriber.transcribe_blocks(never(), beamsize=2)
    with pytest.raises(ConfigError, match="language 'xx'"):
        transcriber.transcribe_blocks(never(), language="xx")


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle there"):
        Transcriber.open(tmp_path / "gone")


def test_prompt_and_beams(transcriber: Transcriber, jfk: np.ndarray) -> None:
    result = transcriber.transcribe(jfk, beam_size=3, prompt="The president said.")
    assert "ask what you can do for your country" in plain(result.text)


def test_real_speech(transcriber: Transcriber, speech_dir: Path) -> None:
    """A few development utterances: most words are right, in far less time than they last."""
    lines = (speech_dir / "librispeech-other-dev.jsonl").read_text().splitlines()[2:42:8]
    n_right = n_words = 0
    audio_s, started = 0.0, time.perf_counter()
    for line in lines:
        entry = json.loads(line)
        samples = load_audio(speech_dir / entry["audio"])
        assert samples.size <= max_samples(transcriber.bundle.window)
        said, heard = entry["text"].split(), plain(transcriber.transcribe(samples).text).split()
        n_right += sum(word in heard for word in said)
        n_words += len(said)
        audio_s += entry["duration_s"]
    assert n_right / n_words > 0.75
    assert time.perf_counter() - started < audio_s
