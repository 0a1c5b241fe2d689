"""The people of a store, whatever the bundle: what outlives it, one process at a time, names, languages."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.cli import main
from whisperfold.runtime.errors import ProfileError
from whisperfold.runtime.people import default_root
from whisperfold.runtime.profiles import ProfileStore

FACTS = {"promoted": True, "reason": "better", "owner": {"before": 10.0, "after": 8.0}, "recordings": 8}


def add(store: ProfileStore) -> None:
    adapter = Adapter({"m.lora_A": np.ones((1, 2), np.float32), "m.lora_B": np.ones((3, 1), np.float32)}, 1, 1.0)
    store.promote(store.add("anna", adapter, {"w": np.ones(4, np.float32)}, FACTS, "<p>report</p>"))


@pytest.fixture
def store(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProfileStore:
    monkeypatch.setattr("whisperfold.runtime.people.LOCK_WAIT_S", 0.1)
    return ProfileStore(bundle, tmp_path / "profiles")


def upgraded(store: ProfileStore, bundle: Bundle) -> ProfileStore:
    """The same device after its bundle was exchanged."""
    files = {**bundle.manifest["files"], "encoder.onnx": {"bytes": 1, "sha256": "0" * 64}}
    return ProfileStore(Bundle(bundle.path, {**bundle.manifest, "files": files}), store.root)


def test_recordings_outlive_the_bundle(
    store: ProfileStore, bundle: Bundle, jfk: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    new = upgraded(store, bundle)
    with new.locked("anna"):
        new.recordings("anna").add(jfk[:16000], "And so")
        new.keep_language("anna", "de")
        add(new)
    new.use("anna")
    assert store.names() == ["anna"] and store.all() == [] and store.language("anna") == "de"
    assert [item.text for item in store.recordings("anna").all()] == ["And so"]
    where = ["--profiles", str(store.root), "--bundle", str(bundle.path)]
    assert main(["profiles", "list", *where]) == 0
    assert "anna  recordings only; `whisperfold enroll anna --resume`" in capsys.readouterr().out
    store.delete("anna")
    assert new.active().name == "anna", "the profile for the other bundle"
    assert main(["profiles", "delete", "anna", "--with-recordings", *where]) == 0
    assert new.active() is None and new.names() == store.names() == []
    assert not [path for path in store.root.rglob("*") if "anna" in str(path.relative_to(store.root))]


def test_delete_keeps_the_home_of_a_profile_for_another_bundle(store: ProfileStore, bundle: Bundle) -> None:
    new = upgraded(store, bundle)
    add(store)
    add(new)
    store.delete("anna")
    assert new.has("anna") and store.home("anna").exists() and store.names() == []


def test_one_process_at_a_time(store: ProfileStore) -> None:
    with store.locked("anna"):
        with pytest.raises(ProfileError, match="another process"), store.locked("anna"):
            pass
    with store.locked("anna"):
        pass


def test_a_lock_is_waited_for(store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whisperfold.runtime.people.LOCK_WAIT_S", 20.0)
    entered = threading.Event()

    def other() -> None:
        with store.locked("anna"):
            entered.set()

    with store.locked("anna"):
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(20.0)
    assert entered.is_set()


def test_a_lock_of_a_deleted_person_is_taken_anew(store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two would hold one that is on no disk any more."""
    monkeypatch.setattr("whisperfold.runtime.people.LOCK_WAIT_S", 20.0)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with store.locked("anna"):
            entered.set()
            leave.wait(20.0)

    with store.locked("anna"):
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.2)
        (store.home("anna") / ".lock").unlink()
    assert entered.wait(20.0)
    monkeypatch.setattr("whisperfold.runtime.people.LOCK_WAIT_S", 0.1)
    with pytest.raises(ProfileError, match="another process"), store.locked("anna"):
        pass
    leave.set()
    thread.join(20.0)


def test_what_blocks_inside_is_not_somebody_elses_lock(store: ProfileStore) -> None:
    with pytest.raises(BlockingIOError), store.locked("anna"):
        raise BlockingIOError


def test_a_disk_that_refuses_is_an_error_of_one_line(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = ProfileStore(bundle, tmp_path / "file")

    def lock() -> None:
        with store.locked("anna"):
            pass

    for refused in (lock, lambda: add(store), lambda: store.use(None), lambda: store.keep_language("anna", "de")):
        with pytest.raises(ProfileError, match="file.*; free space, or mend the permissions"):
            refused()
    assert store.names() == []


def test_one_language_per_person(store: ProfileStore, jfk: np.ndarray) -> None:
    assert store.language("anna") is None and store.keep_language("anna", None) is None
    store.keep_language("anna", "fr")
    assert store.keep_language("anna", "de") == store.keep_language("anna", None) == "de", "nothing is recorded yet"
    store.recordings("anna").add(jfk[:16000], "And so")
    with pytest.raises(ProfileError, match="anna: the recordings are in 'de', not 'fr'; another name"):
        store.keep_language("anna", "fr")
    assert store.keep_language("anna", "de") == store.language("anna") == "de"


@pytest.mark.parametrize("name", ["none", "active"])
def test_reserved_names_say_so(store: ProfileStore, name: str) -> None:
    with pytest.raises(ProfileError, match="active and none are reserved"):
        store.home(name)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65])
def test_names_stay_in_the_store(store: ProfileStore, name: str) -> None:
    with pytest.raises(ProfileError, match="profile name"):
        store.person(name)


def test_default_root_respects_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_root() == tmp_path / "whisperfold" / "profiles"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_root() == Path.home() / ".local/share/whisperfold/profiles"
