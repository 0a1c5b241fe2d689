"""The profiles of the people who use this device: which there are, which is in use, and how they change.

    ROOT/<16 hex digits of the bundle's weights>/active     name of the profile in use
        NAME/recordings/  state/          what was read aloud, the checkpoint of an adaptation
        NAME/vault.json                   where recordings and reports are sealed (encryption.py)
        NAME/current                      the version in use, e.g. 0002
        NAME/versions/0002/               profile.json adapter.safetensors weights.safetensors report.html

A version never changes once it is there; `current` and `active` are files that are replaced in one rename. So a power
cut leaves the old version or the new one. Directories are 0700, files 0600, whatever the umask.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import REQUIRED, Bundle
from whisperfold.runtime.encryption import VAULT, PlainFiles, convert, create_vault, open_vault
from whisperfold.runtime.errors import ProfileError
from whisperfold.runtime.files import exclusive, fresh_path, private_dir, sweep, sync_dir, write_atomic, write_synced
from whisperfold.runtime.profile import Profile
from whisperfold.runtime.recordings import RecordingStore

KEPT_VERSIONS = 4
"""Older ones are removed, never the current one."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = ("active", "none")


def default_root() -> Path:
    """Return the user's own store: XDG_DATA_HOME or ~/.local/share, then whisperfold/profiles."""
    home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share"
    return base / "whisperfold" / "profiles"


class ProfileStore:
    """The profiles for one bundle: one with the same weights, whatever else its manifest says."""

    def __init__(self, bundle: Bundle, root: Path | None = None) -> None:
        checksums = [bundle.manifest["files"][name]["sha256"] for name in REQUIRED]
        self.bundle_id = hashlib.sha256(" ".join(checksums).encode()).hexdigest()[:16]
        self.folder = (root or default_root()) / self.bundle_id
        self._unlocked: dict[str, PlainFiles] = {}

    def names(self) -> list[str]:
        """Return the people who have a profile or recordings here."""
        people = {p.parent.name for kind in ("versions", "recordings") for p in self.folder.glob(f"*/{kind}")}
        return sorted(name for name in people if _NAME.fullmatch(name))

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
        return Profile.read(name, self.person(name) / "versions" / current.read_text(encoding="utf-8").strip())

    def versions(self, name: str) -> list[Profile]:
        """Return all kept versions of a profile, the oldest first, refused ones too."""
        folder = self.person(name) / "versions"
        found = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
        return [Profile.read(name, self.person(name) / "versions" / version) for version in found]

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
        with exclusive(private_dir(self.folder) / ".lock"):
            sweep(self.folder)
            _write_line(self.folder / "active", name or "")

    def person(self, name: str) -> Path:
        """Return the folder of a name, which need not exist.

        Raises:
            ProfileError: not a name.
        """
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise ProfileError(f"profile name {name!r}: expected letters, digits, '.', '-' and '_', at most 64")
        return self.folder / name

    def known(self, name: str) -> Path:
        """Return the folder of a person who has something here.

        Raises:
            ProfileError: nothing of that name.
        """
        if not self.person(name).is_dir():
            raise ProfileError(f"no profile {name!r} for this bundle, there are: {', '.join(self.names()) or 'none'}")
        return self.person(name)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep other processes from changing the same person, and remove what killed ones left half made.

        Raises:
            ProfileError: another process does.
        """
        person = private_dir(self.person(name))
        try:
            with exclusive(person / ".lock", wait=False):
                for folder in (person, person / "recordings", person / "state", person / "versions"):
                    sweep(folder)
                yield
        except BlockingIOError:
            raise ProfileError(f"{name} is being enrolled by another process; wait for it") from None

    def recordings(self, name: str) -> RecordingStore:
        """Return the recordings of a person; errors as `said`."""
        return RecordingStore(self.person(name) / "recordings", self.said(name))

    def read_report(self, profile: Profile) -> str:
        """Return the page of a version; errors as `said`, and ProfileError if it is gone."""
        try:
            return self.said(profile.name).read(profile.folder / "report.html").decode()
        except OSError as error:
            raise ProfileError(f"{profile.report}: {error.strerror}; enroll again") from error

    def said(self, name: str) -> PlainFiles:
        """Return what reads and writes recordings and reports of a person.

        Raises:
            ProfileError: they are sealed, and not unlocked.
        """
        if self.is_encrypted(name) and name not in self._unlocked:
            raise ProfileError(f"{name}: recordings and reports are encrypted; unlock them with the passphrase")
        return self._unlocked.get(name, PlainFiles())

    def is_encrypted(self, name: str) -> bool:
        """Whether recordings and reports of a person are sealed."""
        return (self.person(name) / VAULT).exists()

    def unlock(self, name: str, passphrase: str) -> None:
        """Open recordings and reports for this store object; errors as `open_vault`."""
        self._unlocked[name] = open_vault(self.person(name), passphrase)

    def encrypt(self, name: str, passphrase: str) -> None:
        """Seal recordings and reports, those to come too; after a kill the same again goes on.

        Raises:
            ProfileError: a wrong or a short passphrase, or no `cryptography`.
        """
        with self.locked(name):
            make = open_vault if self.is_encrypted(name) else create_vault
            self._unlocked[name] = make(self.person(name), passphrase)
            convert(self.person(name), self.said(name), self.said(name))

    def decrypt(self, name: str) -> None:
        """Unseal what was unlocked, for good; errors as `said`."""
        with self.locked(name):
            convert(self.person(name), self.said(name), PlainFiles())
            (self.person(name) / VAULT).unlink(missing_ok=True)
            self._unlocked.pop(name, None)

    def add(
        self, name: str, adapter: Adapter, weights: Mapping[str, np.ndarray], facts: Mapping[str, Any], report: str
    ) -> Profile:
        """Write a new version; it is not in use yet.

        Raises:
            ProfileError: it cannot be written; what was there stays.
        """
        folder = private_dir(self.person(name) / "versions")
        number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
        target = folder / f"{number:04d}"
        fresh = fresh_path(target)
        content = save(dict(weights))
        facts = {**facts, "name": name, "bundle": self.bundle_id, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        facts["sha256"] = hashlib.sha256(content).hexdigest()
        files = [
            ("weights.safetensors", content),
            ("adapter.safetensors", adapter.to_bytes()),
            self.said(name).sealed("report.html", report.encode()),
            ("profile.json", (json.dumps(facts, indent=1) + "\n").encode()),
        ]
        try:
            private_dir(fresh)
            for file_name, data in files:
                write_synced(fresh / file_name, data)
            sync_dir(fresh)
            os.rename(fresh, target)
            sync_dir(folder)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ProfileError(f"{target}: not written ({error.strerror or error}); free space") from error
        return Profile.read(name, self.person(name) / "versions" / target.name)

    def promote(self, profile: Profile) -> None:
        """Make a version the current one of its profile, and forget the oldest."""
        _write_line(self.person(profile.name) / "current", profile.version)
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
        with self.locked(name):
            _write_line(self.person(name) / "current", older[-1].version)
        return older[-1]

    def has(self, name: str) -> bool:
        """Whether a profile has a current version."""
        return (self.person(name) / "current").exists()

    def delete(self, name: str, with_recordings: bool = False) -> None:
        """Remove a profile, and its recordings if wanted; the bundle as it is takes over if it was in use.

        Raises:
            ProfileError: nothing of that name, it is being enrolled, or the disk does not let it go.
        """
        person = self.known(name)
        active = self.folder / "active"
        try:
            with self.locked(name):
                if active.exists() and active.read_text(encoding="utf-8").strip() == name:
                    self.use(None)
                (person / "current").unlink(missing_ok=True)
                keeps_recordings = not with_recordings and any(person.glob("recordings/*"))
                for folder in (person / "versions", person / "state") if keeps_recordings else (person,):
                    if folder.exists():
                        shutil.rmtree(folder)
            sync_dir(self.folder)
        except OSError as error:
            raise ProfileError(f"{person}: not deleted ({error}); delete it by hand") from error


def _write_line(path: Path, line: str) -> None:
    """Replace a file of one line; ProfileError if the disk does not take it."""
    try:
        write_atomic(path, f"{line}\n".encode())
    except OSError as error:
        raise ProfileError(f"{path}: not written ({error.strerror}); free space") from error
