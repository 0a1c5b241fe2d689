"""Whose voice the weights are for: what was asked for -> a profile of the store -> a Transcriber.

A profile is asked for by

    a name    that person's profile; an error if it is missing or damaged
    "none"    the bundle as it is
    None      the profile in use; a damaged one is told and left out, so that the device goes on working
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BundleError, ProfileError
from whisperfold.runtime.packaged import default_bundle
from whisperfold.runtime.profile import Profile
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.session import DEFAULT_PROVIDERS, Engine
from whisperfold.runtime.transcribe import Transcriber

_LOG = logging.getLogger(__name__)
NOBODY = "none"
"""The name that means the bundle as it is; no profile can be called so."""


@dataclass(frozen=True)
class Speaker:
    """What was asked for, and where to look."""

    store: ProfileStore
    name: str | None = None

    def profile(self) -> Profile | None:
        """Return the profile that is wanted now; None is the bundle as it is.

        Raises:
            ProfileError: it is missing or damaged.
        """
        if self.name == NOBODY:
            return None
        with _damage_told():
            return self.store.active() if self.name is None else self.store.get(self.name)

    def in_use(self) -> tuple[str, str]:
        """Return name and version as the store's files have them: two short reads, for noticing that they change."""
        if self.name == NOBODY:
            return "", ""
        name = self.name or _line(self.store.folder / "active")
        return name, _line(self.store.folder / name / "current") if name else ""

    def load(self, bundle: Bundle, threads: int, providers: Sequence[str]) -> Transcriber:
        """Load a bundle with the profile that is wanted now.

        Raises:
            BundleError: the bundle cannot be loaded.
            ProfileError: a profile that was named is missing or damaged.
        """
        profile = None
        try:
            profile = self.profile()
            with _damage_told():
                weights = profile.weights() if profile else None
            return Transcriber(Engine(bundle, threads, providers, weights), profile)
        except (ProfileError, BundleError) as error:
            if self.name is not None or (profile is None and isinstance(error, BundleError)):
                raise
            _LOG.warning("the profile in use is left out, the bundle is used as it is: %s", error)
        return Transcriber(Engine(bundle, threads, providers))


def open_transcriber(
    bundle: Path | None = None,
    speaker: str | None = None,
    profiles: Path | None = None,
    threads: int = 0,
    providers: Sequence[str] = DEFAULT_PROVIDERS,
) -> Transcriber:
    """Load the weights of a command.

    Args:
        bundle: its directory; None is the packaged one.
        speaker: a profile's name, "none" or None, as above.
        profiles: where profiles are; None is the user's own store.
        threads: CPU threads of a run; 0 takes the CPUs there are, at most 4.
        providers: onnxruntime's execution providers, the preferred one first.

    Raises:
        BundleError: the bundle is missing, damaged or too new.
        ProfileError: a profile that was named is missing or damaged.
    """
    opened = Bundle.open(bundle or default_bundle())
    return Speaker(ProfileStore(opened, profiles), speaker).load(opened, threads, providers)


@contextmanager
def _damage_told() -> Iterator[None]:
    """Whatever reading a file of the store may raise is a ProfileError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfileError(f"the profile is damaged ({error!r}); roll back, or enroll again") from error


def _line(path: Path) -> str:
    """What a small file says; "" if it is not there or not text."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(200).decode().strip()
    except (OSError, ValueError):
        return ""
