"""The recordings of a person: kept as FLAC with their texts, read back, imported from elsewhere.

    recordings/manifest.jsonl    {"file", "text", "duration_s", "kind", "digest"} per line
    recordings/0001.flac ...     16 kHz, mono, 16 bit

Either may be sealed (encryption.py).

kind: "read" (a prompt), "import" (came with a transcript), "self" (the model's own text, where it was sure).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile as sf

from whisperfold.runtime.audio import SAMPLE_RATE, load_audio
from whisperfold.runtime.encryption import PlainFiles
from whisperfold.runtime.errors import AudioError, EnrollmentError
from whisperfold.runtime.files import private_dir, refusal_as

if TYPE_CHECKING:
    from whisperfold.runtime.transcribe import Transcriber

AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff")
PROMPTS = Path(__file__).parent / "prompts"
CONFIDENT_LOGPROB = -0.25
"""Mean log probability per token above which the model's own text is learned from."""
SELF_MIN_WORDS = 3
SELF = "self"
"""The kind of such a recording."""


@dataclass(frozen=True)
class Recording:
    """One kept recording."""

    file: str
    text: str
    duration_s: float
    kind: str
    digest: str
    """Of the samples: the same recording twice is one."""


@dataclass(frozen=True)
class Candidate:
    """A recording that comes from elsewhere."""

    name: str
    samples: np.ndarray
    """float32 (n,), mono, 16 kHz."""
    text: str | None
    """None: nobody has written it down."""
    kind: str = "import"


class RecordingStore:
    """The recordings folder of one person; `files` reads and writes what is in it, sealed or not."""

    def __init__(self, folder: Path, files: PlainFiles | None = None) -> None:
        self.folder = folder
        self._files = files or PlainFiles()

    def all(self) -> list[Recording]:
        """Return what is kept, in order.

        Raises:
            EnrollmentError: the manifest is damaged, or cannot be read.
            ProfileError: it is sealed.
        """
        path = self.folder / "manifest.jsonl"
        if not self._files.find(path).exists():
            return []
        try:
            with refusal_as(EnrollmentError, path):
                lines = self._files.read(path).decode().split("\n")
            return [Recording(**json.loads(line)) for line in lines if line]
        except (ValueError, TypeError) as error:
            raise EnrollmentError(f"{path}: damaged ({error}); record again, or mend it by hand") from error

    def load(self, recording: Recording) -> np.ndarray:
        """Return float32 (n,) at 16 kHz.

        Raises:
            EnrollmentError: the file is gone.
            AudioError: it is damaged.
            ProfileError: it is sealed.
        """
        path = self.folder / recording.file
        try:
            return load_audio(io.BytesIO(self._files.read(path)))
        except OSError as error:
            raise EnrollmentError(f"{path}: {error.strerror}; remove its line from the manifest") from error
        except AudioError as error:
            raise AudioError(f"{path}: {error}") from error

    def add(self, samples: np.ndarray, text: str, kind: str = "read") -> Recording | None:
        """Keep a recording; None if the same samples are there already, whatever their text.

        Args:
            samples: float32 (n,), mono, 16 kHz.
            text: what is said.
            kind: see the module.

        Raises:
            EnrollmentError: the disk refuses.
        """
        pcm = np.round(np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2")
        digest, kept = hashlib.sha256(pcm.tobytes()).hexdigest()[:32], self.all()
        if any(item.digest == digest for item in kept):
            return None
        number = 1 + max((int(Path(item.file).stem) for item in kept), default=0)
        recording = Recording(f"{number:04d}.flac", text, round(samples.size / SAMPLE_RATE, 3), kind, digest)
        audio = io.BytesIO()
        sf.write(audio, pcm, SAMPLE_RATE, "PCM_16", format="FLAC")
        with refusal_as(EnrollmentError, self.folder):
            private_dir(self.folder)
            self._files.write(self.folder / recording.file, audio.getvalue())
            self._write([*kept, recording])
        return recording

    def remove(self, recording: Recording) -> None:
        """Delete a recording: the sound first, so that after a kill there is none that no line names.

        Raises:
            EnrollmentError: the disk refuses.
        """
        kept = [item for item in self.all() if item.file != recording.file]
        with refusal_as(EnrollmentError, self.folder):
            self._files.remove(self.folder / recording.file)
            self._write(kept)

    def _write(self, kept: list[Recording]) -> None:
        """Replace the manifest."""
        lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in kept]
        self._files.write(self.folder / "manifest.jsonl", "".join(lines).encode())


def read_source(path: Path) -> Iterator[Candidate]:
    """Yield the recordings of a manifest or a folder.

    Args:
        path: a .jsonl with "audio" and "text" per line (audio relative to it), or a folder: with such a file in it, or
            with audio files, each with its text in a .txt of the same name, or without.

    Raises:
        EnrollmentError: nothing there, or a line that is not understood.
        AudioError: a file that cannot be read.
    """
    if path.is_dir():
        manifests = sorted(path.glob("*.jsonl"))
        if manifests:
            for manifest in manifests:
                yield from _read_manifest(manifest)
            return
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in AUDIO_ENDINGS)
        if not files:
            raise EnrollmentError(f"{path}: no audio files and no .jsonl; expected recordings with their texts")
        for file in files:
            text = file.with_suffix(".txt")
            yield Candidate(file.name, load_audio(file), " ".join(_read(text).split()) if text.exists() else None)
        return
    if not path.exists():
        raise EnrollmentError(f"{path}: no such file or folder; expected a .jsonl or a folder of recordings")
    yield from _read_manifest(path)


def _read_manifest(path: Path) -> Iterator[Candidate]:
    """Lines of JSON with audio and text."""
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            item: dict[str, Any] = json.loads(line)
            audio, text = Path(item["audio"]), item.get("text")
            text = " ".join(text.split()) if text is not None else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EnrollmentError(
                f'{path}:{number}: {error!r}; expected {{"audio": "clip.wav", "text": "what is said"}}'
            ) from error
        yield Candidate(audio.name, load_audio(path.parent / audio), text)


def _read(path: Path) -> str:
    """A file of texts."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EnrollmentError(f"{path}: not readable ({error}); expected UTF-8") from error


def label(candidate: Candidate, transcriber: Transcriber, language: str | None = None) -> list[Candidate]:
    """Return the stretches of an unlabelled recording that the model is sure of, with its own text.

    Args:
        candidate: of any length; it is cut where the speaker pauses, so that a stretch fits the bundle's window.
        transcriber: hears it.
        language: of multilingual bundles.
    """
    found = []
    for segment in transcriber.transcribe_blocks([candidate.samples], language=language):
        if segment.avg_logprob < CONFIDENT_LOGPROB or len(segment.text.split()) < SELF_MIN_WORDS:
            continue
        samples = candidate.samples[int(segment.start_s * SAMPLE_RATE) : int(segment.end_s * SAMPLE_RATE)]
        found.append(Candidate(f"{candidate.name}@{segment.start_s:.1f}", samples, segment.text, SELF))
    return found


def read_prompts(language: str = "en") -> list[str]:
    """Return the packaged sentences to read aloud.

    Raises:
        EnrollmentError: there are none for the language.
    """
    path = PROMPTS / f"{language}.txt"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.txt")))
        raise EnrollmentError(f"no prompts for {language!r}, there are: {known}; give --sentences FILE")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
