"""Chunks of a microphone, or of a file that stands in for one -> events of a live stream.

    chunks (microphone, or a file at the speed of its sound) -> until(stop) -> saved(file) -> listen() -> StreamEvent

The same path for both. Time comes from a Clock, so that tests play a minute of audio without waiting for it.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile as sf

from whisperfold.runtime.audio import SAMPLE_RATE, stream_audio
from whisperfold.runtime.errors import ConfigError

if TYPE_CHECKING:
    from whisperfold.runtime.stream import StreamingSession
    from whisperfold.runtime.stream_event import StreamEvent
    from whisperfold.runtime.stream_options import StreamOptions
    from whisperfold.runtime.transcribe import Transcriber

CHUNK_S = 0.1
"""Length of a chunk; a microphone delivers ten a second."""


@dataclass(frozen=True)
class Clock:
    """Where time comes from."""

    now: Callable[[], float] = time.monotonic
    """Seconds since any fixed moment."""
    sleep: Callable[[float], None] = time.sleep
    """Wait for a number of seconds."""


def listen(
    transcriber: "Transcriber",
    chunks: Iterable[np.ndarray],
    options: dict[str, Any] | None = None,
    streaming: "StreamOptions | None" = None,
    on_chunk: "Callable[[StreamingSession, float], None] | None" = None,
) -> Iterator["StreamEvent"]:
    """Turn chunks into events, each as soon as it is known; the open utterance becomes final at the end.

    Args:
        transcriber: the weights.
        chunks: float32 (n,) at 16 kHz, in order; a slow reader is best given all that waits as one chunk.
        options: fields of DecodingOptions.
        streaming: thresholds of streaming; None is the defaults.
        on_chunk: told after each chunk, with the session (level, in_speech) and the seconds heard so far.

    Raises:
        ConfigError: unknown or impossible option (before the first chunk is read).
    """
    session = transcriber.stream(streaming, **(options or {}))
    n_samples = 0
    for chunk in chunks:
        events = session.accept_chunk(chunk)
        n_samples += chunk.size
        if on_chunk is not None:
            on_chunk(session, n_samples / SAMPLE_RATE)
        yield from events
    yield from session.finish()


def file_chunks(
    path: str | PathLike[str], real_time: bool = True, chunk_s: float = CHUNK_S, clock: Clock | None = None
) -> Iterator[np.ndarray]:
    """Play a file as a microphone would deliver it.

    Args:
        path: anything libsndfile reads.
        real_time: hand out a chunk only when its last sample would have been spoken; a reader that is late gets
            all that was spoken meanwhile.
        chunk_s: length of a chunk.
        clock: where time comes from; None is the real one.

    Yields:
        float32 (n,) chunks at 16 kHz.

    Raises:
        AudioError: the file is missing, empty, damaged or no audio.
    """
    if not real_time:
        yield from stream_audio(path, block_s=chunk_s)
        return
    clock = clock or Clock()
    spoken_s = clock.now()
    waiting: list[np.ndarray] = []
    for chunk in stream_audio(path, block_s=chunk_s):
        spoken_s += chunk.size / SAMPLE_RATE
        if waiting and spoken_s > clock.now():
            yield np.concatenate(waiting)
            waiting = []
        if not waiting and spoken_s > clock.now():
            clock.sleep(spoken_s - clock.now())
        waiting.append(chunk)
    yield np.concatenate(waiting)


def until(stop: Event, chunks: Iterable[np.ndarray], close: Callable[[], None] | None = None) -> Iterator[np.ndarray]:
    """Pass chunks on until somebody stops.

    Args:
        stop: set by Ctrl-C.
        chunks: the source.
        close: ends the source, which then hands out what it still holds; None just stops reading it.
    """
    for chunk in chunks:
        yield chunk
        if stop.is_set():
            if close is None:
                return
            close()


def saved(chunks: Iterable[np.ndarray], path: Path) -> Iterator[np.ndarray]:
    """Pass chunks on and write them to an audio file that only its owner may read.

    Args:
        chunks: float32 (n,) at 16 kHz.
        path: .flac or .wav, 16 bit; must not exist.

    Raises:
        ConfigError: the file exists, has another ending, or cannot be written.
    """
    if path.suffix.lower() not in (".flac", ".wav"):
        raise ConfigError(f"{path}: cannot save audio as {path.suffix or 'a file without ending'}; use .flac or .wav")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists, and recordings are not overwritten; choose another name") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another place") from error
    return _save(chunks, descriptor, path)


def _save(chunks: Iterable[np.ndarray], descriptor: int, path: Path) -> Iterator[np.ndarray]:
    """Write to an open file while passing on."""
    kind = path.suffix.lower().removeprefix(".").upper()
    with sf.SoundFile(descriptor, "w", SAMPLE_RATE, 1, "PCM_16", format=kind, closefd=True) as file:
        for chunk in chunks:
            file.write(chunk)
            yield chunk
