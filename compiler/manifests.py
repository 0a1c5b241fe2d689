"""Which audio, said by whom, with which words: a JSON-lines manifest or a directory -> list[Item].

One line of a manifest; only ``audio`` is required, and it is relative to the manifest's own directory:

    {"audio": "clips/a.flac", "duration_s": 7.3, "speaker": "anna", "text": "the words"}

``text``: a string is the transcript, ``""`` says that the clip holds no speech, ``null`` or no key that
nobody has written it down. A directory is read as one item per audio file, the text in a ``.txt`` beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whisperfold.runtime.audio import load_audio
from whisperfold.runtime.errors import CompileError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf"})
_KEYS = {"audio": (str,), "duration_s": (int, float, type(None)), "speaker": (str, type(None)),
         "text": (str, type(None))}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One clip; `text` is None where the transcript is unknown and "" where there is no speech."""

    audio: Path
    text: str | None = None
    speaker: str | None = None
    duration_s: float | None = None

    @property
    def name(self) -> str:
        """File name without its suffix, for tables and messages."""
        return self.audio.stem

    @property
    def is_noise(self) -> bool:
        """True for a clip that must give no text."""
        return self.text is not None and not self.text.strip()

    def load(self) -> np.ndarray:
        """Return float32 (n_samples,), mono, 16 kHz."""
        return load_audio(self.audio)


def read_items(path: str | Path) -> list[Item]:
    """Read a manifest file or a directory of audio.

    Args:
        path: JSON-lines file, or a directory that is searched recursively.

    Returns:
        Items in file order (manifest) or in path order (directory); never empty.

    Raises:
        CompileError: nothing there, a malformed line, a missing audio file; messages start with file:line.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if not path.is_file():
        raise CompileError(f"{path}: no such file or directory; expected a JSON-lines manifest or a folder of audio")
    return _read_manifest(path)


def _read_manifest(path: Path) -> list[Item]:
    """Parse one JSON object per non-empty line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        hint = " (this is an audio file: pass its folder)" if path.suffix.lower() in AUDIO_SUFFIXES else ""
        raise CompileError(f"{path}: not UTF-8 text at byte {error.start}, expected JSON lines{hint}") from error
    items = [_parse_line(line, f"{path}:{i}", path.parent) for i, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise CompileError(f'{path}: no items; expected one JSON object per line with at least {{"audio": FILE}}')
    return items


def _parse_line(line: str, where: str, folder: Path) -> Item:
    """Turn one line into an Item; `where` is file:line."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise CompileError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); expected one object per line"
        ) from error
    if not isinstance(entry, dict):
        raise CompileError(f'{where}: found a {type(entry).__name__}, expected an object like {{"audio": FILE}}')
    if not entry.get("audio"):
        raise CompileError(f'{where}: no "audio", expected a path relative to {folder}')
    for key, types in _KEYS.items():
        value: Any = entry.get(key)
        if key in entry and (not isinstance(value, types) or isinstance(value, bool)):
            expected = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise CompileError(f'{where}: "{key}" is {value!r}, expected {expected}')
    duration_s = entry.get("duration_s")
    if duration_s is not None and not 0 < duration_s < float("inf"):
        raise CompileError(f'{where}: "duration_s" is {duration_s}, expected seconds above 0')
    audio = folder / entry["audio"]
    if not audio.is_file():
        raise CompileError(f"{where}: audio {audio} is missing; paths are relative to the manifest")
    return Item(audio, entry.get("text"), entry.get("speaker"), None if duration_s is None else float(duration_s))


def _read_directory(folder: Path) -> list[Item]:
    """One item per audio file; an empty .txt beside it marks a clip without speech."""
    items = []
    for audio in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in AUDIO_SUFFIXES):
        transcript = audio.with_suffix(".txt")
        text = None
        if transcript.is_file():
            try:
                text = " ".join(transcript.read_text(encoding="utf-8-sig").split())
            except UnicodeDecodeError as error:
                raise CompileError(f"{transcript}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
        items.append(Item(audio, text))
    if not items:
        known = " ".join(sorted(AUDIO_SUFFIXES))
        raise CompileError(f"{folder}: no audio in this folder; expected files ending in {known}")
    return items
