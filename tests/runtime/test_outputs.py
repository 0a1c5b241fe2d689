"""Every transcript has a file of its own, whole or not at all."""

import pytest

from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.outputs import open_output, output_paths


def test_output_paths(tmp_path):
    assert output_paths(["a.wav", "-"], None, "txt") == {"a.wav": None, "-": None}
    paths = output_paths(["x/a.wav", "b.flac", "-"], tmp_path / "new", "srt")
    assert [path.name for path in paths.values()] == ["a.srt", "b.srt", "stdin.srt"]
    assert (tmp_path / "new").is_dir()


def test_output_paths_refuses_to_overwrite_its_own(tmp_path):
    with pytest.raises(ConfigError, match="x/a.wav and y/a.flac would both be written"):
        output_paths(["x/a.wav", "y/a.flac"], tmp_path, "txt")


def test_output_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the output directory"):
        output_paths(["a.wav"], tmp_path / "file" / "below", "txt")


def test_open_output_leaves_nothing_behind_when_it_fails(tmp_path):
    with pytest.raises(RuntimeError), open_output(tmp_path / "a.txt") as out:
        out.write("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with open_output(tmp_path / "a.txt") as out:
        out.write("whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_open_output_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="cannot write"), open_output(tmp_path / "none" / "a.txt"):
        pass
