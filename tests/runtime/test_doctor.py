import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import typer

from whisperfold.runtime import devices, doctor, doctor_command, microphone
from whisperfold.runtime.devices import InputDevice
from whisperfold.runtime.errors import MicrophoneError
from whisperfold.runtime.level import LevelMeter
from whisperfold.runtime.machine import Finding

USB = InputDevice(3, "USB Mic (hw:1,0)", 1, 48000, "ALSA", True)
PLUGIN = InputDevice(7, "lavrate", 128, 44100, "ALSA", False)


class FakePortAudioError(Exception):
    pass


class FakeMicrophone:
    """A second of noise at `level_dbfs`, with `losses`."""

    level_dbfs, losses, dropped = -40.0, 0, 0

    def __init__(self, device, on_status=None):
        assert device == USB.index
        self.level = LevelMeter()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def chunks(self):
        for _ in range(100):
            noise = np.random.default_rng(0).uniform(-1.0, 1.0, 1600).astype(np.float32)
            chunk = np.float32(10 ** (self.level_dbfs / 20) * 3**0.5) * noise
            self.level.push(chunk, 0.1)
            yield chunk


@pytest.fixture
def sound(monkeypatch, tmp_path):
    """A machine with a USB microphone; tests break it."""
    fake = SimpleNamespace(
        PortAudioError=FakePortAudioError,
        refused=set(),
        get_portaudio_version=lambda: (1246720, "PortAudio V19.6.0"),
        devices=[USB, PLUGIN],
        dev=tmp_path / "dev",
    )

    def check_input_settings(device, channels, samplerate):
        if samplerate in fake.refused:
            raise FakePortAudioError("Invalid sample rate")

    fake.check_input_settings = check_input_settings
    (fake.dev / "snd").mkdir(parents=True)
    (fake.dev / "snd" / "pcmC1D0c").touch()
    monkeypatch.setattr(doctor, "load_sounddevice", lambda: fake)
    for module in (doctor, devices):
        monkeypatch.setattr(module, "list_devices", lambda: fake.devices)
    monkeypatch.setattr(microphone, "Microphone", FakeMicrophone)
    monkeypatch.setattr(FakeMicrophone, "level_dbfs", -40.0)
    monkeypatch.setattr(FakeMicrophone, "losses", 0)
    return fake


def examine(sound, wanted=None):
    return {finding.check: finding for finding in doctor.examine_sound(wanted, sound.dev)}


def test_sound_that_works(sound):
    found = examine(sound)
    assert {finding.state for finding in found.values()} == {"ok"}
    assert "would use 3 'USB Mic (hw:1,0)'; skipped: lavrate" in found["devices"].found
    assert found["level"].found == "-40 dBFS in 1.0 s"


def test_without_portaudio(sound, monkeypatch):
    def missing():
        raise MicrophoneError("the microphone needs the PortAudio library; run: sudo apt-get install libportaudio2")

    monkeypatch.setattr(doctor, "load_sounddevice", missing)
    found = examine(sound)
    assert list(found) == ["portaudio"]
    assert found["portaudio"].state == "broken" and "apt-get install libportaudio2" in found["portaudio"].advice


def test_without_a_device(sound):
    sound.devices = []
    found = examine(sound)["devices"]
    assert found.state == "broken" and "arecord -l" in found.advice


def test_only_an_odd_device(sound, monkeypatch):
    sound.devices = [PLUGIN]
    monkeypatch.setattr(FakeMicrophone, "__init__", lambda self, device, on_status=None: None)
    monkeypatch.setattr(FakeMicrophone, "chunks", lambda self: iter([np.ones(16000, np.float32) * 0.1]))
    found = examine(sound)["devices"]
    assert found.state == "warning" and "--device" in found.advice


def test_a_device_that_this_user_may_not_open(sound, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    monkeypatch.setattr(doctor, "_group_names", lambda: {"users"})
    found = examine(sound)["sound card"]
    assert found.state == "broken" and "pcmC1D0c" in found.found and "usermod -aG audio" in found.advice
    monkeypatch.setattr(doctor, "_group_names", lambda: {"audio"})
    assert "udev" in examine(sound)["sound card"].advice


def test_only_a_sound_server(sound):
    (sound.dev / "snd" / "pcmC1D0c").unlink()
    found = examine(sound)
    assert found["sound card"].state == "warning" and found["level"].state == "ok"


def test_rates(sound):
    sound.refused = {16000}
    assert "not 16000 Hz: resampled" in examine(sound)["sample rate"].found
    sound.refused = {16000, 48000}
    assert examine(sound)["sample rate"].state == "broken"


@pytest.mark.parametrize(("dbfs", "advice"), [(-200.0, "zeros"), (-75.0, "gain"), (10.0, "clips")])
def test_levels(sound, monkeypatch, dbfs, advice):
    monkeypatch.setattr(FakeMicrophone, "level_dbfs", dbfs)
    if dbfs == -200.0:
        monkeypatch.setattr(FakeMicrophone, "chunks", lambda self: iter([np.zeros(1600, np.float32)] * 10))
    finding = examine(sound)["level"]
    assert finding.state == "warning" and advice in finding.advice


def test_a_device_that_opens_but_delivers_nothing(sound, monkeypatch):
    monkeypatch.setattr(FakeMicrophone, "losses", 1)
    assert examine(sound)["level"].state == "broken"


def test_the_packaged_bundle_works(bundle_path):
    found = {finding.check: finding for finding in doctor.examine_recogniser(bundle_path, threads=2)}
    assert list(found) == ["onnxruntime", "bundle", "speed"]
    assert found["bundle"].state == "ok" and "checksums match" in found["bundle"].found
    assert "real-time factor" in found["speed"].found and "not recognised" not in found["speed"].found


def test_a_damaged_bundle(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    *_, last = doctor.examine_recogniser(tmp_path, threads=1)
    assert (last.check, last.state) == ("bundle", "broken")


def test_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (finding,) = doctor.examine_recogniser(None, threads=1)
    assert finding.state == "broken" and "pip install onnxruntime" in finding.advice


def command(function, *arguments):
    """Run a command; returns its exit code."""
    app = typer.Typer()
    app.command()(function)
    try:
        return app(list(arguments), standalone_mode=False) or 0
    except typer.Exit as error:
        return error.exit_code


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("broken", 1)])
def test_the_exit_code_is_1_only_when_something_is_broken(monkeypatch, capsys, state, code):
    finding = Finding("cpu", state, "found this", "do that")
    asked = []
    monkeypatch.setattr(doctor, "examine", lambda *args, **options: asked.append(options) or [finding])
    assert command(doctor_command.doctor, "--no-microphone") == code
    out = capsys.readouterr().out
    assert "cpu: found this" in out and "-> do that" in out and state in out.lower()
    assert command(doctor_command.doctor, "--json") == code
    assert json.loads(capsys.readouterr().out) == [finding.record()]
    assert asked == [{"microphone": False}, {"microphone": True}]


def test_devices_marks_what_would_be_used_and_says_why_not(sound, capsys):
    assert command(doctor_command.devices) == 0
    assert capsys.readouterr().out.splitlines() == [
        "*  3  USB Mic (hw:1,0)  (ALSA, 1 channels, 48000 Hz)",
        "   7  lavrate  (ALSA, 128 channels, 44100 Hz)  skipped: ALSA plugin, not a microphone",
    ]
    assert command(doctor_command.devices, "--json") == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["would_use"] for record in records] == [True, False]
    assert records[0]["native_rate_hz"] == 48000


def test_devices_without_any(sound, capsys):
    sound.devices = []
    assert command(doctor_command.devices) == 0
    assert "whisperfold doctor" in capsys.readouterr().err


def test_the_meter_outside_a_terminal_is_a_line_per_second(sound, capsys):
    assert command(doctor_command.devices, "--meter", "--seconds", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("dbfs=-39.9 peak=0.017")
    assert command(doctor_command.devices, "--meter", "--seconds", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["dbfs"] == -39.9
