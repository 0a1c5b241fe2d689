"""The bundles that ship in the package, by name: tiny.en, base, and others that were made into its folder."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLES = Path(__file__).parent / "bundles"
DEFAULT = "tiny.en"


def default_bundle() -> Path:
    """Return the directory of the bundle that is used unless another is named (a source checkout may lack it)."""
    return BUNDLES / DEFAULT


def packaged_bundles() -> list[str]:
    """Return the names of the bundles in the package, in alphabetical order."""
    return sorted(path.parent.name for path in BUNDLES.glob("*/manifest.json"))


def locate_bundle(path: str | os.PathLike[str]) -> Path:
    """Return the directory of a bundle: the one given, or the packaged one of that name where it is no path."""
    given = Path(path)
    return BUNDLES / given if not given.exists() and str(given) in packaged_bundles() else given
