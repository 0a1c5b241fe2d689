import builtins
import sys
import types

import pytest

from whisperfold.runtime import devices
from whisperfold.runtime.devices import InputDevice, find_again, find_device, list_devices
from whisperfold.runtime.errors import MicrophoneError


class FakePortAudioError(Exception):
    pass


@pytest.fixture
def sounddevice(monkeypatch):
    """A sounddevice without hardware: a loudspeaker, a built-in stereo input, a 48 kHz USB microphone."""
    fake = types.ModuleType("sounddevice")
    fake.PortAudioError = FakePortAudioError
    fake.default = types.SimpleNamespace(device=(2, 0))
    fake.query_hostapis = lambda: ({"name": "ALSA"},)
    names = [("Speaker", 0, 44100.0), ("HDA Intel: Analog (hw:0,0)", 2, 44100.0), ("USB Mic (hw:1,0)", 1, 48000.0)]
    fake.query_devices = lambda: [
        {"name": name, "max_input_channels": channels, "default_samplerate": rate, "hostapi": 0}
        for name, channels, rate in names
    ]
    fake.looks = []
    fake._terminate = lambda: fake.looks.append("terminate")
    fake._initialize = lambda: fake.looks.append("initialize")
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def device(index, name, channels=1, host_api="ALSA", is_default=False):
    return InputDevice(index, name, channels, 48000, host_api, is_default)


def test_list_has_only_what_can_record(sounddevice):
    found = list_devices()
    assert [each.index for each in found] == [1, 2]
    assert found[1] == InputDevice(2, "USB Mic (hw:1,0)", 1, 48000, "ALSA", True)
    assert sounddevice.looks == []


def test_a_new_look_restarts_portaudio_even_after_a_failed_start(sounddevice):
    list_devices(refresh=True)
    assert sounddevice.looks == ["terminate", "initialize"]

    def fail():
        raise FakePortAudioError("PortAudio not initialized")

    sounddevice._terminate = fail
    assert len(list_devices(refresh=True)) == 2


@pytest.mark.parametrize(
    ("wanted", "index"),
    [(None, 2), (1, 1), ("1", 1), ("USB Mic (hw:1,0)", 2), ("USB Mic", 2), ("usb", 2), ("analog", 1)],
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


@pytest.mark.parametrize(
    ("name", "channels", "reason"),
    [
        ("surround51", 2, "ALSA plugin"),
        ("lavrate", 128, "ALSA plugin"),
        ("dmix", 2, "ALSA plugin"),
        ("iec958:CARD=PCH", 2, "ALSA plugin"),
        ("sysdefault", 128, "128 channels"),
        ("Monitor of Built-in Audio", 2, "loudspeaker"),
        ("default", 32, ""),
        ("pulse", 32, ""),
        ("Dante Card (hw:2,0)", 128, ""),
        ("USB Mic (hw:1,0)", 1, ""),
    ],
)
def test_what_is_not_a_microphone_is_skipped(name, channels, reason):
    skipped = device(0, name, channels).skipped
    assert reason in skipped and bool(skipped) == bool(reason)


def test_a_skipped_device_is_taken_only_when_named_or_alone():
    plugin, usb = device(0, "sysdefault", 128, is_default=True), device(1, "USB Mic: sysdefault (hw:1,0)")
    assert find_device(None, [plugin, usb]) is usb
    assert find_device("sysdef", [plugin, usb]) is usb
    assert find_device("sysdefault", [plugin, usb]) is plugin
    assert find_device(0, [plugin, usb]) is plugin
    assert find_device(None, [plugin]) is plugin


def test_a_default_wins_over_hardware_and_hardware_over_the_rest():
    default, card, other = device(0, "default", is_default=True), device(1, "USB (hw:1,0)"), device(2, "pulse")
    assert find_device(None, [other, card, default]) is default
    assert find_device(None, [other, card]) is card


def test_a_lost_device_is_found_under_its_new_card_number():
    lost = device(4, "USB Mic (hw:1,0)")
    back, twin = device(2, "USB Mic (hw:3,0)"), device(1, "USB Mic (hw:1,0)")
    assert find_again(lost, [device(0, "default"), back]) is back
    assert find_again(lost, [back, twin]) is twin
    assert find_again(lost, [device(4, "default")]) is None


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
        devices.list_devices()
