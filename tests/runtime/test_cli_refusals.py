"""What the command line refuses: bad files, wrong options, what is not there; one line and an exit code."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from clips import JFK

from whisperfold.runtime import cli
from whisperfold.runtime.errors import AudioError, ConfigError


def bad_files(directory: Path) -> dict[str, Path]:
    """One file per way to be unreadable."""
    files = {name: directory / f"{name}.wav" for name in ("missing", "empty", "truncated", "text", "nan", "header")}
    files["empty"].write_bytes(b"")
    files["text"].write_text("this is not audio\n" * 100)
    files["truncated"] = directory / "truncated.flac"
    files["truncated"].write_bytes(JFK.read_bytes()[:60])
    samples = np.zeros(16000, np.float32)
    samples[100] = np.nan
    sf.write(files["nan"], samples, 16000, subtype="FLOAT")
    sf.write(files["header"], np.zeros(0, np.float32), 16000)
    files["directory"] = directory
    return files


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "nan", "header", "directory"])
def test_a_bad_file_is_one_line_and_exit_code_2(recogniser, tmp_path, capsys, kind):
    path = bad_files(tmp_path)[kind]
    assert cli.main(["transcribe", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("whisperfold: ") and captured.err.count("\n") == 1
    assert str(path) in captured.err


def test_one_bad_file_does_not_stop_the_others(recogniser, clip, tmp_path, capsys):
    bad = bad_files(tmp_path)
    assert cli.main(["transcribe", str(bad["missing"]), clip, str(bad["empty"]), clip]) == 2
    captured = capsys.readouterr()
    assert captured.out == "16000 samples\n" * 2
    assert "2 of 4 files failed" in captured.err


def test_a_recording_that_breaks_off_leaves_whole_lines(recogniser, clip, tmp_path, capsys):
    broken = tmp_path / "broken.flac"
    broken.write_bytes(JFK.read_bytes()[:97_000])
    assert cli.main(["transcribe", str(broken), clip, "--format", "vtt", "-o", str(tmp_path / "out")]) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.vtt"]
    capsys.readouterr()
    blocks = recogniser.transcribe_blocks

    def break_off(incoming, **options):
        yield from blocks(incoming, **options)
        raise AudioError("b.wav: damaged audio")

    recogniser.transcribe_blocks = break_off
    assert cli.main(["transcribe", clip, clip]) == 2
    assert capsys.readouterr().out == "16000 samples\n" * 2


def test_a_wrong_option_is_said_once_not_for_every_file(recogniser, clip, capsys):
    def refuse(blocks, **options):
        raise ConfigError("language 'xx': unknown")

    recogniser.transcribe_blocks = refuse
    assert cli.main(["transcribe", clip, clip, "--language", "xx"]) == 2
    assert capsys.readouterr().err == "whisperfold: language 'xx': unknown\n"


def test_several_files_in_one_subtitle_stream_are_refused(recogniser, clip, capsys):
    assert cli.main(["transcribe", clip, clip, "--format", "srt"]) == 2
    assert "add --output-dir DIR" in capsys.readouterr().err
    assert recogniser.opened == []


def test_unknown_format(recogniser, clip, capsys):
    assert cli.main(["transcribe", clip, "--format", "docx"]) == 2
    assert "use one of txt, srt, vtt, json, jsonl" in capsys.readouterr().err


def test_wrong_use_is_exit_code_2(capsys):
    assert cli.main(["transcribe"]) == 2
    assert cli.main(["transcribe", "a.wav", "--beam-size", "0"]) == 2
    assert cli.main(["nonsense"]) == 2


def test_ctrl_c_ends_quietly(recogniser, clip, monkeypatch, capsys):
    def interrupt(blocks, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(recogniser, "transcribe_blocks", interrupt)
    assert cli.main(["transcribe", clip]) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err.strip()) == ("", "")


def test_missing_bundle_is_one_line(clip, tmp_path, capsys):
    for arguments in (["transcribe", clip, "--bundle"], ["info"], ["listen", "--input", clip, "--bundle"]):
        assert cli.main([*arguments, str(tmp_path / "none")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(tmp_path / "none") in error


def test_listen_refuses_what_cannot_be(recogniser, clip, capsys):
    assert cli.main(["listen", "--input", clip, "--device", "usb"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert cli.main(["listen", "--as-fast-as-possible"]) == 2
    assert "needs --input FILE" in capsys.readouterr().err
    assert cli.main(["listen", "--input", clip, "--format", "json"]) == 2
    assert "use one of text, txt, jsonl, srt, vtt" in capsys.readouterr().err
    assert cli.main(["listen", "--input", clip, "--policy", "hope"]) == 2
    assert "policy 'hope'" in capsys.readouterr().err
    assert recogniser.opened == []


def test_listen_to_an_unknown_device(recogniser, usb_microphone, capsys):
    assert cli.main(["listen", "--device", "webcam"]) == 2
    assert "no input device 'webcam'; there are: 3 'USB Mic'" in capsys.readouterr().err
    assert recogniser.opened == [], "the device is checked before the weights are loaded"


def test_doctor_ends_with_1_when_something_is_broken(tmp_path, capsys):
    assert cli.main(["doctor", "--no-microphone", "--json", "--bundle", str(tmp_path / "none")]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in findings if finding["state"] == "broken"] == ["bundle"]


def test_serve_refuses_a_wrong_config_in_one_line(tmp_path, capsys):
    config = tmp_path / "serve.toml"
    config.write_text("prot = 8321\n")
    assert cli.main(["serve", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("whisperfold: ") and error.count("\n") == 1 and str(config) in error


def test_subtitles_of_a_bad_file_are_not_even_begun(recogniser, tmp_path, capsys):
    assert cli.main(["transcribe", str(tmp_path / "none.wav"), "--format", "vtt"]) == 2
    assert capsys.readouterr().out == ""
