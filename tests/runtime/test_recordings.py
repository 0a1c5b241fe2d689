"""Recordings: what is wrong with them, where they are kept, where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime.encryption import PlainFiles
from whisperfold.runtime.errors import EnrollmentError
from whisperfold.runtime.recording_checks import check_recording, check_sound, likeness
from whisperfold.runtime.recordings import RecordingStore, label, read_prompts, read_source
from whisperfold.runtime.text_style import in_style_of
from whisperfold.runtime.transcribe import Transcriber

TEXT = "And so my fellow Americans ask not what your country can do for you, ask what you can do for your country."
NOISE = np.random.default_rng(0).normal(0.0, 0.02, 5 * 16000).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x: x[:8000], "0.5 s long, expected 0.8 to 20 s"),
        (lambda x: np.tile(x, 2), "22.0 s long"),
        (lambda x: np.zeros_like(x), "no speech"),
        (lambda x: NOISE, "no speech"),
        (lambda x: x * np.float32(0.012), "too quiet"),
        (lambda x: np.clip(x * 12, -1, 1), "clipped"),
        (lambda x: x + np.random.default_rng(0).normal(0, 0.12, x.size).astype(np.float32), "too noisy"),
        (lambda x: x, ""),
    ],
)
def test_what_is_wrong_with_the_sound(jfk: np.ndarray, change, problem: str) -> None:
    assert problem in check_sound(change(jfk), 20.0).problem
    assert bool(check_sound(change(jfk), 20.0).problem) == bool(problem)


def test_noise_is_worth_a_warning(jfk: np.ndarray) -> None:
    noisy = jfk + np.random.default_rng(0).normal(0, 0.035, jfk.size).astype(np.float32)
    check = check_sound(noisy, 20.0)
    assert not check.problem and "noisy" in check.warning
    assert check_sound(jfk, 20.0).snr_db > check.snr_db


def test_a_reading_must_match_its_prompt_but_an_accent_may_err(transcriber: Transcriber, jfk: np.ndarray) -> None:
    good = check_recording(jfk, TEXT, transcriber)
    assert not good.problem and good.likeness > 0.9 and "country" in good.heard
    other = check_recording(jfk, "Please turn the kitchen lights on at half past nine.", transcriber)
    assert "read it again" in other.problem
    assert "no words" in check_recording(jfk, " ... ", transcriber).problem
    assert likeness("we call it bear", "Weak hole it bare.") > 0.5
    assert likeness("Nothing is worse than an unusual noise.", "He bought two tickets for the theatre.") < 0.5


def test_recordings_are_kept_private_and_once(tmp_path: Path, jfk: np.ndarray) -> None:
    store = RecordingStore(tmp_path / "recordings")
    assert store.all() == []
    first = store.add(jfk, TEXT)
    assert store.add(jfk, TEXT) is None
    second = store.add(jfk[:32000], "And so", "import")
    assert [item.text for item in store.all()] == [TEXT, "And so"]
    assert np.abs(store.load(first) - jfk).max() < 1e-4 and first.duration_s == 11.0
    for path in [store.folder, *store.folder.iterdir()]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    store.remove(first)
    assert store.all() == [second] and not (store.folder / first.file).exists()
    assert store.add(jfk, TEXT).file == "0003.flac"
    (store.folder / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(EnrollmentError, match="damaged"):
        store.all()


def test_import_from_a_manifest_and_from_folders(tmp_path: Path, jfk: np.ndarray) -> None:
    sf.write(tmp_path / "a.wav", jfk[:16000], 16000)
    sf.write(tmp_path / "b.flac", jfk[:32000], 16000)
    (tmp_path / "a.txt").write_text("And so\n")
    assert [(c.name, c.text, c.samples.size) for c in read_source(tmp_path)] == [
        ("a.wav", "And so", 16000),
        ("b.flac", None, 32000),
    ]
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"audio": "b.flac", "text": "my fellow"}) + "\n\n")
    assert [c.text for c in read_source(manifest)] == ["my fellow"] == [c.text for c in read_source(tmp_path)]
    manifest.write_text('{"text": "no audio"}\n')
    with pytest.raises(EnrollmentError, match=r"list.jsonl:1.*expected"):
        list(read_source(manifest))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EnrollmentError, match="no audio files"):
        list(read_source(tmp_path / "empty"))
    with pytest.raises(EnrollmentError, match="no such file"):
        list(read_source(tmp_path / "gone"))


def test_unlabelled_speech_gets_the_models_own_text_where_it_is_sure(transcriber: Transcriber, jfk: np.ndarray) -> None:
    from whisperfold.runtime.recordings import Candidate

    found = label(Candidate("clip", jfk, None), transcriber)
    assert found and found[0].kind == "self" and "country" in found[0].text
    assert label(Candidate("noise", NOISE, None), transcriber) == []


def test_lower_case_transcripts_take_the_models_style_not_its_words() -> None:
    heard = "We hole it, Bear. And Mr. Brown?"
    assert in_style_of("we call it bear and mister brown", heard) == "We call it, Bear. And Mr. Brown?"
    assert in_style_of("We call it bear.", heard) == "We call it bear."
    assert in_style_of("WE CALL IT BEAR", "We call it bear.") == "We call it bear."
    assert in_style_of("we call it bear", "") == "we call it bear"


def test_prompts_are_sentences() -> None:
    prompts = read_prompts("en")
    assert len(prompts) == len(set(prompts)) >= 50
    assert all(prompt[0].isupper() and prompt[-1] in ".?" for prompt in prompts)
    with pytest.raises(EnrollmentError, match="no prompts for 'tlh', there are: en"):
        read_prompts("tlh")


def test_the_sound_goes_before_its_line(tmp_path: Path, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordingStore(tmp_path / "recordings")
    first = store.add(jfk[:16000], "And so")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PlainFiles, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            store.remove(first)
    assert not (store.folder / first.file).exists(), "no sound stays that no line names"
    with pytest.raises(EnrollmentError, match="0001.flac: No such file"):
        store.load(store.all()[0])
    store.remove(first)
    assert store.all() == []


def test_a_full_disk_is_an_error_of_one_line(tmp_path: Path, jfk: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RecordingStore(tmp_path / "recordings")
    first = store.add(jfk[:16000], "And so")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PlainFiles, "write", full)
    for change in (lambda: store.add(jfk[:32000], "And so my"), lambda: store.remove(first)):
        with pytest.raises(EnrollmentError, match="recordings: No space left on device; free space"):
            change()
    monkeypatch.setattr(PlainFiles, "read", full)
    with pytest.raises(EnrollmentError, match="No space left"):
        store.all()
