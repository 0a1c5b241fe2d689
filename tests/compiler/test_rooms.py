"""Rooms and microphones: speech stays in time and as loud, and sounds otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from whisperfold.compiler.rooms import Rooms, place
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import ConfigError

NOWHERE = Rooms(room_share=0.0, channel_share=0.0)
ROOM = Rooms(room_share=1.0, decay_s=(0.4, 0.4), echo_db=(0.0, 0.0), channel_share=0.0)
CHANNEL = Rooms(room_share=0.0, channel_share=1.0)


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def test_a_click_comes_at_once_and_then_dies_away() -> None:
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[1600] = 0.5
    heard = place(click, ROOM, np.random.default_rng(0))
    assert np.abs(heard).argmax() == 1600
    assert np.abs(heard[:1600]).max() < 1e-5
    early, late = rms(heard[1700:3200]), rms(heard[6400:7900])
    assert early > 30 * late > 0, "0.3 s later the echoes are 45 dB down"
    assert rms(heard[9000:]) < 1e-5, "the room is silent after its 0.4 s"


def test_a_microphone_colours_within_its_range() -> None:
    noise = 0.1 * np.random.default_rng(1).standard_normal(4 * SAMPLE_RATE).astype(np.float32)
    heard = place(noise, CHANNEL, np.random.default_rng(2))
    gains = 20 * np.log10(np.abs(np.fft.rfft(heard)) / np.abs(np.fft.rfft(noise)))
    assert 2.0 < np.ptp(gains) <= 2 * CHANNEL.channel_db + 0.1


@pytest.mark.parametrize("rooms", [ROOM, CHANNEL, Rooms(1.0, channel_share=1.0)])
def test_speech_keeps_its_length_and_level(jfk: np.ndarray, rooms: Rooms) -> None:
    quiet = 0.3 * jfk
    heard = place(quiet, rooms, np.random.default_rng(3))
    assert heard.shape == jfk.shape
    assert heard.dtype == np.float32
    assert rms(heard) == pytest.approx(rms(quiet), rel=1e-3)
    assert np.corrcoef(heard, quiet)[0, 1] < 0.995


def test_loud_speech_does_not_clip_and_silence_stays(jfk: np.ndarray) -> None:
    loud = jfk / np.abs(jfk).max()
    assert np.abs(place(loud, Rooms(1.0, channel_share=1.0), np.random.default_rng(4))).max() <= 1.0
    assert not place(np.zeros(1600, np.float32), Rooms(1.0, channel_share=1.0), np.random.default_rng(5)).any()
    assert place(np.zeros(0, np.float32), ROOM, np.random.default_rng(6)).size == 0


def test_nothing_is_changed_where_nothing_is_asked_for(jfk: np.ndarray) -> None:
    assert np.allclose(place(jfk, NOWHERE, np.random.default_rng(7)), jfk, atol=1e-6)


def test_impossible_rooms_are_refused() -> None:
    for wrong in ({"room_share": 1.5}, {"channel_share": -0.1}, {"decay_s": (0.0, 0.3)}, {"decay_s": (0.5, 0.2)}):
        with pytest.raises(ConfigError, match=f"rooms.{next(iter(wrong))}.*: expected"):
            Rooms(**wrong)
