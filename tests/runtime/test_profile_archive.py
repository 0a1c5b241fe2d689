"""A profile as one file: there and back, and all that is not such a file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime import profile_archive
from whisperfold.runtime.adapter import Adapter, modules
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.cli import main
from whisperfold.runtime.errors import BundleError, ProfileError
from whisperfold.runtime.profile_archive import export_profile, import_profile
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.transcribe import Transcriber

FACTS = {
    "promoted": True,
    "reason": "better",
    "owner": {"before": 10.0, "after": 8.0},
    "canary": {"before": 5.0, "after": 5.0},
    "recordings": 8,
}


def add(store: ProfileStore, adapter: Adapter, weights: dict[str, np.ndarray]) -> None:
    store.promote(store.add("anna", adapter, weights, FACTS, "<p>what was said</p>"))


@pytest.fixture(scope="module")
def adapter(bundle: Bundle) -> Adapter:
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    made, rng = Adapter.create(bundle, 2), np.random.default_rng(0)
    for module in modules(bundle):
        name = f"{module.name}.lora_B"
        made.tensors[name] = rng.normal(0, 0.01, made.tensors[name].shape).astype(np.float32)
    return made


@pytest.fixture
def archive(bundle: Bundle, adapter: Adapter, tmp_path: Path) -> Path:
    """An export of another device."""
    store = ProfileStore(bundle, tmp_path / "there")
    add(store, adapter, adapter.fold(bundle))
    export_profile(store, "anna", tmp_path / "anna.zip")
    return tmp_path / "anna.zip"


@pytest.fixture
def here(bundle: Bundle, tmp_path: Path) -> ProfileStore:
    return ProfileStore(bundle, tmp_path / "here")


def change(path: Path, **files: bytes | None) -> None:
    """Write an archive anew with other contents; None leaves a file out, "x" names one beside the three."""
    with zipfile.ZipFile(path) as old:
        content: dict[str, bytes | None] = {name: old.read(name) for name in old.namelist()}
    for key, data in files.items():
        content[{"facts": "profile.json", "weights": "weights.safetensors", "adapter": "adapter.safetensors"}[key]] = (
            data
        )
    with zipfile.ZipFile(path, "w") as new:
        for name, data in content.items():
            if data is not None:
                new.writestr(name, data)


def facts_of(path: Path) -> dict:
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("profile.json"))


def test_an_export_holds_no_recordings_and_no_texts(here: ProfileStore, adapter: Adapter, tmp_path: Path) -> None:
    add(here, adapter, {"w": np.ones(3, np.float32)})
    export_profile(here, "anna", tmp_path / "anna.zip")
    with zipfile.ZipFile(tmp_path / "anna.zip") as archive:
        assert set(archive.namelist()) == {"profile.json", "adapter.safetensors", "weights.safetensors"}
        assert not [name for name in archive.namelist() if b"what was said" in archive.read(name)]
    assert (tmp_path / "anna.zip").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ProfileError, match="not written"):
        export_profile(here, "anna", tmp_path / "gone" / "anna.zip")


def test_there_and_back(
    archive: Path, here: ProfileStore, bundle: Bundle, jfk: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--profiles", str(here.folder.parent), "--bundle", str(bundle.path)]
    assert main(["profiles", "import", str(archive), *where]) == 0
    assert main(["profiles", "import", str(archive), "--name", "bert", *where]) == 0
    assert here.names() == ["anna", "bert"] and here.active() is None
    there = ProfileStore(bundle, archive.parent / "there").get("anna")
    for name, array in here.get("bert").weights().items():
        np.testing.assert_array_equal(array, there.weights()[name])
    assert here.get("bert").adapter().rank == 2
    here.use("bert")
    texts = [
        Transcriber.open(bundle.path, threads=2, check=False, profile=profile).transcribe(jfk).text
        for profile in (there, here.active())
    ]
    assert texts[0] == texts[1]
    capsys.readouterr()
    assert main(["profiles", "import", str(archive), *where]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ProfileError, match="there is a profile 'anna' already; choose another --name"):
        import_profile(here, bundle, archive, "anna")
    with pytest.raises(ProfileError, match="profile name"):
        import_profile(here, bundle, archive, "../anna")


def test_what_is_not_such_a_file(archive: Path, here: ProfileStore, bundle: Bundle, tmp_path: Path) -> None:
    facts = facts_of(archive)
    dump = json.dumps
    cases = [
        ({"weights": b"other"}, "damaged .checksum of the weights"),
        ({"adapter": b"other"}, "not an adapter"),
        ({"adapter": None}, "expected what `whisperfold profiles export` writes"),
        ({"facts": dump({**facts, "bundle": "0" * 16}).encode()}, "for another bundle than"),
        ({"facts": dump({**facts, "owner": {}}).encode()}, "not one of ours"),
        ({"facts": dump({**facts, "promoted": False}).encode()}, "it was never taken"),
        ({"facts": b"[]"}, "not one of ours"),
    ]
    original = archive.read_bytes()
    for files, message in cases:
        archive.write_bytes(original)
        change(archive, **files)
        with pytest.raises(ProfileError, match=message):
            import_profile(here, bundle, archive, "anna")
    (tmp_path / "text.zip").write_text("no zip")
    for path, message in ((tmp_path / "text.zip", "not readable"), (tmp_path / "gone.zip", "not readable")):
        with pytest.raises(ProfileError, match=message):
            import_profile(here, bundle, path, "anna")
    archive.write_bytes(original[:-500] + b"\0" * 10 + original[-490:])
    with pytest.raises(ProfileError):
        import_profile(here, bundle, archive, "anna")
    assert not here.names() and not here.folder.exists()


def test_names_that_lead_out_of_the_store(archive: Path, here: ProfileStore, bundle: Bundle, tmp_path: Path) -> None:
    for name in ("../../evil.txt", "/tmp/evil.txt", "versions/evil"):
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr(name, "evil")
        with pytest.raises(ProfileError, match="holds 'profile.json'.*expected"):
            import_profile(here, bundle, archive, "anna")
    assert not here.names() and not list(tmp_path.rglob("evil*"))


def test_a_zip_bomb(archive: Path, here: ProfileStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_archive, "MAX_BYTES", 1 << 20)
    with pytest.raises(ProfileError, match="MB unpacked, expected at most 1"):
        import_profile(here, bundle, archive, "anna")


def test_weights_that_the_bundle_does_not_take(here: ProfileStore, bundle: Bundle, adapter: Adapter, tmp_path) -> None:
    add(here, adapter, {"no.such.weight": np.ones(3, np.float32)})
    export_profile(here, "anna", tmp_path / "anna.zip")
    with pytest.raises(BundleError, match="another bundle"):
        import_profile(here, bundle, tmp_path / "anna.zip", "bert")
    assert here.names() == ["anna"]
