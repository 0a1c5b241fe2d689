import builtins
import sys
import types

import numpy as np
import pytest

from whisperfold.runtime import microphone
from whisperfold.runtime.errors import MicrophoneError
from whisperfold.runtime.microphone import InputDevice, Microphone, find_device, list_devices


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
        FakeStream.opened.append(self)

    def start(self):
        for block, overflowed in FakeStream.feed:
            status = types.SimpleNamespace(input_overflow=overflowed)
            self.options["callback"](block, len(block), None, status)

    def close(self):
        self.is_closed = True


@pytest.fixture
def sounddevice(monkeypatch):
    """A sounddevice without hardware: a built-in stereo input, a 48 kHz USB microphone, a loudspeaker."""
    fake = types.ModuleType("sounddevice")
    fake.PortAudioError = FakePortAudioError
    fake.InputStream = FakeStream
    fake.default = types.SimpleNamespace(device=(2, 0))
    fake.query_hostapis = lambda: ({"name": "ALSA"},)
    names = [
        ("Speaker", 0, 44100.0),
        ("HDA Intel: Analog (hw:0,0)", 2, 44100.0),
        ("USB Mic (hw:1,0)", 1, 48000.0),
    ]
    fake.query_devices = lambda: [
        {"name": name, "max_input_channels": channels, "default_samplerate": rate, "hostapi": 0}
        for name, channels, rate in names
    ]
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(FakeStream, "feed", [])
    monkeypatch.setattr(FakeStream, "opened", [])
    monkeypatch.setattr(FakeStream, "refuse_channels", ())
    return fake


def tone(rate_hz: int, seconds: float, channels: int = 1) -> np.ndarray:
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    return np.repeat(np.sin(2 * np.pi * 440 * time_s)[:, None], channels, axis=1).astype(np.float32)


def test_list_has_only_what_can_record(sounddevice):
    devices = list_devices()
    assert [device.index for device in devices] == [1, 2]
    assert devices[1] == InputDevice(2, "USB Mic (hw:1,0)", 1, 48000, "ALSA", True)


@pytest.mark.parametrize(
    ("wanted", "index"),
    [(None, 2), (1, 1), ("1", 1), ("USB Mic (hw:1,0)", 2), ("usb", 2), ("analog", 1)],
)
def test_a_device_is_found_by_index_name_or_part(sounddevice, wanted, index):
    assert find_device(wanted, list_devices()).index == index


def test_unknown_device_lists_the_known_ones(sounddevice):
    with pytest.raises(MicrophoneError, match=r"no input device 'webcam'; there are: 1 'HDA.*2 'USB Mic"):
        find_device("webcam", list_devices())
    with pytest.raises(MicrophoneError, match="no input device '0'"):
        find_device("0", list_devices())


def test_a_part_of_two_names_is_refused(sounddevice):
    with pytest.raises(MicrophoneError, match="'hw:' fits several devices"):
        find_device("hw:", list_devices())


def test_without_any_device():
    with pytest.raises(MicrophoneError, match="plug in a microphone"):
        find_device(None, [])


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


def test_a_vanished_device_is_an_error_not_a_hang(sounddevice):
    with Microphone("USB", starvation_s=0.01) as mic, pytest.raises(MicrophoneError, match="unplugged"):
        next(mic.chunks())


def test_portaudio_that_fails_to_list(sounddevice):
    def fail():
        raise FakePortAudioError("no host api")

    sounddevice.query_devices = fail
    with pytest.raises(MicrophoneError, match="cannot list the audio devices: no host api"):
        list_devices()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError("PortAudio library not found"), "apt-get install libportaudio2"),
        (ImportError("x"), "pip install"),
    ],
)
def test_what_is_missing_is_said(monkeypatch, error, advice):
    real_import = builtins.__import__

    def no_sounddevice(name, *args, **kwargs):
        if name == "sounddevice":
            raise error
        return real_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_sounddevice)
    with pytest.raises(MicrophoneError, match=advice):
        microphone.list_devices()
