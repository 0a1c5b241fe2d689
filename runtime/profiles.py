"""The profiles of the people who use this device: which there are, which is in use, and how they change.

    ROOT/<first 16 hex digits of the bundle's manifest>/active          name of the profile in use
        NAME/recordings/  state/          what was read aloud, the checkpoint of an adaptation
        NAME/current                      the version in use, e.g. 0002
        NAME/versions/0002/               profile.json adapter.safetensors weights.safetensors report.html

A version never changes once it is there; `current` and `active` are files that are replaced in one rename. So a power
cut leaves the old version or the new one. Directories are 0700, files 0600.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import MANIFEST, Bundle, sha256_file
from whisperfold.runtime.errors import ProfileError
from whisperfold.runtime.files import private_dir, sync_dir, write_atomic, write_synced

KEPT_VERSIONS = 4
"""Older ones are removed, never the current one."""
EXPORTED = ("profile.json", "adapter.safetensors", "weights.safetensors")
"""No recordings, and no report: it quotes what was said."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = ("active", "none")


def default_root() -> Path:
    """Return the user's own store: XDG_DATA_HOME or ~/.local/share, then whisperfold/profiles."""
    home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share"
    return base / "whisperfold" / "profiles"


@dataclass(frozen=True)
class Profile:
    """One version of a profile."""

    name: str
    folder: Path
    facts: Mapping[str, Any]
    """Of profile.json: created, promoted, decision, options, sha256 of the weights."""

    @property
    def version(self) -> str:
        """E.g. 0002."""
        return self.folder.name

    @property
    def report(self) -> Path:
        """Its page."""
        return self.folder / "report.html"

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
        except (OSError, SafetensorError) as error:
            raise ProfileError(f"{path}: {error}; use `whisperfold profiles rollback {self.name}`") from error

    def adapter(self) -> Adapter:
        """Return the adapter; errors as `Adapter.load`."""
        return Adapter.load(self.folder / "adapter.safetensors")


class ProfileStore:
    """The profiles for one bundle."""

    def __init__(self, bundle: Bundle, root: Path | None = None) -> None:
        self.bundle_id = sha256_file(bundle.file(MANIFEST))[:16]
        self.folder = (root or default_root()) / self.bundle_id

    def names(self) -> list[str]:
        """Return the people who have a profile or recordings here."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    def all(self) -> list[Profile]:
        """Return the current version of every profile that has one."""
        return [self.get(name) for name in self.names() if (self.folder / name / "current").exists()]

    def get(self, name: str) -> Profile:
        """Return the current version of a profile.

        Raises:
            ProfileError: no such profile for this bundle, or it is damaged.
        """
        current = self.person(name) / "current"
        if not current.exists():
            known = ", ".join(self.names()) or "none"
            raise ProfileError(f"no profile {name!r} for this bundle, there are: {known}; `whisperfold enroll {name}`")
        return self._version(name, current.read_text(encoding="utf-8").strip())

    def versions(self, name: str) -> list[Profile]:
        """Return all kept versions of a profile, the oldest first, refused ones too."""
        folder = self.person(name) / "versions"
        found = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
        return [self._version(name, version) for version in found]

    def active(self) -> Profile | None:
        """Return the profile in use; None is the bundle as it is.

        Raises:
            ProfileError: it is damaged.
        """
        path = self.folder / "active"
        name = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        return self.get(name) if name and (self.person(name) / "current").exists() else None

    def use(self, name: str | None) -> None:
        """Put a profile in use, None: the bundle as it is.

        Raises:
            ProfileError: no such profile, or damaged weights.
        """
        if name is not None:
            self.get(name).weights()
        write_atomic(private_dir(self.folder) / "active", f"{name or ''}\n".encode())

    def person(self, name: str) -> Path:
        """Return the folder of a name, which need not exist.

        Raises:
            ProfileError: not a name.
        """
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ProfileError(f"profile name {name!r}: expected letters, digits, '.', '-' and '_', at most 64")
        return self.folder / name

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep other processes from enrolling the same person; the kernel frees the lock of a killed one.

        Raises:
            ProfileError: another process does.
        """
        path = private_dir(self.person(name)) / ".lock"
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProfileError(f"{name} is being enrolled by another process; wait for it") from None
            yield

    def add(
        self, name: str, adapter: Adapter, weights: Mapping[str, np.ndarray], facts: Mapping[str, Any], report: str
    ) -> Profile:
        """Write a new version; it is not in use yet.

        Raises:
            ProfileError: it cannot be written; what was there stays.
        """
        folder = private_dir(self.person(name) / "versions")
        number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
        fresh, target = folder / f".new-{os.getpid()}", folder / f"{number:04d}"
        content = save(dict(weights))
        facts = {**facts, "name": name, "bundle": self.bundle_id, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        facts["sha256"] = hashlib.sha256(content).hexdigest()
        files = {
            "weights.safetensors": content,
            "adapter.safetensors": adapter.to_bytes(),
            "report.html": report.encode(),
            "profile.json": (json.dumps(facts, indent=1) + "\n").encode(),
        }
        try:
            for leftover in folder.glob(".new-*"):  # of a run that was killed
                shutil.rmtree(leftover)
            private_dir(fresh)
            for file_name, data in files.items():
                write_synced(fresh / file_name, data)
            sync_dir(fresh)
            os.rename(fresh, target)
            sync_dir(folder)
        except OSError as error:
            raise ProfileError(f"{target}: not written ({error.strerror or error}); free space") from error
        return self._version(name, target.name)

    def promote(self, profile: Profile) -> None:
        """Make a version the current one of its profile, and forget the oldest."""
        write_atomic(self.person(profile.name) / "current", f"{profile.version}\n".encode())
        for old in self.versions(profile.name)[:-KEPT_VERSIONS]:
            if old.version != profile.version:
                shutil.rmtree(old.folder, ignore_errors=True)

    def rollback(self, name: str) -> Profile:
        """Go back to the promoted version before the current one, and return it.

        Raises:
            ProfileError: there is none.
        """
        current = (self.person(name) / "current").read_text(encoding="utf-8").strip() if self.has(name) else ""
        older = [p for p in self.versions(name) if p.version < current and p.facts.get("promoted")]
        if not older:
            raise ProfileError(f"{name}: no earlier version; `whisperfold profiles use none` takes the bundle as it is")
        older[-1].weights()
        write_atomic(self.person(name) / "current", f"{older[-1].version}\n".encode())
        return older[-1]

    def has(self, name: str) -> bool:
        """Whether a profile has a current version."""
        return (self.person(name) / "current").exists()

    def delete(self, name: str, with_recordings: bool = False) -> None:
        """Remove a profile, and its recordings if wanted; the bundle as it is takes over if it was in use.

        Raises:
            ProfileError: nothing of that name.
        """
        person = self.person(name)
        if not person.is_dir():
            raise ProfileError(f"no profile {name!r} for this bundle, there are: {', '.join(self.names()) or 'none'}")
        active = self.folder / "active"
        if active.exists() and active.read_text(encoding="utf-8").strip() == name:
            self.use(None)
        (person / "current").unlink(missing_ok=True)
        shutil.rmtree(person / "versions", ignore_errors=True)
        shutil.rmtree(person / "state", ignore_errors=True)
        if with_recordings or not (person / "recordings").is_dir():
            shutil.rmtree(person)
        sync_dir(self.folder)

    def export(self, name: str, path: Path) -> None:
        """Write a profile into one zip file, mode 0600, without recordings and texts; errors as `get`."""
        profile, buffer = self.get(name), io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file_name in EXPORTED:
                archive.write(profile.folder / file_name, file_name)
        try:
            write_atomic(path, buffer.getvalue())
        except OSError as error:
            raise ProfileError(f"{path}: not written ({error.strerror}); choose another place") from error

    def _version(self, name: str, version: str) -> Profile:
        """Read profile.json of one version."""
        folder = self.person(name) / "versions" / version
        try:
            facts = json.loads((folder / "profile.json").read_bytes())
        except (OSError, ValueError) as error:
            raise ProfileError(f"{folder}: damaged profile ({error}); roll back, or enroll again") from error
        return Profile(name, folder, facts)
