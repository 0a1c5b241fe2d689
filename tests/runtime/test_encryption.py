"""Sealed recordings and reports: nothing readable on disk, one line for a wrong passphrase, the profile goes on."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime import encryption
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.cli import main
from whisperfold.runtime.errors import ProfileError
from whisperfold.runtime.profiles import ProfileStore

pytest.importorskip("cryptography", reason="the encryption extra is not installed")

PASSPHRASE = "six thick thistle sticks"
TEXT = "Nobody else may read this sentence."
FACTS = {"promoted": True, "reason": "better", "owner": {"before": 10.0, "after": 8.0}, "recordings": 8}


def add(store: ProfileStore) -> None:
    adapter = Adapter({"m.lora_A": np.ones((1, 2), np.float32), "m.lora_B": np.ones((3, 1), np.float32)}, 1, 1.0)
    store.promote(store.add("anna", adapter, {"w": np.ones(4, np.float32)}, FACTS, f"<p>{TEXT}</p>"))


@pytest.fixture
def store(bundle: Bundle, tmp_path: Path) -> ProfileStore:
    return ProfileStore(bundle, tmp_path / "profiles")


@pytest.fixture
def fresh(bundle: Bundle, store: ProfileStore):
    """The same store as another process sees it."""
    return lambda: ProfileStore(bundle, store.folder.parent)


def readable(store: ProfileStore) -> list[Path]:
    """Files in which the sentence, or the sound of it, can be read."""
    found = [path for path in store.root.rglob("*") if path.is_file()]
    return [path for path in found if TEXT.encode() in path.read_bytes() or path.read_bytes()[:4] == b"fLaC"]


def test_nothing_readable_stays_and_all_comes_back(store: ProfileStore, fresh, jfk: np.ndarray) -> None:
    store.recordings("anna").add(jfk[:32000], TEXT)
    add(store)
    assert len(readable(store)) == 3
    store.encrypt("anna", PASSPHRASE)
    assert readable(store) == []
    store.recordings("anna").add(jfk[32000:64000], TEXT)
    add(store)
    assert readable(store) == []

    again = fresh()
    again.unlock("anna", PASSPHRASE)
    kept = again.recordings("anna").all()
    assert [item.text for item in kept] == [TEXT, TEXT]
    assert np.abs(again.recordings("anna").load(kept[1]) - jfk[32000:64000]).max() < 1e-4
    assert [TEXT in again.read_report(profile) for profile in again.versions("anna")] == [True, True]
    again.recordings("anna").remove(kept[0])
    assert len(again.recordings("anna").all()) == 1
    assert len(list((again.home("anna") / "recordings").iterdir())) == 2

    again.decrypt("anna")
    assert len(readable(store)) == 4 and not again.is_encrypted("anna")
    assert fresh().recordings("anna").all()[0].text == TEXT
    assert not list(store.root.rglob("*.sealed"))


def test_without_the_passphrase_the_profile_goes_on(store: ProfileStore, fresh, jfk: np.ndarray) -> None:
    store.encrypt("anna", PASSPHRASE)
    store.recordings("anna").add(jfk[:32000], TEXT)
    add(store)
    again = fresh()
    for forbidden in (
        lambda: again.recordings("anna"),
        lambda: again.read_report(again.get("anna")),
        lambda: again.decrypt("anna"),
        lambda: add(again),
    ):
        with pytest.raises(ProfileError, match="anna: .* encrypted"):
            forbidden()
    with pytest.raises(ProfileError, match="^anna: wrong passphrase; nothing was changed$"):
        again.unlock("anna", PASSPHRASE.upper())
    again.use("anna")
    assert again.active().weights()["w"][0] == 1.0
    again.delete("anna")
    assert again.is_encrypted("anna"), "the recordings still need their key"
    again.delete("anna", with_recordings=True)
    assert not again.home("anna").exists()


def test_a_sealed_file_that_is_read_without_a_key_says_so(store: ProfileStore, jfk: np.ndarray) -> None:
    store.encrypt("anna", PASSPHRASE)
    store.recordings("anna").add(jfk[:32000], TEXT)
    with pytest.raises(ProfileError, match="manifest.jsonl.sealed: encrypted; its passphrase is needed"):
        encryption.PlainFiles().read(store.home("anna") / "recordings" / "manifest.jsonl")


def test_a_kill_while_sealing_goes_on(
    store: ProfileStore, fresh, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in range(3):
        store.recordings("anna").add(jfk[16000 * part :][:16000], TEXT)
    real, written = encryption.SealedFiles.write, []

    def killed(self, path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        real(self, path, content)

    with monkeypatch.context() as patch:
        patch.setattr(encryption.SealedFiles, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            store.encrypt("anna", PASSPHRASE)
    assert readable(store), "half plain, half sealed"
    with pytest.raises(ProfileError, match="wrong passphrase"):
        fresh().encrypt("anna", "another passphrase")
    with store.locked("anna"), pytest.raises(ProfileError, match="another process"):
        fresh().unlock("anna", PASSPHRASE)
    again = fresh()
    again.unlock("anna", PASSPHRASE)
    assert readable(again) == [] and len(again.recordings("anna").all()) == 3


def test_damage_and_exchanged_files_are_found(store: ProfileStore, fresh, jfk: np.ndarray) -> None:
    store.encrypt("anna", PASSPHRASE)
    recordings = store.recordings("anna")
    first, second = recordings.add(jfk[:16000], TEXT), recordings.add(jfk[16000:32000], TEXT)
    one, two = (recordings.folder / f"{item.file}.sealed" for item in (first, second))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    with pytest.raises(ProfileError, match="0001.flac.sealed: damaged"):
        recordings.load(first)
    one.write_bytes(content[:7])
    with pytest.raises(ProfileError, match="0001.flac.sealed: damaged"):
        recordings.load(first)
    vault = store.home("anna") / "vault.json"
    facts = json.loads(vault.read_text())
    short = base64.b64encode(b"short").decode()
    for change in ({"n": 2**30}, {"salt": "?"}, {"kdf": "scrypt", "key": None}):
        vault.write_text(json.dumps(facts | change))
        with pytest.raises(ProfileError, match="vault.json: damaged"):
            fresh().unlock("anna", PASSPHRASE)
    vault.write_text(json.dumps(facts | {"key": short}))
    with pytest.raises(ProfileError, match="wrong passphrase"):
        fresh().unlock("anna", PASSPHRASE)


def test_short_passphrases_and_a_missing_package(store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProfileError, match="passphrase of 3 letters, expected 8 or more"):
        store.encrypt("anna", "abc")
    store.encrypt("anna", "pa\u0308sschen")  # a + diaeresis, as some keyboards send it
    store.unlock("anna", "p\u00e4sschen")
    with pytest.raises(ProfileError, match="already there"):
        encryption.create_vault(store.home("anna"), PASSPHRASE)
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ProfileError, match="pip install 'whisperfold.encryption.'"):
        store.unlock("anna", PASSPHRASE)


def test_commands(
    store: ProfileStore, bundle: Bundle, jfk: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.recordings("anna").add(jfk[:32000], TEXT)
    add(store)
    right, wrong, page = tmp_path / "right", tmp_path / "wrong", tmp_path / "page.html"
    right.write_text(PASSPHRASE + "\n")
    wrong.write_text("something else\n")
    where = ["--profiles", str(store.folder.parent), "--bundle", str(bundle.path)]
    assert main(["profiles", "encrypt", "anna", "--passphrase-file", str(right), *where]) == 0
    assert readable(store) == []
    assert main(["profiles", "show", "anna", *where]) == 0
    assert "report.html.sealed  (encrypted; --report FILE" in capsys.readouterr().out
    show = ["profiles", "show", "anna", "--report", str(page), *where, "--passphrase-file"]
    assert main([*show, str(wrong)]) == 2 and not page.exists()
    assert capsys.readouterr().err == "whisperfold: anna: wrong passphrase; nothing was changed\n"
    assert main([*show, str(right)]) == 0 and TEXT in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    assert main(["profiles", "use", "anna", *where]) == 0
    assert main(["profiles", "decrypt", "anna", *where]) == 2  # nobody there to ask
    assert "needs a terminal; or give --passphrase-file" in capsys.readouterr().err
    assert main(["profiles", "decrypt", "anna", "--passphrase-file", str(tmp_path / "gone"), *where]) == 2
    assert main(["profiles", "decrypt", "anna", "--passphrase-file", str(right), *where]) == 0
    assert len(readable(store)) == 3
    assert main(["profiles", "encrypt", "zoe", "--passphrase-file", str(right), *where]) == 2
    assert "no profile 'zoe'" in capsys.readouterr().err


def test_files_of_one_name_cannot_change_places(store: ProfileStore, bundle: Bundle) -> None:
    """The report of a version that was refused is not that of the one in use."""
    store.encrypt("anna", PASSPHRASE)
    add(store)
    add(store)
    one, two = (profile.folder / "report.html.sealed" for profile in store.versions("anna"))
    one.write_bytes(two.read_bytes())
    with pytest.raises(ProfileError, match="report.html.sealed: damaged"):
        store.read_report(store.versions("anna")[0])
    assert TEXT in store.read_report(store.versions("anna")[1])


def test_reports_of_all_bundles_are_sealed(store: ProfileStore, bundle: Bundle) -> None:
    files = {**bundle.manifest["files"], "encoder.onnx": {"bytes": 1, "sha256": "0" * 64}}
    other = ProfileStore(Bundle(bundle.path, {**bundle.manifest, "files": files}), store.root)
    add(store)
    add(other)
    assert len(readable(store)) == 2
    store.encrypt("anna", PASSPHRASE)
    assert readable(store) == []
    other.unlock("anna", PASSPHRASE)
    assert TEXT in other.read_report(other.get("anna"))


def test_a_full_disk_while_sealing_is_an_error_of_one_line(
    store: ProfileStore, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.recordings("anna").add(jfk[:16000], TEXT)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encryption, "write_atomic", full)
        with pytest.raises(ProfileError, match="vault.json: No space left on device; free space"):
            store.encrypt("anna", PASSPHRASE)
    monkeypatch.setattr(encryption.SealedFiles, "write", full)
    with pytest.raises(ProfileError, match="No space left on device; free space"):
        store.encrypt("anna", PASSPHRASE)
