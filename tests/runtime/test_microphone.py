import itertools
import sys
import time
import types

import numpy as np
import pytest

from whisperfold.runtime.errors import MicrophoneError
from whisperfold.runtime.microphone import Microphone

DEVICES = [
    ("Speaker", 0, 44100.0),
    ("HDA Intel: Analog (hw:0,0)", 2, 44100.0),
    ("USB Mic (hw:1,0)", 1, 48000.0),
]


class FakePortAudioError(Exception):
    pass


class FakeStream:
    """Delivers the blocks of `feed` on start(), as PortAudio's thread would."""

    feed: list = []
    opened: list = []
    refuse_channels: tuple = ()

    def __init__(self, **options):
        if options["channels"] in self.refuse_channels:
            raise FakePortAudioError("Invalid number of channels")
        self.options = options
        self.is_closed = False
        self.active = True
        FakeStream.opened.append(self)

    def start(self):
        for block, overflowed in FakeStream.feed:
            status = types.SimpleNamespace(input_overflow=overflowed)
            self.options["callback"](block, len(block), None, status)

    def close(self):
        self.is_closed = True


@pytest.fixture
def sounddevice(monkeypatch):
    """A sounddevice without hardware; `tables` are the devices of the following looks (_initialize)."""
    fake = types.ModuleType("sounddevice")
    fake.PortAudioError = FakePortAudioError
    fake.InputStream = FakeStream
    fake.default = types.SimpleNamespace(device=(2, 0))
    fake.query_hostapis = lambda: ({"name": "ALSA"},)
    fake.table, fake.tables, fake.looks_at_s = DEVICES, iter(()), []
    fake.query_devices = lambda: [
        {"name": name, "max_input_channels": channels, "default_samplerate": rate, "hostapi": 0}
        for name, channels, rate in fake.table
    ]

    def initialize():
        assert all(stream.is_closed for stream in FakeStream.opened), "PortAudio ends with open streams"
        fake.looks_at_s.append(time.monotonic())
        fake.table = next(fake.tables, fake.table)

    fake._terminate, fake._initialize = lambda: None, initialize
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(FakeStream, "feed", [])
    monkeypatch.setattr(FakeStream, "opened", [])
    monkeypatch.setattr(FakeStream, "refuse_channels", ())
    return fake


def tone(rate_hz: int, seconds: float, channels: int = 1) -> np.ndarray:
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    return np.repeat(np.sin(2 * np.pi * 440 * time_s)[:, None], channels, axis=1).astype(np.float32)


def test_blocks_are_resampled_from_the_native_rate(sounddevice):
    recorded = tone(48000, 1.0)
    FakeStream.feed = [(block, False) for block in np.split(recorded, 10)]
    with Microphone("USB") as mic:
        mic.close()
        samples = np.concatenate(list(mic.chunks()))
    options = FakeStream.opened[0].options
    assert (options["samplerate"], options["channels"], options["blocksize"]) == (48000, 1, 4800)
    assert samples.dtype == np.float32
    assert len(samples) == 16000
    expected = tone(16000, 1.0)[:, 0]
    assert np.abs(samples[200:-200] - expected[200:-200]).max() < 0.01
    assert mic.dropped == 0
    assert FakeStream.opened[0].is_closed


def test_what_waits_for_a_slow_reader_comes_as_one_chunk(sounddevice):
    FakeStream.feed = [(block, False) for block in np.split(tone(48000, 1.0), 10)]
    with Microphone("USB") as mic:
        assert len(next(mic.chunks())) > 15000


def test_a_device_that_refuses_mono_is_opened_with_its_channels_and_averaged(sounddevice):
    FakeStream.refuse_channels = (1,)
    FakeStream.feed = [(tone(44100, 0.1, channels=2) * np.float32([1, 0]), False)]
    with Microphone(1) as mic:
        mic.close()
        samples = np.concatenate(list(mic.chunks()))
    assert FakeStream.opened[0].options["channels"] == 2
    assert 0.45 < samples.max() < 0.55


def test_a_device_that_cannot_be_opened(sounddevice):
    FakeStream.refuse_channels = (1, 2)
    with pytest.raises(MicrophoneError, match="cannot open 'USB Mic.*48000 Hz.*Invalid number of channels"):
        Microphone("USB").__enter__()


def test_an_unknown_device_is_an_error_before_anything_is_opened(sounddevice):
    with pytest.raises(MicrophoneError, match="no input device 'webcam'"):
        Microphone("webcam")


def test_overflows_are_counted_whoever_lost_the_block(sounddevice):
    block = tone(48000, 0.1)
    FakeStream.feed = [(block, False), (block, True)] + [(block, False)] * 3
    with Microphone("USB", block_s=0.1, queue_s=0.3) as mic:  # room for 3 blocks
        mic.close()
        samples = np.concatenate(list(mic.chunks()))
    assert mic.dropped == 1 + 2
    assert len(samples) == 3 * 1600


def test_the_callback_copies_because_portaudio_reuses_its_buffer(sounddevice):
    block = tone(48000, 0.1)
    FakeStream.feed = [(block, False)]
    with Microphone("USB") as mic:
        block[:] = 0
        mic.close()
        assert np.abs(np.concatenate(list(mic.chunks()))).max() > 0.9


def test_nan_of_a_driver_does_not_poison_what_follows(sounddevice):
    bad = tone(48000, 0.1)
    bad[7] = np.nan
    FakeStream.feed = [(bad, False), (tone(48000, 0.1), False)]
    with Microphone("USB") as mic:
        mic.close()
        assert np.isfinite(np.concatenate(list(mic.chunks()))).all()


def test_a_muted_microphone_is_reported_once(sounddevice):
    FakeStream.feed = [(np.zeros((48000, 1), np.float32), False)] * 6
    statuses: list = []
    with Microphone("USB", on_status=statuses.append) as mic:
        mic.close()
        list(mic.chunks())
    assert [status.kind for status in statuses] == ["listening", "warning"]
    assert "only zeros" in statuses[1].message


def quick(device, statuses, **options) -> Microphone:
    """A microphone that is impatient."""
    return Microphone(
        device,
        block_s=0.01,
        starvation_s=0.05,
        start_s=0.0,
        retry_s=(0.01, 0.04),
        on_status=statuses.append,
        **options,
    )


def test_a_vanished_device_is_silence_until_it_is_back_under_another_number(sounddevice):
    without = DEVICES[:2]
    sounddevice.tables = iter([without, without, [*without, ("Webcam", 1, 16000.0), ("USB Mic (hw:5,0)", 1, 48000.0)]])
    FakeStream.feed = [(tone(48000, 0.1), False)]
    statuses, heard = [], []
    with quick("USB", statuses) as mic:
        started_s = time.monotonic() - 0.1
        for chunk in mic.chunks():
            heard.append(chunk)
            if mic.losses and not mic.is_lost and np.abs(chunk).max() > 0.5:
                break
        elapsed_s = time.monotonic() - started_s
    assert [status.kind for status in statuses] == ["listening", "lost", "back"]
    assert statuses[0].at_s <= statuses[1].at_s <= statuses[2].at_s
    assert mic.losses == 1 and mic.device.index == 3
    silent = [chunk for chunk in heard if not np.abs(chunk).any()]
    assert len(silent) >= 2, "silence comes while the device is away, not afterwards"
    n_samples = sum(chunk.size for chunk in heard)
    assert n_samples / 16000 == pytest.approx(elapsed_s, abs=0.15), "the clock of the stream keeps to time"
    assert all(stream.is_closed for stream in FakeStream.opened)


def test_the_pause_between_two_looks_grows_to_its_limit(sounddevice):
    sounddevice.tables = itertools.repeat(DEVICES[:1])
    statuses: list = []
    with quick("USB", statuses) as mic:
        for _ in mic.chunks():
            if len(sounddevice.looks_at_s) == 6:
                break
    pauses = np.diff(sounddevice.looks_at_s)
    assert pauses[0] < 0.035 and pauses[-1] >= 0.04
    assert [status.kind for status in statuses] == ["lost"], "said once; it never delivered"


def test_a_stream_that_portaudio_ends_is_lost_at_once(sounddevice):
    FakeStream.feed = [(tone(48000, 0.01), False)]
    with Microphone("USB", block_s=0.01, on_status=(statuses := []).append) as mic:
        FakeStream.opened[0].active = False
        chunks = mic.chunks()
        next(chunks), next(chunks)  # the block, and the silence since then
    assert [status.kind for status in statuses][:2] == ["listening", "lost"]


def test_a_device_that_is_not_there_yet_is_waited_for(sounddevice):
    sounddevice.table = DEVICES[:1]
    sounddevice.tables = iter([DEVICES[:1], DEVICES])
    FakeStream.feed = [(tone(48000, 0.1), False)]
    statuses: list = []
    with quick("USB", statuses, wait=True) as mic:
        assert mic.is_lost and mic.device is None
        assert any(np.abs(chunk).max() > 0.5 for chunk in mic.chunks())
    assert [status.kind for status in statuses] == ["lost", "back"]
    assert statuses[1].record() == {
        "type": "status",
        "status": "back",
        "message": "listening to 'USB Mic (hw:1,0)'",
        "at_s": pytest.approx(0.0, abs=1.0),
    }


def test_closing_ends_a_lost_microphone(sounddevice):
    sounddevice.tables = itertools.repeat(DEVICES[:1])
    statuses: list = []
    with quick("USB", statuses) as mic:
        for chunk in mic.chunks():
            assert not chunk.any()
            mic.close()
