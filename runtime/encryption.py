"""What was said, at rest: recordings, their texts and the reports, sealed with a passphrase where the owner wants it.

    passphrase --scrypt, salt--> key --AES-GCM--> the person's data key     people/NAME/vault.json
    file       --AES-256-GCM with the data key--> FILE.sealed: nonce (12 bytes), ciphertext, tag (16 bytes)

Not sealed: adapter and weights (so that the device starts without a person; they are readable by their owner only) and
figures such as error rates, also per recording, by the hash of its samples. Each file is bound to its place below the
person, so that none takes another's. Nobody can mend a forgotten passphrase: recordings and reports are lost then, the
profile goes on working. A plain file that is sealed later is deleted, which flash memory may not do at once.

scrypt: RFC 7914; AES-GCM: NIST SP 800-38D; both by the `cryptography` package, which is an extra.
"""

from __future__ import annotations

import base64
import json
import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from whisperfold.runtime.errors import ProfileError
from whisperfold.runtime.files import private_dir, refusal_as, write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VAULT = "vault.json"
MIN_PASSPHRASE = 8
"""Letters."""
SCRYPT = {"n": 2**15, "r": 8, "p": 3}
"""32 MB and some 0.3 s: OWASP's figures for little memory."""
_MAX_SCRYPT = {"n": 2**20, "r": 16, "p": 16}
"""A damaged vault must not take all of the memory."""
_ENDING = ".sealed"
_NONCE_BYTES = 12
_KEY_BYTES = 32


class PlainFiles:
    """Files as they are."""

    def find(self, path: Path) -> Path:
        """Return where the file of this name really is: here, or sealed beside it."""
        sealed = path.with_name(path.name + _ENDING)
        return sealed if sealed.exists() else path

    def read(self, path: Path) -> bytes:
        """Return the contents of a file; OSError as `Path.read_bytes`.

        Raises:
            ProfileError: it is sealed.
        """
        found = self.find(path)
        if found != path:
            raise ProfileError(f"{found}: encrypted; its passphrase is needed")
        return path.read_bytes()

    def write(self, path: Path, content: bytes) -> None:
        """Write a file in one rename, and delete a sealed one of the name."""
        write_atomic(path, content)
        path.with_name(path.name + _ENDING).unlink(missing_ok=True)

    def sealed(self, path: Path, content: bytes) -> tuple[str, bytes]:
        """Return the name and contents that the disk gets for the file at path."""
        return path.name, content

    def remove(self, path: Path) -> None:
        """Delete a file, sealed or not."""
        for file in (path, path.with_name(path.name + _ENDING)):
            file.unlink(missing_ok=True)


class SealedFiles(PlainFiles):
    """Files that only the data key opens; plain ones, from before, are read too."""

    def __init__(self, cipher: AESGCM, root: Path) -> None:
        """Nothing is read yet.

        Args:
            cipher: of the data key.
            root: of the store: a person's folders are ROOT/*/NAME.
        """
        self._cipher, self._root = cipher, root

    def read(self, path: Path) -> bytes:
        """Return the contents of a file; OSError as `Path.read_bytes`.

        Raises:
            ProfileError: it is damaged, or of another person.
        """
        found = self.find(path)
        content = found.read_bytes()
        return _unseal(self._cipher, self._place(path), content, f"{found}: damaged") if found != path else content

    def write(self, path: Path, content: bytes) -> None:
        """Write a sealed file in one rename, and delete a plain one of the name."""
        name, sealed = self.sealed(path, content)
        write_atomic(path.with_name(name), sealed)
        path.unlink(missing_ok=True)

    def sealed(self, path: Path, content: bytes) -> tuple[str, bytes]:
        """Return the name and contents that the disk gets for the file at path."""
        return path.name + _ENDING, _seal(self._cipher, self._place(path), content)

    def _place(self, path: Path) -> str:
        """Where a file is, but for the name of the person: people/recordings/0001.flac."""
        part, _, *rest = path.relative_to(self._root).parts
        return "/".join((part, *rest))


def create_vault(home: Path, passphrase: str) -> SealedFiles:
    """Make the data key of a person, in the home.

    Raises:
        ProfileError: a short passphrase, no `cryptography`, there is a vault, or the disk refuses.
    """
    path = home / VAULT
    if path.exists():
        raise ProfileError(f"{path}: already there; unlock it with its passphrase")
    if len(passphrase) < MIN_PASSPHRASE:
        raise ProfileError(
            f"passphrase of {len(passphrase)} letters, expected {MIN_PASSPHRASE} or more: use some words"
        )
    salt, data_key = os.urandom(16), os.urandom(_KEY_BYTES)
    wrapped = _seal(_cipher(_derive(passphrase, salt, SCRYPT)), VAULT, data_key)
    facts = {"kdf": "scrypt", **SCRYPT, "salt": _to_text(salt), "key": _to_text(wrapped)}
    with refusal_as(ProfileError, path):
        private_dir(home)
        write_atomic(path, (json.dumps(facts) + "\n").encode())
    return SealedFiles(_cipher(data_key), home.parent.parent)


def open_vault(home: Path, passphrase: str) -> SealedFiles:
    """Open the data key of a person, from the home.

    Raises:
        ProfileError: a wrong passphrase, a damaged vault, or no `cryptography`.
    """
    path = home / VAULT
    try:
        facts = json.loads(path.read_bytes())
        work = {name: int(facts[name]) for name in SCRYPT}
        salt, wrapped = (base64.b64decode(facts[name], validate=True) for name in ("salt", "key"))
        if any(not 1 <= work[name] <= most for name, most in _MAX_SCRYPT.items()):
            raise ValueError(f"scrypt {work}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfileError(f"{path}: damaged ({error!r}); without it recordings and reports are lost") from error
    data_key = _unseal(_cipher(_derive(passphrase, salt, work)), VAULT, wrapped, f"{home.name}: wrong passphrase")
    return SealedFiles(_cipher(data_key), home.parent.parent)


def said_files(home: Path) -> list[Path]:
    """Return the files of a person that hold or quote what was said, of all bundles, by their plain names."""
    reports = home.parent.parent.glob(f"*/{home.name}/versions/[!.]*/report.html*")
    found = [*home.glob("recordings/[!.]*"), *reports]
    return sorted({path.with_name(path.name.removesuffix(_ENDING)) for path in found})


def is_half_sealed(home: Path) -> bool:
    """Whether something that was said is plain."""
    return any(path.exists() for path in said_files(home))


def convert(home: Path, source: PlainFiles, target: PlainFiles) -> None:
    """Write all that was said anew, file by file; after a kill the same again goes on.

    Raises:
        ProfileError: a file that cannot be read or written.
    """
    with refusal_as(ProfileError, home):
        for path in said_files(home):
            target.write(path, source.read(path))


def _derive(passphrase: str, salt: bytes, work: dict[str, int]) -> bytes:
    """Passphrase -> 32 bytes; the same letters typed on another keyboard are the same."""
    try:
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    except ImportError as error:
        raise ProfileError(
            "encryption needs the cryptography package: pip install 'whisperfold[encryption]'"
        ) from error
    text = unicodedata.normalize("NFC", passphrase).encode()
    return Scrypt(salt=salt, length=_KEY_BYTES, **work).derive(text)


def _cipher(key: bytes) -> AESGCM:
    """AES-256-GCM."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _seal(cipher: AESGCM, name: str, content: bytes) -> bytes:
    """Nonce, ciphertext and tag; the name is authenticated, so that files cannot change places."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, content, name.encode())


def _unseal(cipher: AESGCM, name: str, content: bytes, otherwise: str) -> bytes:
    """The inverse of `_seal`; ProfileError with the given words."""
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], name.encode())
    except (InvalidTag, ValueError) as error:
        raise ProfileError(f"{otherwise}; nothing was changed") from error


def _to_text(content: bytes) -> str:
    """base64."""
    return base64.b64encode(content).decode()
