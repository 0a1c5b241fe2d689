"""The bundle on disk: manifest, checksums, versions; open, check, write atomically.

    NAME/manifest.json      what follows, with the size and SHA-256 of every other file
    NAME/encoder.onnx       mel (batch, n_mels, frames) -> cross K and V of every decoder layer
    NAME/decoder.onnx       tokens, caches -> logits, caches, cross attention
    NAME/tokenizer.json.gz  byte-level BPE of the checkpoint
    NAME/adapt.onnx.gz      loss and gradients, where the bundle can be adapted on the device
    NAME/report.html        what the compiler did, with plots

A file that is read whole may be stored packed, as FILE.gz; the graphs are mapped and stay as they are.
A bundle is data: opening one never executes code from it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from whisperfold.runtime.errors import BundleError
from whisperfold.runtime.files import exchange, sync_dir
from whisperfold.runtime.manifest import FORMAT, MANIFEST, Dims, Tokens, Window, read_manifest, section
from whisperfold.runtime.packaged import locate_bundle, packaged_bundles

GRAPHS = ("encoder.onnx", "decoder.onnx")
REQUIRED = (*GRAPHS, "tokenizer.json")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it is and what its manifest says."""

    path: Path
    manifest: dict[str, Any]
    dims: Dims = field(init=False)
    tokens: Tokens = field(init=False)
    window: Window = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        for name, kind in (("dims", Dims), ("tokens", Tokens), ("window", Window)):
            object.__setattr__(self, name, section(self.path, self.manifest, name, kind))

    @classmethod
    def open(cls, path: str | os.PathLike[str], check: bool = True) -> Bundle:
        """Open a bundle.

        Args:
            path: its directory, or the name of a packaged one (tiny.en, base).
            check: compare the SHA-256 of every file (about 0.1 s for 40 MB); sizes are always compared.

        Raises:
            BundleError: missing directory or file, wrong size or checksum, newer format, damaged manifest.
        """
        root = locate_bundle(path)
        if not root.is_dir():
            raise BundleError(
                f"{root}: no bundle there; expected a directory made by `whisperfold compile`, or one of "
                f"the package's: {', '.join(packaged_bundles())}"
            )
        manifest = read_manifest(root / MANIFEST)
        files = manifest.get("files")
        if not isinstance(files, dict) or not files:
            raise BundleError(f'{root / MANIFEST}: no "files" section; rebuild with `whisperfold compile`')
        missing = [name for name in REQUIRED if name not in files and (name in GRAPHS or f"{name}.gz" not in files)]
        if missing:
            raise BundleError(f"{root / MANIFEST}: does not list {missing[0]}; rebuild with `whisperfold compile`")
        for name, entry in files.items():
            _check_file(root, name, entry, check)
        return cls(root, manifest)

    @property
    def name(self) -> str:
        """Name of the model, e.g. tiny.en."""
        return str(self.manifest.get("name", self.path.name))

    @property
    def precision(self) -> str:
        """int8, mixed (int8, token embedding in 4 bits) or fp32."""
        return str(self.manifest.get("precision", "fp32"))

    @property
    def alignment_heads(self) -> list[tuple[int, int]]:
        """(layer, head) pairs whose cross attention follows time."""
        return [(int(layer), int(head)) for layer, head in self.manifest.get("alignment_heads", [])]

    @property
    def size_bytes(self) -> int:
        """Bytes of all listed files."""
        return sum(int(entry["bytes"]) for entry in self.manifest["files"].values())

    def file(self, name: str) -> Path:
        """Path of a file of this bundle."""
        return self.path / name

    def stored(self, name: str) -> str:
        """Name under which a file lies in the bundle: its own, or with .gz where it is packed."""
        packed = f"{name}.gz"
        return packed if packed in self.manifest["files"] else name

    def read(self, name: str) -> bytes:
        """Contents of a file, unpacked.

        Raises:
            BundleError: it is missing or damaged.
        """
        path = self.file(self.stored(name))
        try:
            return gzip.decompress(path.read_bytes()) if path.name != name else path.read_bytes()
        except (OSError, EOFError, zlib.error) as error:
            raise BundleError(f"{path}: not readable ({error}); copy or compile the bundle again") from error


def write_bundle(
    path: str | os.PathLike[str], files: Mapping[str, Path | bytes], manifest: Mapping[str, Any]
) -> Bundle:
    """Write a bundle so that path holds the old one or the whole new one, never a part.

    Args:
        path: directory to create or replace.
        files: name in the bundle -> source path or contents.
        manifest: everything but "format" and "files", which are filled in here.

    Returns:
        The new bundle, opened.

    Raises:
        BundleError: it cannot be written (disk full, no permission); an old bundle at path stays usable.
    """
    target = Path(path).absolute()
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists() and not (target / MANIFEST).exists() and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(f"{target}: exists and is not a bundle; choose another path or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        listing = {name: _store(fresh, name, content) for name, content in files.items()}
        text = json.dumps({**manifest, "format": FORMAT, "files": listing}, indent=1, ensure_ascii=False)
        _write_synced(fresh / MANIFEST, (text + "\n").encode())
        sync_dir(fresh)
        Bundle.open(fresh, check=False)  # an incomplete manifest must not replace a good bundle
        _swap(fresh, target, old)
    except OSError as error:
        raise BundleError(
            f"{target}: not written ({error.strerror or error}); free space or choose another path"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Bundle.open(target, check=False)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(root: Path, name: str, entry: Any, check: bool) -> None:
    """Compare one file with its manifest entry."""
    path = root / _safe(root, name)
    if not path.is_file():
        raise BundleError(f"{path}: missing, the manifest lists it; copy the whole bundle again")
    if not isinstance(entry, dict) or "bytes" not in entry or "sha256" not in entry:
        raise BundleError(f"{root / MANIFEST}: {name} has no size or checksum; compile the bundle again")
    found_bytes = path.stat().st_size
    if found_bytes != entry["bytes"]:
        raise BundleError(f"{path}: {found_bytes} bytes, the manifest says {entry['bytes']}; copy the bundle again")
    if check and (found := sha256_file(path)) != entry["sha256"]:
        raise BundleError(
            f"{path}: SHA-256 {found[:12]}..., the manifest says {str(entry['sha256'])[:12]}...; "
            "the file is damaged, copy or compile the bundle again"
        )


def _safe(root: Path, name: str) -> PurePosixPath:
    """A file name that stays inside the bundle."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or name in ("", MANIFEST):
        raise BundleError(f"{root / MANIFEST}: file name {name!r} leaves the bundle; do not use this bundle")
    return relative


def _store(root: Path, name: str, content: Path | bytes) -> dict[str, Any]:
    """Copy one file into the fresh directory and return its manifest entry."""
    path = root / _safe(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        _write_synced(path, content)
    else:
        with content.open("rb") as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _write_synced(path: Path, content: bytes) -> None:
    """Write bytes and wait until the disk has them."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _swap(fresh: Path, target: Path, old: Path) -> None:
    """Put fresh at target, in one instant; where the file system cannot, the old bundle comes back if that fails."""
    if not target.exists():
        os.rename(fresh, target)
    elif not exchange(fresh, target):  # done: fresh is now the old one, and the caller removes it
        os.rename(target, old)
        try:
            os.rename(fresh, target)
        except OSError:
            os.rename(old, target)
            raise
    sync_dir(target.parent)
    shutil.rmtree(old, ignore_errors=True)
