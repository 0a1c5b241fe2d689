"""Packaged bundles by name; a directory of that name goes before."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisperfold.runtime import packaged
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BundleError
from whisperfold.runtime.packaged import default_bundle, locate_bundle, packaged_bundles


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one bundle, and the working directory beside it."""
    bundles = tmp_path / "package" / "bundles"
    for name in ("small", "unfinished"):
        (bundles / name).mkdir(parents=True)
    (bundles / "small" / "manifest.json").write_text("{}")
    monkeypatch.setattr(packaged, "BUNDLES", bundles)
    monkeypatch.chdir(tmp_path)
    return bundles / "small"


def test_the_default_is_package_data() -> None:
    assert default_bundle().parts[-2:] == ("bundles", "tiny.en")


def test_a_name_is_looked_up_in_the_package(small: Path) -> None:
    assert packaged_bundles() == ["small"]
    assert locate_bundle("small") == small
    assert locate_bundle("unfinished") == Path("unfinished")


def test_a_directory_goes_before_a_name(small: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    assert locate_bundle("small") == Path("small")
    assert locate_bundle(small) == small


def test_what_is_neither_says_which_names_there_are(small: Path) -> None:
    with pytest.raises(BundleError, match="none-such: no bundle there; .*package's: small"):
        Bundle.open("none-such")


def test_the_packaged_bundle_opens_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (default_bundle() / "manifest.json").is_file():
        pytest.skip("this checkout has no packaged bundle")
    monkeypatch.chdir(tmp_path)
    assert Bundle.open("tiny.en", check=False).path == default_bundle()
