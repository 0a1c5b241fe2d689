"""What a bundle's manifest.json says: its format, and the sections that every reader needs, typed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from whisperfold.runtime.errors import BundleError

FORMAT = 2
"""Version of the manifest that this runtime writes; it reads 1 to FORMAT."""
MANIFEST = "manifest.json"

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Dims:
    """Model dimensions, Whisper's names."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int


@dataclass(frozen=True)
class Tokens:
    """Ids of the special tokens, and the tokens that are never produced."""

    sot: int
    eot: int
    transcribe: int
    translate: int
    sot_prev: int
    sot_lm: int
    no_speech: int
    no_timestamps: int
    timestamp_begin: int
    multilingual: bool
    languages: dict[str, int] = field(default_factory=dict)
    suppress: tuple[int, ...] = ()
    suppress_begin: tuple[int, ...] = ()


@dataclass(frozen=True)
class Window:
    """How audio is shown to the encoder."""

    kind: str = "short"
    """"short": the audio and a tail; "full": padded to 30 s as the original."""
    tail_s: float = 0.5
    """Zeros after the audio, seconds."""
    min_s: float = 1.0
    """Shortest window with its tail, seconds."""
    max_s: float = 20.0
    """Longest stretch of audio in one window, seconds."""


def section(path: Path, manifest: dict[str, Any], name: str, kind: type[_Part]) -> _Part:
    """Return one section of a manifest as its dataclass; unknown keys are for newer readers.

    Args:
        path: the bundle's directory.
        manifest: what `read_manifest` returned.
        name: "dims", "tokens" or "window".
        kind: its dataclass.

    Raises:
        BundleError: no such section, or a value is missing.
    """
    found = manifest.get(name)
    if not isinstance(found, dict):
        raise BundleError(f'{path / MANIFEST}: no "{name}" section; rebuild with `whisperfold compile`')
    known = {key.name for key in fields(kind)}  # type: ignore[arg-type]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    try:
        return kind(**{key: value for key, value in values.items() if key in known})
    except TypeError as error:
        raise BundleError(f"{path / MANIFEST}: {name}: {error}; rebuild with `whisperfold compile`") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the contents of manifest.json, of a format that this runtime knows.

    Raises:
        BundleError: missing, damaged or of a newer format.
    """
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path}: missing; expected a bundle made by `whisperfold compile`") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: damaged ({error}); copy or compile the bundle again") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{path}: {type(manifest).__name__}, expected a JSON object; compile the bundle again")
    version = manifest.get("format")
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"{path}: format {version!r}, this runtime reads 1-{FORMAT}; compile the bundle again")
    if version > FORMAT:
        raise BundleError(
            f"{path}: format {version}, this runtime reads 1-{FORMAT}; upgrade whisperfold or recompile it"
        )
    return manifest
