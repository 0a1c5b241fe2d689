"""A profile as one file: to another device with the same bundle, and back.

    FILE.zip    profile.json adapter.safetensors weights.safetensors

No recordings, and no report: it quotes what was said. What is read is checked before anything is written.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load

from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import ProfileError
from whisperfold.runtime.files import write_atomic
from whisperfold.runtime.profiles import Profile, ProfileStore
from whisperfold.runtime.session import Engine

FILES = ("profile.json", "adapter.safetensors", "weights.safetensors")
MAX_BYTES = 1 << 30
"""Unpacked; a profile of tiny.en has 15 MB."""
_REPORT = "<!doctype html><title>imported</title><p>Imported from another device; the report has stayed there.</p>\n"


def export_profile(store: ProfileStore, name: str, path: Path) -> None:
    """Write the current version of a profile into one zip file, mode 0600.

    Raises:
        ProfileError: no such profile, or the file cannot be written.
    """
    profile, buffer = store.get(name), io.BytesIO()
    try:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file_name in FILES:
                archive.write(profile.folder / file_name, file_name)
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise ProfileError(f"{path}: not written ({error}); choose another place") from error


def import_profile(store: ProfileStore, bundle: Bundle, path: Path, name: str) -> Profile:
    """Take a profile from a zip file; it is not in use yet.

    Args:
        store: of the profiles for the bundle.
        bundle: must take the weights.
        path: what `export_profile` wrote.
        name: that it gets here.

    Raises:
        ProfileError: not such a file, for another bundle, damaged, too large, or the name is taken.
        BundleError: weights that the bundle does not take.
    """
    if store.versions(name):
        raise ProfileError(f"there is a profile {name!r} already; choose another --name, or delete it first")
    content = _read(path)
    facts = _facts(path, content["profile.json"])
    if facts.get("bundle") != store.bundle_id:
        raise ProfileError(f"{path}: for another bundle than {bundle.name}; give its own with --bundle")
    if hashlib.sha256(content["weights.safetensors"]).hexdigest() != facts.get("sha256"):
        raise ProfileError(f"{path}: damaged (checksum of the weights); export it again")
    try:
        weights = load(content["weights.safetensors"])
    except SafetensorError as error:
        raise ProfileError(f"{path}: damaged weights ({error}); export it again") from error
    adapter = _adapter(content["adapter.safetensors"])
    Engine(bundle, 1, overrides=weights)
    with store.locked(name):
        profile = store.add(name, adapter, weights, facts, _REPORT)
        store.promote(profile)
    return profile


def _read(path: Path) -> dict[str, bytes]:
    """The files of an archive; nothing is unpacked on disk, so that no name in it matters."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if sorted(names) != sorted(FILES):
                shown = ", ".join(repr(name[:40]) for name in names[:4]) or "nothing"
                raise ProfileError(f"{path}: holds {shown}, expected what `whisperfold profiles export` writes")
            n_bytes = sum(archive.getinfo(name).file_size for name in FILES)
            if n_bytes > MAX_BYTES:
                raise ProfileError(f"{path}: {n_bytes / 1e6:.0f} MB unpacked, expected at most {MAX_BYTES / 1e6:.0f}")
            return {name: archive.read(name) for name in FILES}
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ProfileError(
            f"{path}: not readable ({error}); expected a .zip of `whisperfold profiles export`"
        ) from error


def _facts(path: Path, content: bytes) -> dict[str, Any]:
    """What profile.json says, if it has what the lists show."""
    try:
        facts = json.loads(content)
        for person in ("owner", "canary"):
            rates = [facts[person][when] for when in ("before", "after")]
            if not all(isinstance(rate, int | float) and math.isfinite(rate) for rate in rates):
                raise ValueError(f"{person}: {rates}")
        if not isinstance(facts["recordings"], int):
            raise ValueError("recordings")
        if facts["promoted"] is not True or not isinstance(facts["reason"], str):
            raise ValueError("it was never taken")
        return dict(facts)
    except (ValueError, KeyError, TypeError) as error:
        raise ProfileError(f"{path}: its profile.json is not one of ours ({error!r}); export it again") from error


def _adapter(content: bytes) -> Adapter:
    """Read an adapter from memory; errors as `Adapter.load`."""
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        return Adapter.load(Path(file.name))
