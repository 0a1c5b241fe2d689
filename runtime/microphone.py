"""A microphone -> 16 kHz mono float32 chunks, for as long as it is wanted.

    PortAudio callback (copies, nothing else) -> bounded queue -> level check -> mono -> soxr stream -> chunks()

The device is opened at its own rate (many USB microphones refuse 16 kHz) and resampled here. The callback never
computes or waits: when the queue is full, the block is dropped and counted. What has waited for a slow reader
comes as one long chunk.

A device that vanishes does not end chunks(): its stream is closed, silence at the speed of time takes its place
(so the clock of the stream runs on, and an utterance that was open ends like at any pause), and the device is
looked for by name, with back-off, until it is back.
"""

import logging
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import soxr

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.devices import (
    InputDevice,
    find_again,
    find_device,
    list_devices,
    load_sounddevice,
    quiet_stderr,
)
from whisperfold.runtime.errors import MicrophoneError
from whisperfold.runtime.level import LevelMeter

_LOG = logging.getLogger(__name__)
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 5.0
"""Back-off of looking for a lost device: doubles from the first to the last."""
StatusKind = Literal["listening", "lost", "back", "warning"]


@dataclass(frozen=True)
class MicrophoneStatus:
    """Something that a person who reads the captions should know."""

    kind: StatusKind
    message: str
    at_s: float
    """Seconds from the start of the stream."""

    def record(self) -> dict[str, Any]:
        """Return it as plain numbers and strings for JSON."""
        return {"type": "status", "status": self.kind, "message": self.message, "at_s": round(self.at_s, 3)}


class Microphone:
    """An open input stream; a context manager that yields 16 kHz chunks.

    Looking for a lost device restarts PortAudio, which closes every stream of the process: one Microphone at a time.

    Args:
        device: None, index, name or part of a name (see find_device).
        block_s: length of one chunk while the reader keeps up.
        queue_s: how much audio waits for a slow reader before blocks are dropped.
        starvation_s: no block at all for this long counts as vanished.
        start_s: more time for the first block: a sound server or a Bluetooth headset needs a while to begin.
        wait: a device that is not there at the start is waited for like a lost one; else it is an error.
        on_status: told when the device delivers sound, is lost, back, or cannot be understood; on the reader's thread.
        retry_s: first and last pause between two attempts to open a lost device.

    Attributes:
        device: the InputDevice in use, or lost; None as long as none was found.
        dropped: blocks that were lost, because the queue was full or PortAudio said that it overflowed.
        losses: how often the device vanished.
        level: LevelMeter of the device.
    """

    def __init__(
        self,
        device: str | int | None = None,
        block_s: float = 0.1,
        queue_s: float = 30.0,
        starvation_s: float = 2.0,
        start_s: float = 3.0,
        wait: bool = False,
        on_status: Callable[[MicrophoneStatus], None] | None = None,
        retry_s: tuple[float, float] = (FIRST_RETRY_S, LAST_RETRY_S),
    ) -> None:
        self._sounddevice = load_sounddevice()
        self._wanted, self._wait = device, wait
        self._block_s, self._retry_s = block_s, retry_s
        self._starvation_s, self._start_s = starvation_s, start_s
        self._on_status = on_status
        self.device = None if wait else find_device(device, list_devices())
        self.dropped = self.losses = 0
        self.level = LevelMeter()
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(maxsize=max(2, round(queue_s / block_s)))
        self._closing = False
        self._stream: Any = None
        self._resampler: Any = None
        self._n_samples = 0
        self._news: StatusKind = "listening"
        self._is_unheard = False
        self._last_block_s = self._covered_s = self._next_try_s = 0.0
        self._pause_s = retry_s[0]

    @property
    def is_lost(self) -> bool:
        """Whether there is no open device now."""
        return self._stream is None

    def __enter__(self) -> "Microphone":
        """Open the device at its native rate and start recording.

        Raises:
            MicrophoneError: it cannot be opened.
        """
        try:
            if self.device is None:
                self.device = find_device(self._wanted, list_devices())
            self._open(self.device)
        except MicrophoneError as error:
            if not self._wait:
                raise
            self._covered_s = time.monotonic()
            self._start_waiting(f"waiting for the microphone: {error}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop recording and close the device."""
        self.close()
        self._close_stream()

    def close(self) -> None:
        """Let chunks() end after what was already recorded; may be called by any thread."""
        self._closing = True
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass  # chunks() looks at _closing when the queue runs empty

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield float32 (n,) chunks at 16 kHz, all that waits at a time, until close(); silence while lost."""
        while True:
            blocks = self._take_blocks()
            if blocks:
                if self._is_unheard:
                    yield from self._begin(n_blocks=len(blocks))
                self._covered_s = self._last_block_s
                yield from self._counted(self._to_16k(blocks))
            elif self._closing:
                break
            elif self._has_vanished():
                self._lose()
            elif self.is_lost:
                self._look_for_device()
                yield from self._counted(self._silence(until_s=time.monotonic()))
        self._close_stream()
        if self._resampler is not None:
            yield from self._counted(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    def _open(self, device: InputDevice) -> None:
        """Open a device and start recording; mono first, some only open with the channels that they have."""
        rate = device.native_rate_hz
        refused: Exception | None = None
        for channels in dict.fromkeys((1, min(2, device.channels), device.channels)):
            stream = None
            try:
                stream = self._sounddevice.InputStream(
                    device=device.index,
                    channels=channels,
                    samplerate=rate,
                    blocksize=round(rate * self._block_s),
                    dtype="float32",
                    callback=self._on_block,
                )
                self._last_block_s = time.monotonic() + self._start_s
                self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
                stream.start()
            except self._sounddevice.PortAudioError as error:
                if stream is not None:
                    stream.close()
                refused = error
            else:
                self._stream, self.device, self._is_unheard = stream, device, True
                _LOG.info("microphone=%r rate_hz=%d channels=%d", device.name, rate, channels)
                return
        raise MicrophoneError(
            f"cannot open {device.name!r} at {rate} Hz: {refused}; is another program using it? "
            "`whisperfold devices` lists the others"
        ) from refused

    def _close_stream(self) -> None:
        """Close the PortAudio stream, if there is one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _on_block(self, indata: np.ndarray, frames: int, time_info: Any, status: Any) -> None:
        """Copy a block into the queue; runs on PortAudio's thread, so nothing else."""
        self._last_block_s = time.monotonic()
        if status and status.input_overflow:
            self.dropped += 1
        try:
            self._queue.put_nowait(indata.copy())
        except queue.Full:
            self.dropped += 1

    def _take_blocks(self) -> list[np.ndarray]:
        """Everything that waits; nothing after a while, or when the microphone was closed and all is read."""
        blocks: list[np.ndarray] = []
        try:
            block = self._queue.get(block=not self._closing, timeout=self._block_s)
            while block is not None:
                blocks.append(block)
                block = self._queue.get_nowait()
        except queue.Empty:
            pass
        return blocks

    def _to_16k(self, blocks: list[np.ndarray]) -> np.ndarray:
        """Blocks of (frames, channels) at the native rate -> float32 (n,) at 16 kHz."""
        assert self.device is not None, "blocks come from a device"
        recorded = np.concatenate(blocks)
        # A driver that hands out NaN must not poison the resampler's state for good.
        recorded = np.nan_to_num(recorded, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
        warning = self.level.push(recorded, len(recorded) / self.device.native_rate_hz)
        if warning:
            self._tell("warning", warning)
        mono = np.ascontiguousarray(recorded.mean(axis=1, dtype=np.float32))
        chunk: np.ndarray = self._resampler.resample_chunk(mono)
        return chunk

    def _has_vanished(self) -> bool:
        """Nothing came for starvation_s, or PortAudio has ended the stream."""
        if self.is_lost:
            return False
        return time.monotonic() - self._last_block_s > self._starvation_s or not self._stream.active

    def _lose(self) -> None:
        """Close what is left of a device that has vanished."""
        assert self.device is not None, "only an open device can vanish"
        self.losses += 1
        self._close_stream()
        self._start_waiting(f"{self.device.name!r} has vanished; waiting for it")

    def _start_waiting(self, message: str) -> None:
        """From here on there is silence, and a look for the device now and then."""
        self._news = "back"
        self._pause_s, self._next_try_s = self._retry_s[0], time.monotonic()
        self._tell("lost", message)

    def _look_for_device(self) -> None:
        """Open the lost device if it is there again and the pause since the last look is over."""
        if time.monotonic() < self._next_try_s:
            return
        try:
            with quiet_stderr():
                devices = list_devices(refresh=True)
                found = find_again(self.device, devices) if self.device else find_device(self._wanted, devices)
                if found is not None:
                    self._open(found)
        except MicrophoneError as error:
            _LOG.debug("microphone lost: %s", error)
        if self.is_lost:
            self._next_try_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, self._retry_s[1])
        else:
            self.level = LevelMeter()

    def _begin(self, n_blocks: int) -> Iterator[np.ndarray]:
        """Sound arrives: say so, after silence for the time in which it did not."""
        assert self.device is not None, "blocks come from a device"
        if self._news == "back":
            yield from self._counted(self._silence(until_s=time.monotonic() - n_blocks * self._block_s))
        self._is_unheard = False
        self._tell(self._news, f"listening to {self.device.name!r}")

    def _silence(self, until_s: float) -> np.ndarray:
        """Zeros at 16 kHz for the time since the last of them, or since the device's last block."""
        n_samples = max(0, int((until_s - self._covered_s) * SAMPLE_RATE))
        self._covered_s += n_samples / SAMPLE_RATE
        return np.zeros(n_samples, np.float32)

    def _counted(self, chunk: np.ndarray) -> Iterator[np.ndarray]:
        """The chunk, unless it is empty; its samples move the clock of the stream."""
        if chunk.size:
            self._n_samples += chunk.size
            yield chunk

    def _tell(self, kind: StatusKind, message: str) -> None:
        """Report a status, to the log if to nobody else."""
        if self._on_status is None:
            _LOG.log(logging.INFO if kind == "listening" else logging.WARNING, "microphone: %s", message)
        else:
            self._on_status(MicrophoneStatus(kind, message, self._n_samples / SAMPLE_RATE))
