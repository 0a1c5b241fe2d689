"""The people who use this device, whatever the bundle: what they said, in which language, sealed or not.

    ROOT/people/NAME/recordings/    what was read aloud
                     language       of it, e.g. de
                     vault.json     where recordings and reports are sealed (encryption.py)
                     .lock          held by whoever changes the person, here or in the folder of a bundle
    ROOT/BUNDLE/NAME/               what a bundle has learned of them (profiles.py)

So a new bundle finds the recordings of the old one, and can learn from them again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from whisperfold.runtime.encryption import VAULT, PlainFiles, convert, create_vault, is_half_sealed, open_vault
from whisperfold.runtime.errors import ProfileError
from whisperfold.runtime.files import exclusive, private_dir, refusal_as, sweep, write_atomic
from whisperfold.runtime.recordings import RecordingStore

LOCK_WAIT_S = 3.0
"""Two recordings that arrive at once wait for each other; an enrollment takes longer."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = ("active", "none")


def default_root() -> Path:
    """Return the user's own store: XDG_DATA_HOME or ~/.local/share, then whisperfold/profiles."""
    home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share"
    return base / "whisperfold" / "profiles"


def is_name(name: str) -> bool:
    """Whether a person may be called so."""
    return bool(_NAME.fullmatch(name)) and name not in _RESERVED


def check_name(name: str) -> str:
    """Return a name that a person may have.

    Raises:
        ProfileError: not a name.
    """
    if name in _RESERVED:
        raise ProfileError(f"profile name {name!r}: {' and '.join(_RESERVED)} are reserved; choose another")
    if not is_name(name):
        raise ProfileError(f"profile name {name!r}: expected letters, digits, '.', '-' and '_', at most 64")
    return name


class People:
    """What belongs to the people of a store, and not to a bundle."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        self._unlocked: dict[str, PlainFiles] = {}

    def home(self, name: str) -> Path:
        """Return the folder of what a person said, which need not exist; errors as `check_name`."""
        return self.root / "people" / check_name(name)

    def recorded(self) -> list[str]:
        """Return the people who have recordings."""
        names = {path.parent.name for path in self.root.glob("people/*/recordings")}
        return sorted(name for name in names if is_name(name))

    def folders(self, name: str) -> list[Path]:
        """Return all folders of a person: the home, and one per bundle that has learned the voice."""
        return sorted(path for path in self.root.glob(f"*/{check_name(name)}") if path.is_dir())

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep other processes from changing the same person, and remove what killed ones left half made.

        Raises:
            ProfileError: another process does, for longer than a few seconds; or the disk refuses.
        """
        home = self.home(name)
        with ExitStack() as held:
            with refusal_as(ProfileError, home):
                try:
                    held.enter_context(exclusive(home / ".lock", LOCK_WAIT_S))
                except BlockingIOError:
                    raise ProfileError(f"{name} is being enrolled by another process; wait for it") from None
                for folder in self.folders(name):
                    for part in (folder, folder / "recordings", folder / "state", folder / "versions"):
                        sweep(part)
            yield

    def recordings(self, name: str) -> RecordingStore:
        """Return the recordings of a person; errors as `said`."""
        return RecordingStore(self.home(name) / "recordings", self.said(name))

    def language(self, name: str) -> str | None:
        """Return the language of a person's recordings, None if nobody has said.

        Raises:
            ProfileError: its file cannot be read.
        """
        path = self.home(name) / "language"
        with refusal_as(ProfileError, path):
            return path.read_text(encoding="ascii", errors="replace").strip() or None if path.exists() else None

    def keep_language(self, name: str, language: str | None) -> str | None:
        """Keep the language of a person's recordings, and return it; None leaves what is kept.

        Raises:
            ProfileError: the recordings are in another one, or the disk refuses.
        """
        kept, home = self.language(name), self.home(name)
        if language is None or language == kept:
            return kept
        if kept is not None and any(home.glob("recordings/*.flac*")):
            raise ProfileError(f"{name}: the recordings are in {kept!r}, not {language!r}; another name for those")
        with refusal_as(ProfileError, home):
            write_atomic(private_dir(home) / "language", f"{language}\n".encode())
        return language

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
        return (self.home(name) / VAULT).exists()

    def unlock(self, name: str, passphrase: str) -> None:
        """Open recordings and reports for this store object, and seal what a killed `encrypt` left plain.

        Raises:
            ProfileError: as `open_vault`; or something is left plain, and another process has the person.
        """
        home = self.home(name)
        files = open_vault(home, passphrase)
        if is_half_sealed(home):
            with self.locked(name):
                convert(home, files, files)
        self._unlocked[name] = files

    def encrypt(self, name: str, passphrase: str) -> None:
        """Seal recordings and reports, those to come too; after a kill the same again, or `unlock`, goes on.

        Raises:
            ProfileError: a wrong or a short passphrase, no `cryptography`, or the disk refuses.
        """
        with self.locked(name):
            make = open_vault if self.is_encrypted(name) else create_vault
            files = self._unlocked[name] = make(self.home(name), passphrase)
            convert(self.home(name), files, files)

    def decrypt(self, name: str) -> None:
        """Unseal what was unlocked, for good; errors as `said`, and ProfileError if the disk refuses."""
        home = self.home(name)
        with self.locked(name):
            convert(home, self.said(name), PlainFiles())
            with refusal_as(ProfileError, home):
                (home / VAULT).unlink(missing_ok=True)
            self._unlocked.pop(name, None)
