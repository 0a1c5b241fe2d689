"""A multipart request -> its fields, and its file on disk; the limits hold while it arrives.

body --chunks--> fields (dict) + spooled temporary file (1 MB in memory, then disk) --blocks--> float32 16 kHz
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import soundfile as sf
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from whisperfold.runtime.audio import SAMPLE_RATE, stream_audio
from whisperfold.runtime.errors import AudioError
from whisperfold.runtime.http_errors import RequestError
from whisperfold.runtime.server_config import ServerConfig

_MAX_FIELDS = 40
_MAX_FIELD_BYTES = 64 * 1024
_MAX_CHANNELS = 32
_MAX_RATE_HZ = 384_000
_BLOCK_S = 5.0
"""Read at once: 5 s of the widest file that is accepted are 250 MB, of an ordinary one 1 MB."""
_UNREADABLE = {
    (0, b"\x1a\x45\xdf\xa3"): "WebM or Matroska (what a browser's MediaRecorder makes)",
    (4, b"ftyp"): "MP4 or M4A",
    (0, b"\x30\x26\xb2\x75"): "WMA",
    (0, b"#!AMR"): "AMR",
}
"""(offset, first bytes) of what people upload and libsndfile does not read."""


@dataclass(frozen=True)
class Upload:
    """A recording that has arrived."""

    fields: FormData
    file: IO[bytes]
    filename: str

    def close(self) -> None:
        """Remove the temporary file."""
        self.file.close()

    def text(self, name: str, default: str = "") -> str:
        """A text field; a file in its place is an error."""
        value = self.fields.get(name, default)
        if not isinstance(value, str):
            raise RequestError(400, "field", f"{name} is a file, expected text", name)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A repeated field, with or without [] after its name."""
        values = [*self.fields.getlist(name), *self.fields.getlist(f"{name}[]")]
        return tuple(value for value in values if isinstance(value, str))


async def receive_upload(request: Request, config: ServerConfig) -> Upload:
    """Take in a multipart form with a file.

    Raises:
        RequestError: 400 no such form, 408 it stopped coming, 413 too large, 415 another kind of body.
        ClientDisconnect: the client is gone.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError(415, "content_type", "expected multipart/form-data with a field named file")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length) > config.max_upload_bytes:
        raise _too_large(config)
    parser = MultiPartParser(
        request.headers,
        _limited(request, config),
        max_files=1,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        fields = await parser.parse()
    except MultiPartException as error:
        raise RequestError(400, "form", f"not a usable form: {error.message}") from None
    upload = fields.get("file")
    if not isinstance(upload, UploadFile):
        await fields.close()
        raise RequestError(400, "file", "no file in the form; send the recording as a field named file", "file")
    return Upload(fields, upload.file, upload.filename or "file")


def audio_blocks(upload: Upload, config: ServerConfig) -> Iterator[np.ndarray]:
    """Yield the recording as float32 (n,) at 16 kHz; closes the upload at the end. For a worker thread.

    Raises:
        AudioError: libsndfile cannot read it.
        RequestError: 413 longer than the limit, 415 a format that libsndfile does not know.
    """
    try:
        _check_format(upload)
        n_samples, limit = 0, round(config.max_duration_s * SAMPLE_RATE)
        for block in stream_audio(_Named(upload.file), block_s=_BLOCK_S):  # type: ignore[arg-type]
            n_samples += block.size
            if n_samples > limit:
                raise RequestError(413, "duration", f"longer than {config.max_duration_s:g} s; cut it", "file")
            yield block
    finally:
        upload.close()


def _check_format(upload: Upload) -> None:
    """Look at the head of the file before all of it is decoded."""
    head = upload.file.read(16)
    upload.file.seek(0)
    for (offset, mark), kind in _UNREADABLE.items():
        if head[offset:].startswith(mark):
            raise RequestError(
                415,
                "format",
                f"{kind} is not readable here; send WAV, FLAC, Ogg, Opus or MP3, "
                "e.g. made by `ffmpeg -i IN -ac 1 -ar 16000 OUT.flac`",
                "file",
            )
    try:
        with sf.SoundFile(_Named(upload.file)) as header:
            channels, rate_hz = header.channels, header.samplerate
    except (sf.LibsndfileError, RuntimeError, OSError, TypeError):
        channels, rate_hz = 1, SAMPLE_RATE  # stream_audio says what is wrong with it
    if channels > _MAX_CHANNELS or rate_hz > _MAX_RATE_HZ:
        raise AudioError(
            f"audio: {channels} channels at {rate_hz} Hz, expected at most {_MAX_CHANNELS} at {_MAX_RATE_HZ}"
        )
    upload.file.seek(0)


class _Named:
    """A temporary file under the name that errors should show; what libsndfile needs of a file."""

    name = "audio"

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def __repr__(self) -> str:
        """As libsndfile's messages show it."""
        return self.name

    def seekable(self) -> bool:
        """A temporary file always is."""
        return True


async def _limited(request: Request, config: ServerConfig) -> AsyncGenerator[bytes, None]:
    """The body, as long as it keeps coming and is not too large."""
    n_bytes = 0
    chunks = request.stream()
    while True:
        try:
            async with asyncio.timeout(config.idle_timeout_s):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise RequestError(408, "slow", f"nothing came for {config.idle_timeout_s:g} s") from None
        if chunk is None:
            return
        n_bytes += len(chunk)
        if n_bytes > config.max_upload_bytes:
            raise _too_large(config)
        yield chunk


def _too_large(config: ServerConfig) -> RequestError:
    """What a large upload gets."""
    limit_mb = config.max_upload_bytes / 2**20
    return RequestError(
        413, "size", f"the upload is larger than {limit_mb:.4g} MB; send FLAC or Opus, or cut it", "file"
    )


__all__ = ["ClientDisconnect", "Upload", "audio_blocks", "receive_upload"]
