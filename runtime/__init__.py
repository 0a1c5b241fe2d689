"""Device side: numpy and onnxruntime, never torch.

    from whisperfold.runtime import Transcriber, load_audio
    print(Transcriber.open().transcribe(load_audio("clip.wav")).text)

Names are imported when they are first used, so that `import whisperfold.runtime` costs nothing.

Nothing leaves the device: onnxruntime 1.32 reports to its maker from Linux too, unless this variable is set before it
is imported (`disable_telemetry_events()` comes too late; docs/decisions/0006).
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whisperfold.runtime.audio import SAMPLE_RATE, load_audio, stream_audio
    from whisperfold.runtime.bundle import Bundle, write_bundle
    from whisperfold.runtime.decoding import DecodingResult
    from whisperfold.runtime.decoding_options import DecodingOptions
    from whisperfold.runtime.errors import (
        AudioError,
        BundleError,
        CompileError,
        ConfigError,
        MicrophoneError,
        SourceError,
        WhisperfoldError,
    )
    from whisperfold.runtime.mel import MelStream, log_mel
    from whisperfold.runtime.packaged import default_bundle, packaged_bundles
    from whisperfold.runtime.stream import StreamingSession
    from whisperfold.runtime.stream_event import StreamEvent
    from whisperfold.runtime.stream_options import StreamOptions
    from whisperfold.runtime.transcribe import Session, Transcriber
    from whisperfold.runtime.transcript import Segment, Transcription, Word

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    "audio": ("SAMPLE_RATE", "load_audio", "stream_audio"),
    "bundle": ("Bundle", "write_bundle"),
    "decoding": ("DecodingResult",),
    "decoding_options": ("DecodingOptions",),
    "errors": (
        "AudioError",
        "BundleError",
        "CompileError",
        "ConfigError",
        "MicrophoneError",
        "SourceError",
        "WhisperfoldError",
    ),
    "mel": ("MelStream", "log_mel"),
    "packaged": ("default_bundle", "packaged_bundles"),
    "stream": ("StreamingSession",),
    "stream_event": ("StreamEvent",),
    "stream_options": ("StreamOptions",),
    "transcribe": ("Session", "Transcriber"),
    "transcript": ("Segment", "Transcription", "Word"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "SAMPLE_RATE",
    "AudioError",
    "Bundle",
    "BundleError",
    "CompileError",
    "ConfigError",
    "DecodingOptions",
    "DecodingResult",
    "MelStream",
    "MicrophoneError",
    "Segment",
    "Session",
    "SourceError",
    "StreamEvent",
    "StreamOptions",
    "StreamingSession",
    "Transcriber",
    "Transcription",
    "WhisperfoldError",
    "Word",
    "default_bundle",
    "load_audio",
    "log_mel",
    "packaged_bundles",
    "stream_audio",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module at first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)
