"""The bundle on disk: opened whole or not at all, replaced whole or not at all."""

import errno
import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from whisperfold.runtime import bundle as bundles
from whisperfold.runtime.bundle import Bundle, write_bundle
from whisperfold.runtime.errors import BundleError

MANIFEST = {
    "name": "test",
    "dims": {
        "n_mels": 80,
        "n_audio_ctx": 1500,
        "n_audio_state": 8,
        "n_audio_head": 2,
        "n_audio_layer": 1,
        "n_vocab": 100,
        "n_text_ctx": 16,
        "n_text_state": 8,
        "n_text_head": 2,
        "n_text_layer": 1,
    },
    "window": {"kind": "short", "tail_s": 0.5, "min_s": 1.0, "max_s": 20.0},
    "precision": "fp32",
    "tokens": {
        "sot": 90,
        "eot": 89,
        "transcribe": 91,
        "translate": 92,
        "sot_prev": 93,
        "sot_lm": 94,
        "no_speech": 95,
        "no_timestamps": 96,
        "timestamp_begin": 97,
        "multilingual": False,
        "languages": {},
        "suppress": [1, 2],
        "suppress_begin": [3],
    },
    "alignment_heads": [[0, 1]],
}
FILES = {"encoder.onnx": b"encoder" * 1000, "decoder.onnx": b"decoder" * 1000, "tokenizer.json": b"{}"}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "test", FILES, MANIFEST).path


def edit(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.update(changes)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_written_then_opened(written: Path) -> None:
    bundle = Bundle.open(written)
    assert bundle.manifest["format"] == bundles.FORMAT
    assert bundle.name == "test" and bundle.precision == "fp32"
    assert bundle.dims.n_vocab == 100 and bundle.tokens.suppress == (1, 2) and bundle.window.tail_s == 0.5
    assert bundle.alignment_heads == [(0, 1)]
    assert bundle.size_bytes == 14_002
    assert bundle.read("tokenizer.json") == b"{}"


def test_packed_files_are_read_unpacked(tmp_path: Path) -> None:
    packed = {name: content for name, content in FILES.items() if name != "tokenizer.json"}
    packed["tokenizer.json.gz"] = gzip.compress(b'{"model": 1}')
    bundle = write_bundle(tmp_path / "test", packed, MANIFEST)
    assert bundle.stored("tokenizer.json") == "tokenizer.json.gz"
    assert bundle.read("tokenizer.json") == b'{"model": 1}'
    assert Bundle.open(bundle.path).read("decoder.onnx") == FILES["decoder.onnx"]


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b"cut short" * 100)[:-9]])
def test_damaged_packed_file(tmp_path: Path, content: bytes) -> None:
    bundle = write_bundle(tmp_path / "test", {**FILES, "adapt.onnx.gz": content}, MANIFEST)
    with pytest.raises(BundleError, match="adapt.onnx.gz: not readable"):
        bundle.read("adapt.onnx")


def test_format_1_is_still_read(written: Path) -> None:
    edit(written, format=1)
    assert Bundle.open(written).read("tokenizer.json") == b"{}"


def test_files_may_come_from_paths(tmp_path: Path) -> None:
    (tmp_path / "made.onnx").write_bytes(b"from a path")
    bundle = write_bundle(tmp_path / "test", {**FILES, "encoder.onnx": tmp_path / "made.onnx"}, MANIFEST)
    assert bundle.file("encoder.onnx").read_bytes() == b"from a path"


def test_replacing_leaves_nothing_behind(written: Path) -> None:
    write_bundle(written, {**FILES, "report.html": b"<html>"}, {**MANIFEST, "name": "second"})
    assert Bundle.open(written).name == "second"
    assert sorted(path.name for path in written.parent.iterdir()) == ["test"]


def test_unknown_keys_are_for_newer_readers(written: Path) -> None:
    edit(written, window={**MANIFEST["window"], "later": 1}, later={"x": 1})
    assert Bundle.open(written).window.max_s == 20.0


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle there"):
        Bundle.open(tmp_path / "gone")


def test_missing_manifest(written: Path) -> None:
    (written / "manifest.json").unlink()
    with pytest.raises(BundleError, match="manifest.json: missing"):
        Bundle.open(written)


@pytest.mark.parametrize("text", ["{", "", "\xff"])
def test_damaged_manifest(written: Path, text: str) -> None:
    (written / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match="manifest.json: damaged"):
        Bundle.open(written)


def test_manifest_that_is_no_object(written: Path) -> None:
    (written / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="list, expected a JSON object"):
        Bundle.open(written)


@pytest.mark.parametrize(("version", "message"), [(3, "upgrade whisperfold"), (0, "format 0"), ("1", "format '1'")])
def test_other_format(written: Path, version: object, message: str) -> None:
    edit(written, format=version)
    with pytest.raises(BundleError, match=message):
        Bundle.open(written)


@pytest.mark.parametrize("name", list(FILES))
def test_missing_file(written: Path, name: str) -> None:
    (written / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        Bundle.open(written)


def test_flipped_byte(written: Path) -> None:
    path = written / "decoder.onnx"
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="decoder.onnx: SHA-256"):
        Bundle.open(written)
    assert Bundle.open(written, check=False).name == "test"


def test_truncated_file_is_seen_without_checksums(written: Path) -> None:
    os.truncate(written / "encoder.onnx", 100)
    with pytest.raises(BundleError, match="encoder.onnx: 100 bytes, the manifest says 7000"):
        Bundle.open(written, check=False)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "manifest.json"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="leaves the bundle"):
        write_bundle(tmp_path / "test", {**FILES, name: b""}, MANIFEST)
    assert list(tmp_path.iterdir()) == []


def test_listing_must_be_complete(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    edit(written, files={name: entry for name, entry in manifest["files"].items() if name != "decoder.onnx"})
    with pytest.raises(BundleError, match="does not list decoder.onnx"):
        Bundle.open(written)
    edit(written, files={})
    with pytest.raises(BundleError, match='no "files" section'):
        Bundle.open(written)
    edit(written, files={**manifest["files"], "encoder.onnx": {"bytes": 1}})
    with pytest.raises(BundleError, match="encoder.onnx has no size or checksum"):
        Bundle.open(written)


@pytest.mark.parametrize("section", ["dims", "tokens", "window"])
def test_incomplete_manifest_never_replaces_a_bundle(written: Path, section: str) -> None:
    without = {key: value for key, value in MANIFEST.items() if key != section}
    with pytest.raises(BundleError, match=f'no "{section}" section'):
        write_bundle(written, FILES, without)
    assert Bundle.open(written).name == "test"
    assert [path.name for path in written.parent.iterdir()] == ["test"]


def test_missing_dimension(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="dims: .*n_vocab"):
        dims = {key: value for key, value in MANIFEST["dims"].items() if key != "n_vocab"}
        write_bundle(tmp_path / "test", FILES, {**MANIFEST, "dims": dims})


def test_does_not_overwrite_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write_bundle(tmp_path / "photos", FILES, MANIFEST)
    assert (tmp_path / "photos" / "one.jpg").exists()


@pytest.mark.parametrize("stage", ["fsync", "copyfileobj", "first rename", "second rename"])
def test_full_disk_keeps_the_old_bundle(written: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*args: object) -> None:
        raise full

    rename = os.rename

    def fail_rename(source: Path, target: Path) -> None:
        if ".new-" in str(source) or stage == "first rename":
            raise full
        rename(source, target)

    if stage == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif stage == "copyfileobj":
        monkeypatch.setattr(shutil, "copyfileobj", fail)
    else:
        monkeypatch.setattr("whisperfold.runtime.bundle.exchange", lambda fresh, target: False)
        monkeypatch.setattr(os, "rename", fail_rename)
    source = written.parent / "source.onnx"
    source.write_bytes(b"x" * 100)
    with pytest.raises(BundleError, match="No space left on device"):
        write_bundle(written, {**FILES, "encoder.onnx": source}, {**MANIFEST, "name": "second"})
    monkeypatch.undo()
    assert Bundle.open(written).name == "test"
    assert sorted(path.name for path in written.parent.iterdir()) == ["source.onnx", "test"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_really_full_device(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not written"):
        write_bundle(Path("/dev/full/test"), FILES, MANIFEST)


def test_there_is_a_bundle_at_every_instant(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "rename", lambda *args: pytest.fail("two renames leave an instant without a bundle"))
    write_bundle(written, FILES, {**MANIFEST, "name": "second"})
    assert Bundle.open(written).name == "second"
    assert [path.name for path in written.parent.iterdir()] == ["test"]


def test_file_system_that_cannot_exchange(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whisperfold.runtime.bundle.exchange", lambda fresh, target: False)
    write_bundle(written, FILES, {**MANIFEST, "name": "second"})
    assert Bundle.open(written).name == "second"
    assert [path.name for path in written.parent.iterdir()] == ["test"]
