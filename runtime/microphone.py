"""A microphone -> 16 kHz mono float32 chunks.

    PortAudio callback (copies, nothing else) -> bounded queue -> soxr stream -> chunks()

The device is opened at its own rate (many USB microphones refuse 16 kHz) and resampled here. The callback
never computes or waits: when the reader is too slow and the queue is full, the block is dropped and counted.
A device that stops delivering (unplugged) is an error after ``starvation_s``, not a silent hang.

sounddevice is imported when a microphone is asked for, not before: the rest works without PortAudio.
"""

import logging
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.errors import MicrophoneError

_LOG = logging.getLogger(__name__)


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


def list_devices() -> list[InputDevice]:
    """Return every device with at least one input channel.

    Raises:
        MicrophoneError: PortAudio is missing or cannot list devices.
    """
    sounddevice = _load_sounddevice()
    try:
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
        wanted: None for the default device; an index; a full name; or a part of a name, in any case.
        devices: what list_devices() gave.

    Raises:
        MicrophoneError: there is no such device, or more than one has that part in its name.
    """
    if not devices:
        raise MicrophoneError("no device that can record; plug in a microphone, or use --input FILE")
    if wanted is None:
        return next((device for device in devices if device.is_default), devices[0])
    choices = ", ".join(f"{device.index} {device.name!r}" for device in devices)
    text = str(wanted).strip()
    if text.isascii() and text.isdigit():
        matches = [device for device in devices if device.index == int(text)]
    else:
        matches = [device for device in devices if device.name == text]
        if not matches and text:
            matches = [device for device in devices if text.casefold() in device.name.casefold()]
    if not matches:
        raise MicrophoneError(f"no input device {text!r}; there are: {choices}")
    if len({device.name for device in matches}) > 1:
        found = ", ".join(f"{device.index} {device.name!r}" for device in matches)
        raise MicrophoneError(f"{text!r} fits several devices: {found}; give more of the name, or the index")
    return matches[0]


class Microphone:
    """An open input stream; a context manager that yields 16 kHz chunks.

    Args:
        device: None, index, name or part of a name (see find_device).
        block_s: length of one chunk.
        queue_s: how much audio waits for a slow reader before blocks are dropped.
        starvation_s: silence of the device (no block at all) that counts as unplugged.

    Attributes:
        device: the InputDevice in use.
        dropped: blocks that were lost, because the queue was full or PortAudio said that it overflowed.
    """

    def __init__(
        self,
        device: str | int | None = None,
        block_s: float = 0.1,
        queue_s: float = 30.0,
        starvation_s: float = 3.0,
    ) -> None:
        self._sounddevice = _load_sounddevice()
        self.device = find_device(device, list_devices())
        self.dropped = 0
        self._block_s = block_s
        self._starvation_s = starvation_s
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(maxsize=max(2, round(queue_s / block_s)))
        self._closing = False
        self._stream: Any = None

    def __enter__(self) -> "Microphone":
        """Open the device at its native rate and start recording."""
        rate = self.device.native_rate_hz
        refused: Exception | None = None
        # Mono first; devices without a mixing layer below them only open with the channels they have.
        for channels in dict.fromkeys((1, min(2, self.device.channels), self.device.channels)):
            try:
                self._stream = self._sounddevice.InputStream(
                    device=self.device.index,
                    channels=channels,
                    samplerate=rate,
                    blocksize=round(rate * self._block_s),
                    dtype="float32",
                    callback=self._on_block,
                )
                self._stream.start()
            except self._sounddevice.PortAudioError as error:
                self._close_stream()
                refused = error
            else:
                _LOG.info("microphone=%r rate_hz=%d channels=%d", self.device.name, rate, channels)
                return self
        raise MicrophoneError(
            f"cannot open {self.device.name!r} at {rate} Hz: {refused}; is another program using it? "
            "`whisperfold devices` lists the others"
        ) from refused

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop recording and close the device."""
        self.close()

    def close(self) -> None:
        """Stop recording; chunks() ends after what was already recorded."""
        self._closing = True
        self._close_stream()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass  # chunks() looks at _closing when the queue runs empty

    def _close_stream(self) -> None:
        """Close the PortAudio stream, if there is one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _on_block(self, indata: np.ndarray, frames: int, time: Any, status: Any) -> None:
        """Copy a block into the queue; runs on PortAudio's thread, so nothing else."""
        if status and status.input_overflow:
            self.dropped += 1
        try:
            self._queue.put_nowait(indata.copy())
        except queue.Full:
            self.dropped += 1

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield float32 (n,) chunks at 16 kHz, about block_s each, until close().

        Raises:
            MicrophoneError: the device has delivered nothing for starvation_s.
        """
        import soxr

        resampler = soxr.ResampleStream(self.device.native_rate_hz, SAMPLE_RATE, 1, dtype="float32")
        while True:
            block = self._next_block()
            if block is None:
                break
            mono = block.mean(axis=1, dtype=np.float32) if block.ndim == 2 else block
            # A driver that hands out NaN must not poison the resampler's state for good.
            mono = np.nan_to_num(mono, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
            chunk = resampler.resample_chunk(np.ascontiguousarray(mono, dtype=np.float32))
            if len(chunk):
                yield chunk
        tail = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        if len(tail):
            yield tail

    def _next_block(self) -> np.ndarray | None:
        """Return the next block, or None when the microphone was closed and everything is read."""
        if self._closing and self._queue.empty():
            return None
        try:
            return self._queue.get(timeout=self._starvation_s)
        except queue.Empty:
            if self._closing:
                return None
            raise MicrophoneError(
                f"{self.device.name!r} has delivered no audio for {self._starvation_s:g} s; unplugged? "
                "`whisperfold devices` lists what is there now"
            ) from None


def _load_sounddevice() -> Any:
    """Import sounddevice, or say what is missing."""
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
