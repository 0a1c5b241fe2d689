"""What PortAudio can record from -> the device that the user means.

    list_devices() -> [InputDevice] -> find_device("usb") -> InputDevice

PortAudio shows every ALSA plugin beside the real microphones ("surround51", "lavrate", "dmix" with 128 channels)
and the monitors of loudspeakers. Those are taken only when they are asked for by name; ``skipped`` says why.

sounddevice is imported when a device is asked for, not before: the rest works without PortAudio.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from whisperfold.runtime.errors import MicrophoneError

PLUGINS = frozenset("dmix iec958 spdif hdmi null lavrate samplerate speexrate speex upmix vdownmix a52".split())
"""ALSA PCM names that are converters or outputs, not microphones."""
MAX_CHANNELS = 64
"""As many and more channels are an ALSA plugin's "any number", unless the device is hardware (hw:card,device)."""
_HARDWARE = re.compile(r"\s*\(hw:\d+,\d+\)\s*$")


@dataclass(frozen=True)
class InputDevice:
    """One device that can record."""

    index: int
    """PortAudio's number; changes when devices are plugged in or out."""
    name: str
    channels: int
    """Most input channels that the device offers."""
    native_rate_hz: int
    host_api: str
    is_default: bool

    @property
    def is_hardware(self) -> bool:
        """A sound card itself, without a mixing or converting layer."""
        return bool(_HARDWARE.search(self.name))

    @property
    def card(self) -> str:
        """The name without ALSA's card number, which changes when a USB microphone is plugged in again."""
        return _HARDWARE.sub("", self.name)

    @property
    def skipped(self) -> str:
        """Why this device is not taken unless it is asked for; empty for a microphone."""
        first = re.split(r"[\s:(]", self.name.strip().casefold(), maxsplit=1)[0]
        if self.host_api == "ALSA" and (first in PLUGINS or first.startswith("surround")):
            return "ALSA plugin, not a microphone"
        if self.channels >= MAX_CHANNELS and not self.is_hardware:
            return f"ALSA plugin: reports {self.channels} channels"
        if "monitor of " in self.name.casefold() or self.name.endswith(".monitor"):
            return "records what the loudspeaker plays"
        return ""


def list_devices(refresh: bool = False) -> list[InputDevice]:
    """Return every device with at least one input channel.

    Args:
        refresh: look again. PortAudio remembers the devices that were there at its start; looking again ends and
            starts it, which closes every open stream of this process.

    Raises:
        MicrophoneError: PortAudio is missing or cannot list devices.
    """
    sounddevice = load_sounddevice()
    try:
        if refresh:
            with suppress(sounddevice.PortAudioError):  # the last start may have failed
                sounddevice._terminate()
            sounddevice._initialize()
        apis = sounddevice.query_hostapis()
        entries = list(sounddevice.query_devices())
        default = sounddevice.default.device
    except sounddevice.PortAudioError as error:
        raise MicrophoneError(f"PortAudio cannot list the audio devices: {error}") from error
    default_index = int(default[0]) if default is not None else -1
    return [
        InputDevice(
            index=index,
            name=str(entry["name"]),
            channels=int(entry["max_input_channels"]),
            native_rate_hz=int(round(float(entry["default_samplerate"]))),
            host_api=str(apis[entry["hostapi"]]["name"]),
            is_default=index == default_index,
        )
        for index, entry in enumerate(entries)
        if int(entry["max_input_channels"]) > 0
    ]


def find_device(wanted: str | int | None, devices: list[InputDevice]) -> InputDevice:
    """Return the device that the user means.

    Args:
        wanted: None for the best one; an index; a full name; or a part of a name, in any case. A part that fits
            microphones and skipped devices means the microphone.
        devices: what list_devices() gave.

    Raises:
        MicrophoneError: there is no such device, or more than one has that part in its name.
    """
    if not devices:
        raise MicrophoneError(
            "no device that can record; plug in a microphone (`whisperfold doctor` says what is missing), "
            "or use --input FILE"
        )
    if wanted is None:
        return _best(devices)
    text = str(wanted).strip()
    if text.isascii() and text.isdigit():
        matches = [device for device in devices if device.index == int(text)]
    else:
        matches = [device for device in devices if text in (device.name, device.card)]
        if not matches and text:
            matches = [device for device in devices if text.casefold() in device.name.casefold()]
            matches = [device for device in matches if not device.skipped] or matches
    if not matches:
        raise MicrophoneError(f"no input device {text!r}; there are: {_choices(devices)}")
    if len({device.name for device in matches}) > 1:
        raise MicrophoneError(
            f"{text!r} fits several devices: {_choices(matches)}; give more of the name, or the index"
        )
    return matches[0]


def find_again(lost: InputDevice, devices: list[InputDevice]) -> InputDevice | None:
    """Return the device that was lost, when it is back: its name, or its card's name under a new number."""
    same_name = [device for device in devices if device.name == lost.name]
    same_card = [device for device in devices if device.card == lost.card]
    return next(iter(same_name or same_card), None)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep ALSA and PortAudio from writing pages to stderr about a device that is not there.

    They write to the descriptor itself, as sounddevice's own start does; what other threads write meanwhile is
    lost, too, so this is for the moments in which a device is looked for.
    """
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def load_sounddevice() -> Any:
    """Import sounddevice, or say what is missing.

    Raises:
        MicrophoneError: the Python package, or the PortAudio library below it, is not installed.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise MicrophoneError(
            "the microphone needs the Python package sounddevice; run: pip install sounddevice"
        ) from error
    except OSError as error:
        raise MicrophoneError(
            f"the microphone needs the PortAudio library ({error}); run: sudo apt-get install libportaudio2"
        ) from error
    return sounddevice


def _best(devices: list[InputDevice]) -> InputDevice:
    """The system's default, else a sound card, else any microphone; a skipped one only if nothing else is there."""
    return min(devices, key=lambda device: (bool(device.skipped), not device.is_default, not device.is_hardware))


def _choices(devices: list[InputDevice]) -> str:
    """Index and name of each."""
    return ", ".join(f"{device.index} {device.name!r}" for device in devices)
