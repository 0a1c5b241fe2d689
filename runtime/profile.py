"""One version of a person's profile on disk: what its files say and hold. It never changes once it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.encryption import PlainFiles
from whisperfold.runtime.errors import ProfileError


@dataclass(frozen=True)
class Profile:
    """One version of a profile."""

    name: str
    folder: Path
    facts: Mapping[str, Any]
    """Of profile.json: created, promoted, reason, options, sha256 of the weights."""

    @classmethod
    def read(cls, name: str, folder: Path) -> Profile:
        """Read profile.json of a version.

        Raises:
            ProfileError: it is missing or damaged.
        """
        try:
            facts = json.loads((folder / "profile.json").read_bytes())
            if not isinstance(facts, dict):
                raise ValueError(f"profile.json is a {type(facts).__name__}")
            return cls(name, folder, facts)
        except (OSError, ValueError) as error:
            raise ProfileError(f"{folder}: damaged profile ({error}); roll back, or enroll again") from error

    @property
    def version(self) -> str:
        """E.g. 0002."""
        return self.folder.name

    @property
    def report(self) -> Path:
        """Its page, sealed where the owner wants it; `ProfileStore.read_report` reads both."""
        return PlainFiles().find(self.folder / "report.html")

    def weights(self) -> dict[str, np.ndarray]:
        """Return the arrays that take the place of the bundle's.

        Raises:
            ProfileError: the file is missing or damaged.
        """
        path = self.folder / "weights.safetensors"
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != self.facts["sha256"]:
                raise ProfileError(f"{path}: damaged (checksum); use `whisperfold profiles rollback {self.name}`")
            return dict(load(content))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ProfileError(f"{path}: {error!r}; use `whisperfold profiles rollback {self.name}`") from error

    def adapter(self) -> Adapter:
        """Return the adapter; errors as `Adapter.load`."""
        return Adapter.load(self.folder / "adapter.safetensors")
