"""Manifests and folders of audio, and each message about a bad one."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from whisperfold.compiler.manifests import read_items
from whisperfold.runtime.errors import CompileError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name in ("clips/a.wav", "clips/b.flac"):
        soundfile.write(tmp_path / name, np.zeros(1600, np.float32), 16_000)
    return tmp_path


def manifest(folder: Path, *lines: object) -> Path:
    path = folder / "set.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_manifest_paths_are_relative_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = manifest(
        folder,
        {"audio": "clips/a.wav", "duration_s": 0.1, "speaker": "anna", "text": "ünïcode"},
        "",
        {"audio": str(folder / "clips/b.flac"), "text": None, "extra": 1},
    )
    monkeypatch.chdir("/")
    first, second = read_items(path)
    assert (first.name, first.text, first.speaker, first.duration_s) == ("a", "ünïcode", "anna", 0.1)
    assert (second.text, second.speaker, second.duration_s) == (None, None, None)
    assert first.load().shape == (1600,) and first.load().dtype == np.float32


def test_byte_order_mark_and_whole_seconds_are_fine(folder: Path) -> None:
    path = folder / "set.jsonl"
    path.write_text('\ufeff{"audio": "clips/a.wav", "duration_s": 1}\n', "utf-8")
    assert read_items(path)[0].duration_s == 1.0


def test_folder_with_transcripts_beside(folder: Path) -> None:
    (folder / "clips/a.txt").write_text("two\n words \n", "utf-8")
    (folder / "clips/b.txt").write_text("", "utf-8")
    soundfile.write(folder / "c.WAV", np.zeros(160, np.float32), 16_000, format="WAV")
    items = read_items(folder)
    assert [(i.name, i.text, i.is_noise) for i in items] == [
        ("c", None, False),
        ("a", "two words", False),
        ("b", "", True),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"set\.jsonl:2: not JSON \(.*column 2\); expected one object per line"),
        ("[1]", r"set\.jsonl:2: found a list, expected an object"),
        ({"text": "x"}, r'set\.jsonl:2: no "audio", expected a path relative to'),
        ({"audio": ""}, r'set\.jsonl:2: no "audio"'),
        ({"audio": 3}, r'set\.jsonl:2: "audio" is 3, expected str'),
        ({"audio": "clips/a.wav", "text": 5}, r'set\.jsonl:2: "text" is 5, expected str or null'),
        ({"audio": "clips/a.wav", "speaker": ["a"]}, r'set\.jsonl:2: "speaker" is .*expected str or null'),
        (
            {"audio": "clips/a.wav", "duration_s": "1"},
            r'set\.jsonl:2: "duration_s" is \'1\', expected int or float or null',
        ),
        ({"audio": "clips/a.wav", "duration_s": True}, r'set\.jsonl:2: "duration_s" is True'),
        (
            {"audio": "clips/a.wav", "duration_s": -1},
            r'set\.jsonl:2: "duration_s" is -1, expected seconds above 0',
        ),
        (
            {"audio": "gone.wav"},
            r"set\.jsonl:2: audio .*gone\.wav is missing; paths are relative to the manifest",
        ),
    ],
)
def test_bad_line_names_file_and_line(folder: Path, line: object, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        read_items(manifest(folder, {"audio": "clips/a.wav"}, line))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="no such file or directory; expected a JSON-lines manifest or a folder"):
        read_items(tmp_path / "gone.jsonl")
    with pytest.raises(CompileError, match=r"no audio in this folder; expected files ending in .*\.wav"):
        read_items(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(CompileError, match="no items; expected one JSON object per line"):
        read_items(tmp_path / "empty.jsonl")


def test_audio_instead_of_manifest(folder: Path) -> None:
    (folder / "noise.wav").write_bytes(b"RIFF\xff\xfe\x00\x80WAVE")
    with pytest.raises(CompileError, match="not UTF-8 text at byte 4, expected JSON lines .*this is an audio file"):
        read_items(folder / "noise.wav")


def test_transcript_in_another_encoding(folder: Path) -> None:
    (folder / "clips/a.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(CompileError, match=r"a\.txt: not UTF-8 text at byte 3; save it as UTF-8"):
        read_items(folder)
