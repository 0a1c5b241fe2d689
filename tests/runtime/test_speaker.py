"""Whose voice: named, none, the one in use; missing or damaged; a profile is the bundle with its weights in it."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime import cli, speaker
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BundleError, ProfileError
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.session import DEFAULT_PROVIDERS
from whisperfold.runtime.speaker import Speaker, open_transcriber
from whisperfold.runtime.transcribe import Transcriber


def open_for(store: ProfileStore, bundle: Bundle, speaker: str | None = None) -> Transcriber:
    return open_transcriber(bundle.path, speaker, store.folder.parent, 2)


def damage(store: ProfileStore) -> None:
    with (store.get("anna").folder / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")


def test_the_default_is_the_one_in_use(voices: ProfileStore, bundle: Bundle) -> None:
    assert open_for(voices, bundle).profile is None
    voices.use("anna")
    found = open_for(voices, bundle).profile
    assert found is not None and (found.name, found.version) == ("anna", "0001")
    assert open_for(voices, bundle, "none").profile is None
    voices.use(None)
    named = open_for(voices, bundle, "anna").profile
    assert named is not None and named.name == "anna"


def test_a_profile_is_the_bundle_with_its_weights_in_it(
    voices: ProfileStore,
    bundle: Bundle,
    other_voice: tuple[Adapter, dict[str, np.ndarray]],
    transcriber: Transcriber,
    jfk: np.ndarray,
    tmp_path: Path,
) -> None:
    folded = tmp_path / "folded"
    shutil.copytree(bundle.path, folded)
    places = {name: at for part in bundle.manifest["adapt"]["matrices"] for name, at in part["tensors"].items()}
    for name, array in other_voice[1].items():
        with (folded / places[name]["file"]).open("r+b") as file:
            file.seek(places[name]["offset"])
            file.write(array.tobytes())
    expected = Transcriber.open(folded, threads=2, check=False).transcribe(jfk, word_timestamps=True)
    found = open_for(voices, bundle, "anna").transcribe(jfk, word_timestamps=True)
    assert found == expected
    assert found != transcriber.transcribe(jfk, word_timestamps=True) and "your country" in found.text


def test_a_named_profile_must_be_there(voices: ProfileStore, bundle: Bundle) -> None:
    with pytest.raises(ProfileError, match="no profile 'zoe'"):
        open_for(voices, bundle, "zoe")
    damage(voices)
    with pytest.raises(ProfileError, match="damaged"):
        open_for(voices, bundle, "anna")


def test_a_damaged_profile_in_use_is_told_and_left_out(
    voices: ProfileStore, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    voices.use("anna")
    damage(voices)
    with caplog.at_level(logging.WARNING):
        assert open_for(voices, bundle).profile is None
    (record,) = caplog.records
    assert "used as it is" in record.message and "rollback anna" in record.message


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("active", b"\xff\xfe"),
        ("active", b"\x00\x00"),
        ("active", b"../x"),
        ("anna/current", b"\xff"),
        ("anna/current", b"\x00"),
        ("anna/current", b"0009"),
        ("anna/versions/0001/profile.json", b"["),
        ("anna/versions/0001/profile.json", b"[]"),
        ("anna/versions/0001/profile.json", b"{}"),
        ("anna/versions/0001/weights.safetensors", b""),
    ],
)
def test_any_damage_is_told_and_left_out(
    voices: ProfileStore, bundle: Bundle, file: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    voices.use("anna")
    (voices.folder / file).write_bytes(content)
    anyone, named = Speaker(voices), Speaker(voices, "anna")
    with caplog.at_level(logging.WARNING):
        assert anyone.load(bundle, 1, DEFAULT_PROVIDERS).profile is None
    assert "is left out" in caplog.text
    if file != "active":
        with pytest.raises(ProfileError):
            named.load(bundle, 1, DEFAULT_PROVIDERS)


def test_weights_that_do_not_fit_are_left_out_but_a_broken_bundle_is_an_error(
    voices: ProfileStore, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = voices.get("anna").adapter()
    wrong = {"no.such.weight": np.zeros(3, np.float32)}
    voices.promote(voices.add("anna", adapter, wrong, voices.get("anna").facts, ""))
    voices.use("anna")
    assert open_for(voices, bundle).profile is None
    with pytest.raises(BundleError, match="another bundle"):
        open_for(voices, bundle, "anna")
    broken = tmp_path / "broken"
    shutil.copytree(bundle.path, broken)
    (broken / "encoder.onnx").write_bytes(bytes(bundle.file("encoder.onnx").stat().st_size))
    opened, count = Bundle.open(broken, check=False), len(caplog.records)
    with pytest.raises(BundleError, match="onnxruntime cannot load"):
        Speaker(ProfileStore(opened, tmp_path / "nobody")).load(opened, 1, DEFAULT_PROVIDERS)
    assert len(caplog.records) == count


def test_in_use_changes_with_the_files(voices: ProfileStore) -> None:
    anyone, named = Speaker(voices), Speaker(voices, "anna")
    assert anyone.in_use() == ("", "") and named.in_use() == ("anna", "0001")
    voices.use("anna")
    assert anyone.in_use() == ("anna", "0001")
    anna = voices.get("anna")
    voices.promote(voices.add("anna", anna.adapter(), anna.weights(), anna.facts, ""))
    assert anyone.in_use() == named.in_use() == ("anna", "0002")
    voices.delete("anna")
    assert anyone.in_use() == ("", "") and named.in_use() == ("anna", "")
    (voices.folder / "active").write_bytes(b"\x00\xff")
    assert anyone.in_use() == ("", "") and Speaker(voices, "none").in_use() == ("", "")


def test_on_the_command_line(
    voices: ProfileStore,
    bundle: Bundle,
    transcriber: Transcriber,
    jfk: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = tmp_path / "clip.wav"
    sf.write(clip, jfk[: 16_000 * 5], 16_000, subtype="FLOAT")
    where = ["--bundle", str(bundle.path), "--profiles", str(voices.folder.parent), "--threads", "2"]

    def heard(*arguments: str) -> str:
        assert cli.main(["transcribe", str(clip), *where, *arguments]) == 0
        return capsys.readouterr().out.strip()

    plain = transcriber.transcribe(jfk[: 16_000 * 5]).text
    assert heard() == plain
    anna = heard("--speaker", "anna")
    assert anna and anna != plain
    voices.use("anna")
    assert heard() == anna and heard("--speaker", "none") == plain
    assert cli.main(["transcribe", str(clip), *where, "--speaker", "zoe"]) == 2
    assert "no profile 'zoe' for this bundle, there are: anna" in capsys.readouterr().err
    damage(voices)
    assert heard() == plain
    assert cli.main(["transcribe", str(clip), *where]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "the profile in use is left out" in line


def test_listen_hears_with_the_profile(
    voices: ProfileStore, bundle: Bundle, jfk: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(
        speaker, "open_transcriber", lambda *given: opened.append(open_transcriber(*given)) or opened[0]
    )
    clip = tmp_path / "clip.wav"
    sf.write(clip, jfk[:16_000], 16_000)
    where = ["--bundle", str(bundle.path), "--profiles", str(voices.folder.parent), "--speaker", "anna"]
    assert cli.main(["listen", "--input", str(clip), "--as-fast-as-possible", "--format", "txt", *where]) == 0
    assert [found.profile.name for found in opened] == ["anna"]
