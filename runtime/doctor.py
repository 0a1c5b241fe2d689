"""Whether speech recognition works here: machine, sound, recogniser -> findings, each with what to do about it.

    for finding in examine(device=None, bundle=None): print(finding.state, finding.found, finding.advice)

Nothing that is heard is kept or recognised: of one second of the microphone only the level is looked at.
"""

import grp
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whisperfold.runtime.devices import InputDevice, find_device, list_devices, load_sounddevice
from whisperfold.runtime.errors import MicrophoneError, WhisperfoldError
from whisperfold.runtime.machine import Finding, examine_machine

SAMPLE = Path(__file__).resolve().parent / "samples" / "jfk.flac"
SAMPLE_WORDS = {"ask", "country", "fellow"}
"""Words of the sample that any bundle must find."""
SLOW_RTF = 0.5
"""Processing time per audio time above which live captions lag in noisy or fast speech."""


def examine(
    device: str | None = None, bundle: Path | None = None, threads: int = 0, microphone: bool = True
) -> Iterator[Finding]:
    """Look at everything, in the order in which faults should be mended.

    Args:
        device: the microphone that will be used; None is the default.
        bundle: its directory; None is the packaged one.
        threads: CPU threads; 0 as the runtime chooses.
        microphone: False leaves out sound, for a server that has no microphone of its own.
    """
    yield from examine_machine()
    if microphone:
        yield from examine_sound(device)
    yield from examine_recogniser(bundle, threads)


def examine_sound(wanted: str | None, dev: Path = Path("/dev")) -> Iterator[Finding]:
    """Look at PortAudio, permissions, devices, the sample rate and the level.

    Args:
        wanted: index, name or part of a name; None is the default.
        dev: where the devices are; tests have their own.
    """
    try:
        sounddevice = load_sounddevice()
    except MicrophoneError as error:
        yield Finding("portaudio", "broken", "not usable", str(error))
        return
    yield Finding("portaudio", "ok", str(sounddevice.get_portaudio_version()[1]))
    yield from _permissions(dev)
    try:
        devices = list_devices()
        device = find_device(wanted, devices)
    except MicrophoneError as error:
        advice = "plug in a microphone; if it is plugged in, look at `arecord -l` and `pactl list short sources`"
        yield Finding("devices", "broken", str(error), advice)
        return
    skipped = [each.name for each in devices if each.skipped]
    found = f"{len(devices)} can record, would use {device.index} {device.name!r}"
    if device.skipped:
        advice = "name the microphone with --device; `whisperfold devices` lists them"
        yield Finding("devices", "warning", f"{found} ({device.skipped})", advice)
    else:
        yield Finding("devices", "ok", found + (f"; skipped: {', '.join(skipped)}" if skipped else ""))
    yield _rate(sounddevice, device)
    yield _level(device)


def examine_recogniser(bundle: Path | None, threads: int) -> Iterator[Finding]:
    """Look at onnxruntime, the bundle, and recognise the packaged sample."""
    try:
        import onnxruntime
    except ImportError as error:
        yield Finding("onnxruntime", "broken", str(error), "run: pip install onnxruntime (64-bit Python needed)")
        return
    providers = ", ".join(onnxruntime.get_available_providers())
    yield Finding("onnxruntime", "ok", f"{onnxruntime.__version__}: {providers}")
    from whisperfold.runtime.bundle import Bundle
    from whisperfold.runtime.packaged import default_bundle

    path = bundle or default_bundle()
    try:
        opened = Bundle.open(path)
    except WhisperfoldError as error:
        yield Finding("bundle", "broken", str(error), "copy or build the bundle again; its files do not match")
        return
    found = f"{opened.name}, {opened.precision}, {opened.size_bytes / 1e6:.0f} MB, checksums match"
    yield Finding("bundle", "ok", found)
    yield _speed(path, threads)


def _permissions(dev: Path) -> Iterator[Finding]:
    """Whether the kernel has recording devices, and this user may open them."""
    captures = sorted((dev / "snd").glob("pcm*c"))
    if not captures:
        found = "no sound card in /dev/snd that records"
        yield Finding(
            "sound card", "warning", found, "only a sound server's sources (PulseAudio, PipeWire) can be used"
        )
        return
    closed = [path.name for path in captures if not os.access(path, os.R_OK | os.W_OK)]
    if not closed:
        yield Finding("sound card", "ok", f"{len(captures)} in /dev/snd, may be opened")
        return
    groups = _group_names()
    advice = "run: sudo usermod -aG audio $USER, then log in again (a systemd unit: SupplementaryGroups=audio)"
    if "audio" in groups:
        advice = "the user is in the group audio: look at the owner and mode of /dev/snd/* (udev)"
    yield Finding("sound card", "broken", f"no permission to open {', '.join(closed)}", advice)


def _group_names() -> set[str]:
    """Groups of this process."""
    names = set()
    for group in os.getgroups():
        try:
            names.add(grp.getgrgid(group).gr_name)
        except KeyError:
            pass
    return names


def _rate(sounddevice: Any, device: InputDevice) -> Finding:
    """Whether the device takes its own rate, and 16 kHz."""
    accepted = []
    for rate_hz in dict.fromkeys((device.native_rate_hz, 16000)):
        for channels in dict.fromkeys((1, min(2, device.channels))):
            try:
                sounddevice.check_input_settings(device=device.index, channels=channels, samplerate=rate_hz)
            except sounddevice.PortAudioError:
                continue
            accepted.append(rate_hz)
            break
    if device.native_rate_hz in accepted:
        note = "" if 16000 in accepted else ", not 16000 Hz: resampled"
        return Finding("sample rate", "ok", f"{device.name!r} records at {device.native_rate_hz} Hz{note}")
    advice = "another program may hold it (`fuser -v /dev/snd/*`), or it needs another --device"
    return Finding("sample rate", "broken", f"{device.name!r} refuses its own {device.native_rate_hz} Hz", advice)


def _level(device: InputDevice, seconds: float = 1.0) -> Finding:
    """Listen for a moment: audio arrives, and is neither silent nor cut off."""
    from whisperfold.runtime.audio import SAMPLE_RATE
    from whisperfold.runtime.level import LevelMeter
    from whisperfold.runtime.microphone import Microphone

    statuses: list[Any] = []
    meter = LevelMeter(silence_s=0.5 * seconds)
    n_samples, loudest_dbfs = 0, meter.dbfs
    try:
        with Microphone(device.index, on_status=statuses.append) as microphone:
            for chunk in microphone.chunks():
                if microphone.losses:
                    return Finding("level", "broken", f"{device.name!r} delivers no audio", "plug it in again")
                n_samples += chunk.size
                meter.push(chunk, chunk.size / SAMPLE_RATE)
                loudest_dbfs = max(loudest_dbfs, meter.dbfs)
                if n_samples >= seconds * SAMPLE_RATE:
                    break
    except MicrophoneError as error:
        return Finding("level", "broken", str(error), "stop the program that uses it, or choose another --device")
    found = f"{loudest_dbfs:.0f} dBFS in {n_samples / SAMPLE_RATE:.1f} s"
    if meter.problem:
        return Finding("level", "warning", found, meter.problem)
    return Finding("level", "ok", found)


def _speed(path: Path, threads: int) -> Finding:
    """Recognise the sample twice, measure the second time."""
    from whisperfold.runtime.audio import SAMPLE_RATE, load_audio
    from whisperfold.runtime.transcribe import Transcriber

    try:
        transcriber = Transcriber.open(path, threads=threads, check=False)
        samples = load_audio(SAMPLE)
        transcriber.transcribe(samples)
        started_s = time.perf_counter()
        text = transcriber.transcribe(samples).text
        rtf = (time.perf_counter() - started_s) / (samples.size / SAMPLE_RATE)
    except WhisperfoldError as error:
        return Finding("speed", "broken", str(error), "the bundle cannot be run; build it again")
    found = f"real-time factor {rtf:.2f} on the packaged sample"
    if not SAMPLE_WORDS & set(text.lower().replace(",", " ").split()):
        return Finding("speed", "broken", f"{found}, but its words are not recognised", "build the bundle again")
    if rtf > 1.0:
        return Finding("speed", "broken", found, "too slow for live audio: a smaller bundle, or a faster machine")
    if rtf > SLOW_RTF:
        return Finding("speed", "warning", found, "captions will lag at times: a smaller bundle, or more --threads")
    return Finding("speed", "ok", found)
