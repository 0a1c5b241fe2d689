"""The store: versions that never change, switches in one rename, private files, a kill at every stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.cli import main
from whisperfold.runtime.errors import BundleError, ProfileError
from whisperfold.runtime.files import private_dir, write_atomic, write_synced
from whisperfold.runtime.profile import Profile
from whisperfold.runtime.profiles import KEPT_VERSIONS, ProfileStore
from whisperfold.runtime.session import Engine

REPOSITORY = Path(__file__).parents[2]
FACTS = {"promoted": True, "reason": "better", "owner": {"before": 10.0, "after": 8.0}, "recordings": 8}


def adapter() -> Adapter:
    return Adapter({"m.lora_A": np.ones((1, 2), np.float32), "m.lora_B": np.ones((3, 1), np.float32)}, 1, 1.0)


def add(store: ProfileStore, name: str = "anna", value: float = 1.0, promoted: bool = True):
    weights = {"w": np.full(4, value, np.float32)}
    profile = store.add(name, adapter(), weights, {**FACTS, "promoted": promoted}, "<p>report</p>")
    if promoted:
        store.promote(profile)
    return profile


@pytest.fixture
def store(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProfileStore:
    monkeypatch.setattr("whisperfold.runtime.people.LOCK_WAIT_S", 0.1)
    return ProfileStore(bundle, tmp_path / "profiles")


def test_use_show_rollback_delete(store: ProfileStore) -> None:
    add(store)
    add(store, "bert", 5.0)
    add(store, value=2.0)
    assert [p.name for p in store.all()] == ["anna", "bert"] == store.names()
    assert store.active() is None
    store.use("anna")
    assert store.active().weights()["w"][0] == 2.0
    assert store.rollback("anna").weights()["w"][0] == 1.0
    assert store.active().version == "0001"
    with pytest.raises(ProfileError, match="no earlier version"):
        store.rollback("anna")
    store.delete("anna")
    assert store.active() is None and store.names() == ["bert"]


def test_a_refused_version_is_kept_but_not_current(store: ProfileStore) -> None:
    add(store, value=1.0)
    refused = add(store, value=9.0, promoted=False)
    assert store.get("anna").weights()["w"][0] == 1.0
    assert refused.report.read_text() == "<p>report</p>"
    assert [p.version for p in store.versions("anna")] == ["0001", "0002"]


def test_old_versions_go_but_never_the_current_one(store: ProfileStore) -> None:
    for value in range(KEPT_VERSIONS + 3):
        add(store, value=float(value))
    assert len(store.versions("anna")) == KEPT_VERSIONS
    assert store.get("anna").weights()["w"][0] == KEPT_VERSIONS + 2


@pytest.fixture
def liberal_umask() -> Iterator[None]:
    """Whatever a program makes without care is for everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def everything(store: ProfileStore, jfk: np.ndarray) -> None:
    """All that a person may leave: recordings, checkpoints, versions, what killed runs left, the lock."""
    with store.locked("anna"):
        store.recordings("anna").add(jfk[:16000], "And so")
        write_atomic(private_dir(store.person("anna") / "state") / "all.safetensors", b"checkpoint")
        add(store)
        add(store, value=2.0)
    store.use("anna")
    write_synced(store.folder / ".active.new-1", b"anna")
    write_synced(store.person("anna") / ".current.new-1", b"0002")
    private_dir(store.person("anna") / "versions" / ".0003.new-1")


def test_only_the_owner_may_read(liberal_umask: None, store: ProfileStore, jfk: np.ndarray) -> None:
    everything(store, jfk)
    store.encrypt("anna", "eight letters or more")
    seen = {path.name for path in store.root.rglob("*")}
    assert {".lock", "active", "current", "vault.json", "all.safetensors", "0001.flac.sealed"} <= seen
    for path in [store.folder.parent, *store.folder.parent.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_recordings_outlive_a_profile_unless_named(store: ProfileStore, jfk: np.ndarray) -> None:
    everything(store, jfk)
    store.delete("anna")
    left = sorted(path.name for path in store.home("anna").rglob("*"))
    assert left == [".lock", "0001.flac", "manifest.jsonl", "recordings"] and not store.person("anna").exists()
    assert not store.has("anna") and store.names() == ["anna"]
    store.delete("anna", with_recordings=True)
    with pytest.raises(ProfileError, match="no profile 'anna'"):
        store.delete("anna")


def test_delete_leaves_nothing_of_a_person(store: ProfileStore, jfk: np.ndarray) -> None:
    everything(store, jfk)
    add(store, "bert")
    store.delete("anna", with_recordings=True)
    assert store.active() is None and store.names() == ["bert"]
    for path in store.root.rglob("*"):
        assert "anna" not in str(path.relative_to(store.root))
        assert path.is_dir() or b"anna" not in path.read_bytes(), path


def test_delete_waits_for_an_enrollment(store: ProfileStore) -> None:
    add(store)
    with store.locked("anna"), pytest.raises(ProfileError, match="being enrolled by another process"):
        store.delete("anna", with_recordings=True)
    assert store.has("anna")


def test_what_the_disk_does_not_take_leaves_the_old_one(store: ProfileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("whisperfold.runtime.files.os.fsync", lambda handle: (_ for _ in ()).throw(full))
    for change in (lambda: add(store, value=2.0), lambda: store.use("anna")):
        with pytest.raises(ProfileError, match="not written .No space left"):
            change()
    assert store.get("anna").version == "0001" and store.active() is None
    assert not [path for path in store.root.rglob("*") if ".new-" in path.name]


def test_a_bundle_is_its_weights(bundle: Bundle, tmp_path: Path) -> None:
    add(ProfileStore(bundle, tmp_path))
    measured = Bundle(bundle.path, {**bundle.manifest, "measured": {"wer": 1.0}, "name": "other"})
    assert ProfileStore(measured, tmp_path).has("anna")
    for name in ("encoder.onnx", "decoder.onnx", "tokenizer.json"):
        files = {**bundle.manifest["files"], bundle.stored(name): {"bytes": 1, "sha256": "0" * 64}}
        assert not ProfileStore(Bundle(bundle.path, {**bundle.manifest, "files": files}), tmp_path).names()


def test_damage_is_found(store: ProfileStore) -> None:
    profile = add(store)
    with (profile.folder / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    with pytest.raises(ProfileError, match="checksum"):
        store.use("anna")
    (profile.folder / "adapter.safetensors").write_bytes(b"no")
    with pytest.raises(ProfileError, match="not an adapter"):
        profile.adapter()
    (profile.folder / "profile.json").write_text("{")
    with pytest.raises(ProfileError, match="damaged profile"):
        store.get("anna")
    with pytest.raises(ProfileError, match="no profile 'zoe'"):
        store.get("zoe")


def test_weights_of_another_bundle_are_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="another bundle"):
        Engine(bundle, 1, overrides={"no.such.weight": np.zeros(3, np.float32)})


def test_refused_versions_do_not_push_out_what_a_rollback_takes(store: ProfileStore) -> None:
    add(store, value=1.0)
    add(store, value=2.0)
    for _ in range(KEPT_VERSIONS + 3):
        add(store, value=9.0, promoted=False)
    kept = [profile.version for profile in store.versions("anna")]
    assert kept == ["0001", "0002", "0006", "0007", "0008", "0009"]
    assert store.rollback("anna").weights()["w"][0] == 1.0


def test_rollback_and_delete_wait_for_their_turn(store: ProfileStore) -> None:
    add(store, value=1.0)
    add(store, value=2.0)
    with store.locked("anna"), pytest.raises(ProfileError, match="another process"):
        store.rollback("anna")
    assert store.get("anna").version == "0002"


def test_use_beside_delete_names_nobody_who_is_gone(
    store: ProfileStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store)
    real = Profile.weights

    def slow(profile: Profile) -> dict[str, np.ndarray]:
        found = real(profile)
        ProfileStore(bundle, store.root).delete("anna")
        return found

    monkeypatch.setattr(Profile, "weights", slow)
    with pytest.raises(ProfileError, match="no profile 'anna'"):
        store.use("anna")
    assert store.active_name() == ""


@pytest.mark.parametrize("file", ["current", "versions/0001/profile.json"])
@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{}", b""])
def test_one_damaged_person_does_not_hide_the_others(
    store: ProfileStore, bundle: Bundle, capsys: pytest.CaptureFixture[str], file: str, content: bytes
) -> None:
    facts = {**FACTS, "promoted": True}
    for name in ("anna", "bert"):
        store.promote(store.add(name, adapter(), {"w": np.ones(4, np.float32)}, facts, ""))
    store.use("anna")
    (store.person("anna") / file).write_bytes(content)
    assert store.names() == ["anna", "bert"] and "bert" in [profile.name for profile in store.all()]
    where = ["--profiles", str(store.root), "--bundle", str(bundle.path)]
    assert main(["profiles", "list", *where]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("* anna  damaged; `whisperfold profiles rollback anna`")
    assert second.startswith("  bert  0001  ") and "WER 10.0 -> 8.0 %, 8 recordings" in second
    assert main(["profiles", "list", "--json", *where]) == 0


KILLED = """
import os, sys
import whisperfold.runtime.files as files, whisperfold.runtime.profiles as profiles
from whisperfold.runtime.bundle import Bundle
sys.path.insert(0, {tests!r})
from test_profiles import ProfileStore, add
module, name, call = sys.argv[2:5]
target = {{"files": files, "profiles": profiles, "os": os}}[module]
real, calls = getattr(target, name), [0]
def fatal(*args, **kwargs):
    if calls[0] == int(call):
        if name == "write_synced":
            open(args[0], "wb").write(args[1][: len(args[1]) // 2])   # power fails in the middle of a file
        os._exit(9)
    calls[0] += 1
    return real(*args, **kwargs)
store = ProfileStore(Bundle.open(sys.argv[5], check=False), __import__("pathlib").Path(sys.argv[1]))
setattr(target, name, fatal)
add(store, value=2.0)
store.use("anna")
"""
STAGES = [
    ("os", "mkdir", 0),  # before anything
    ("profiles", "write_synced", 0),  # in the weights
    ("profiles", "write_synced", 3),  # in profile.json
    ("os", "rename", 0),  # before the version appears
    ("os", "rename", 1),  # the version is there, before `current`
    ("files", "write_synced", 0),  # in `current`
    ("os", "rename", 2),  # before `active`
    ("files", "write_synced", 1),  # in `active`
    ("profiles", "write_synced", 99),  # not killed at all
]


@pytest.mark.parametrize(("module", "name", "call"), STAGES)
def test_a_kill_leaves_the_old_profile_or_the_new_one(
    store: ProfileStore, bundle_path: Path, module: str, name: str, call: int
) -> None:
    add(store, value=1.0)
    store.use("anna")
    code = KILLED.format(tests=str(Path(__file__).parent))
    arguments = [str(store.folder.parent), module, name, str(call), str(bundle_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY / ".links", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == (0 if call == 99 else 9), done.stderr
    assert store.active().weights()["w"][0] in (1.0, 2.0)
    if call == 99:
        assert store.active().weights()["w"][0] == 2.0
    else:
        with store.locked("anna"):  # and the next one works, over the leftovers
            add(store, value=3.0)
        store.use("anna")
        assert store.active().weights()["w"][0] == 3.0
        assert not [path for path in store.folder.rglob("*") if ".new-" in path.name]
    assert json.loads((store.active().folder / "profile.json").read_text())["name"] == "anna"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    write_atomic(private_dir(tmp_path / "a" / "b") / "active", b"anna\n")
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "active"):
        assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
