"""The profiles of the people who use this device: which there are, which is in use, and how they change.

    ROOT/people/NAME/                 recordings and what else does not depend on the bundle (people.py)
    ROOT/<16 hex digits of the bundle's weights>/active     name of the profile in use
        NAME/state/                   the checkpoint of an adaptation
        NAME/current                  the version in use, e.g. 0002
        NAME/versions/0002/           profile.json adapter.safetensors weights.safetensors report.html

A version never changes once it is there; `current` and `active` are files that are replaced in one rename. So a power
cut leaves the old version or the new one. Directories are 0700, files 0600, whatever the umask.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import REQUIRED, Bundle
from whisperfold.runtime.errors import ProfileError
from whisperfold.runtime.files import (
    exclusive,
    fresh_path,
    private_dir,
    refusal_as,
    sweep,
    sync_dir,
    write_atomic,
    write_synced,
)
from whisperfold.runtime.people import People, check_name, is_name
from whisperfold.runtime.profile import Profile

KEPT_VERSIONS = 4
"""The newest ones, taken or not; the current one and the one that a rollback takes are kept beside them."""


class ProfileStore(People):
    """The people, and their profiles for one bundle: one with the same weights, whatever else its manifest says."""

    def __init__(self, bundle: Bundle, root: Path | None = None) -> None:
        super().__init__(root)
        checksums = [bundle.manifest["files"][bundle.stored(name)]["sha256"] for name in REQUIRED]
        self.bundle_id = hashlib.sha256(" ".join(checksums).encode()).hexdigest()[:16]
        self.folder = self.root / self.bundle_id

    def names(self) -> list[str]:
        """Return the people who have a profile for this bundle, or recordings."""
        profiled = {path.parent.name for path in self.folder.glob("*/versions")}
        return sorted({*self.recorded(), *(name for name in profiled if is_name(name))})

    def all(self) -> list[Profile]:
        """Return the current version of every profile that has one; damaged ones are left out."""
        readable = []
        for name in self.names():
            with suppress(ProfileError):
                readable += [self.get(name)] if self.has(name) else []
        return readable

    def get(self, name: str) -> Profile:
        """Return the current version of a profile.

        Raises:
            ProfileError: no such profile for this bundle, or it is damaged.
        """
        if not self.has(name):
            known = ", ".join(self.names()) or "none"
            raise ProfileError(f"no profile {name!r} for this bundle, there are: {known}; `whisperfold enroll {name}`")
        return Profile.read(name, self.person(name) / "versions" / self._current(name))

    def versions(self, name: str) -> list[Profile]:
        """Return all kept versions of a profile, the oldest first, refused ones too; damaged ones are left out."""
        readable = []
        for folder in self._version_folders(name):
            with suppress(ProfileError):  # one can roll back, or enroll again, over a damaged one
                readable.append(Profile.read(name, folder))
        return readable

    def active_name(self) -> str:
        """Return whose profile is in use, as the file has it, damaged or not; "" is nobody's."""
        path = self.folder / "active"
        with refusal_as(ProfileError, path):
            return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""

    def active(self) -> Profile | None:
        """Return the profile in use; None is the bundle as it is.

        Raises:
            ProfileError: it is damaged.
        """
        name = self.active_name()
        return self.get(name) if name and self.has(name) else None

    def use(self, name: str | None) -> None:
        """Put a profile in use, None: the bundle as it is.

        Raises:
            ProfileError: no such profile, damaged weights, or the disk refuses.
        """
        if name is not None:
            self.get(name).weights()
        with _switching(self.folder):
            if name is not None and not self.has(name):  # deleted while its weights were checked
                self.get(name)
            _write_line(self.folder / "active", name or "")

    def person(self, name: str) -> Path:
        """Return the folder of what this bundle has learned of a person, which need not exist.

        Raises:
            ProfileError: not a name.
        """
        return self.folder / check_name(name)

    def known(self, name: str) -> Path:
        """Return the home of a person who has something here, for whatever bundle.

        Raises:
            ProfileError: nothing of that name.
        """
        if not self.folders(name):
            raise ProfileError(f"no profile {name!r} for this bundle, there are: {', '.join(self.names()) or 'none'}")
        return self.home(name)

    def read_report(self, profile: Profile) -> str:
        """Return the page of a version; errors as `said`, and ProfileError if it is gone."""
        try:
            return self.said(profile.name).read(profile.folder / "report.html").decode()
        except OSError as error:
            raise ProfileError(f"{profile.report}: {error.strerror}; enroll again") from error

    def add(
        self, name: str, adapter: Adapter, weights: Mapping[str, np.ndarray], facts: Mapping[str, Any], report: str
    ) -> Profile:
        """Write a new version, and forget the oldest; it is not in use yet.

        Raises:
            ProfileError: it cannot be written; what was there stays.
        """
        folder, said = self.person(name) / "versions", self.said(name)
        with refusal_as(ProfileError, folder):
            private_dir(folder)
        number = 1 + max((int(p.name) for p in self._version_folders(name) if p.name.isdigit()), default=0)
        target = folder / f"{number:04d}"
        fresh = fresh_path(target)
        content = save(dict(weights))
        facts = {**facts, "name": name, "bundle": self.bundle_id, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        facts["sha256"] = hashlib.sha256(content).hexdigest()
        files = [
            ("weights.safetensors", content),
            ("adapter.safetensors", adapter.to_bytes()),
            said.sealed(target / "report.html", report.encode()),
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
        self._forget_old(name)
        return Profile.read(name, target)

    def promote(self, profile: Profile) -> None:
        """Make a version the current one of its profile, and forget the oldest."""
        _write_line(self.person(profile.name) / "current", profile.version)
        self._forget_old(profile.name)

    def rollback(self, name: str) -> Profile:
        """Go back to the promoted version before the current one, and return it.

        Raises:
            ProfileError: there is none.
        """
        check_name(name)
        if not self.has(name):
            self.get(name)
        with self.locked(name):
            older = self._promoted_before(name, self._current(name))
            if older is None:
                raise ProfileError(
                    f"{name}: no earlier version; `whisperfold profiles use none` takes the bundle as it is"
                )
            older.weights()
            _write_line(self.person(name) / "current", older.version)
        return older

    def has(self, name: str) -> bool:
        """Whether a profile has a current version."""
        return (self.person(name) / "current").exists()

    def delete(self, name: str, with_recordings: bool = False) -> None:
        """Remove a profile; the bundle as it is takes over if it was in use.

        Args:
            name: of the person.
            with_recordings: the person is removed everywhere: recordings, and the profiles for other bundles.

        Raises:
            ProfileError: nothing of that name, it is being enrolled, or the disk does not let it go.
        """
        home, person = self.known(name), self.person(name)
        with self.locked(name):
            keeps_home = not with_recordings and any(home.glob("recordings/*"))
            learned = [folder for folder in self.folders(name) if folder != home]
            for folder in learned if with_recordings else [person]:
                if folder.exists():
                    _delete_profile(folder)
            if not (keeps_home or self.folders(name) != [home]):
                _delete_tree(home)

    def _current(self, name: str) -> str:
        """The version that `current` names; ProfileError if it is damaged."""
        path = self.person(name) / "current"
        try:
            version = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ProfileError(f"{path}: damaged ({error}); enroll again") from error
        if not version.isdigit():
            raise ProfileError(f"{path}: damaged ({version[:20]!r} is no version); enroll again")
        return version

    def _version_folders(self, name: str) -> list[Path]:
        """Folders of the kept versions, the oldest first."""
        return sorted(path for path in self.person(name).glob("versions/*") if not path.name.startswith("."))

    def _promoted_before(self, name: str, version: str) -> Profile | None:
        """The newest version before another one that was taken."""
        older = [p for p in self.versions(name) if p.version < version and p.facts.get("promoted")]
        return older[-1] if older else None

    def _forget_old(self, name: str) -> None:
        """Remove all versions but the current one, the one that a rollback takes, and the newest."""
        folders = self._version_folders(name)
        kept = {folder.name for folder in folders[-KEPT_VERSIONS:]}
        with suppress(ProfileError):  # without a current one there is nothing to go back from
            current = self._current(name)
            before = self._promoted_before(name, current)
            kept |= {current} | ({before.version} if before else set())
        for folder in folders:
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _switching(bundle_folder: Path) -> Iterator[None]:
    """Hold what decides which profile of a bundle is in use."""
    with refusal_as(ProfileError, bundle_folder), exclusive(private_dir(bundle_folder) / ".lock"):
        sweep(bundle_folder)
        yield


def _delete_profile(person: Path) -> None:
    """Remove what a bundle has learned of a person, who is not in use from then on."""
    active = person.parent / "active"
    with _switching(person.parent):
        if active.exists() and active.read_bytes().strip() == person.name.encode():
            _write_line(active, "")
        (person / "current").unlink(missing_ok=True)
    _delete_tree(person)


def _delete_tree(folder: Path) -> None:
    """Remove a folder; ProfileError if the disk does not let it go."""
    try:
        shutil.rmtree(folder)
        sync_dir(folder.parent)
    except OSError as error:
        raise ProfileError(f"{folder}: not deleted ({error}); delete it by hand") from error


def _write_line(path: Path, line: str) -> None:
    """Replace a file of one line; ProfileError if the disk does not take it."""
    try:
        write_atomic(path, f"{line}\n".encode())
    except OSError as error:
        raise ProfileError(f"{path}: not written ({error.strerror}); free space") from error
