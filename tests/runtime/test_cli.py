"""The command line: a stand-in for the recogniser where it does not matter, else the packaged bundle."""

import io
import json
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime import cli, devices, microphone, plugins, progress, speaker
from whisperfold.runtime.errors import AudioError, ConfigError
from whisperfold.runtime.packaged import default_bundle

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "runtime" / "samples" / "jfk.flac"


@dataclass
class Segment:
    start_s: float
    end_s: float
    text: str
    avg_logprob: float = -0.2
    no_speech_prob: float = 0.0
    words: list = field(default_factory=list)
    language: str = "en"


class FakeTranscriber:
    """Reads all blocks; says how long they were."""

    opened: list = []
    language = "en"

    def __init__(self):
        self.options = None

    def transcribe_blocks(self, blocks, **options):
        self.options = options
        total_s = 0.0
        for block in blocks:
            assert block.dtype == np.float32 and block.ndim == 1
            yield Segment(total_s, total_s + len(block) / 16000, f" {len(block)} samples")
            total_s += len(block) / 16000


@pytest.fixture
def recogniser(monkeypatch):
    """The stand-in that every command of this test opens."""
    fake = FakeTranscriber()
    fake.opened = []

    def fake_open(*arguments):
        fake.opened.append(arguments)
        return fake

    monkeypatch.setattr(speaker, "open_transcriber", fake_open)
    return fake


@pytest.fixture
def usb_microphone(monkeypatch):
    """The only device that can record; PortAudio is not asked."""
    device = devices.InputDevice(3, "USB Mic", 1, 48000, "ALSA", True)
    for module in (devices, microphone):
        monkeypatch.setattr(module, "load_sounddevice", lambda: None)
        monkeypatch.setattr(module, "list_devices", lambda refresh=False: [device])
    return device


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    sf.write(path, np.zeros(16000, np.float32), 16000)
    return str(path)


def bad_files(directory: Path) -> dict[str, Path]:
    """One file per way to be unreadable."""
    files = {name: directory / f"{name}.wav" for name in ("missing", "empty", "truncated", "text", "nan", "header")}
    files["empty"].write_bytes(b"")
    files["text"].write_text("this is not audio\n" * 100)
    files["truncated"] = directory / "truncated.flac"
    files["truncated"].write_bytes(SAMPLE.read_bytes()[:60])
    samples = np.zeros(16000, np.float32)
    samples[100] = np.nan
    sf.write(files["nan"], samples, 16000, subtype="FLOAT")
    sf.write(files["header"], np.zeros(0, np.float32), 16000)
    files["directory"] = directory
    return files


def test_transcribe_to_stdout(recogniser, clip, capsys):
    assert cli.main(["transcribe", clip]) == 0
    captured = capsys.readouterr()
    assert captured.out == "16000 samples\n"
    assert captured.err == ""


def test_options_reach_the_recogniser(recogniser, clip):
    arguments = ["--language", "en", "--task", "translate", "--threads", "2", "--word-timestamps"]
    arguments += ["--beam-size", "3", "--prompt", "Kennedy", "--no-vad", "--bundle", "some/bundle"]
    arguments += ["--hotword", "Ada", "--hotword", "New Delhi", "--speaker", "anna", "--profiles", "voices"]
    assert cli.main(["transcribe", clip, *arguments]) == 0
    assert recogniser.opened == [(Path("some/bundle"), "anna", Path("voices"), 2)]
    assert recogniser.options == {
        "language": "en",
        "task": "translate",
        "word_timestamps": True,
        "beam_size": 3,
        "prompt": "Kennedy",
        "hotwords": ("Ada", "New Delhi"),
        "vad": False,
    }


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
    broken.write_bytes(SAMPLE.read_bytes()[:97_000])
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


def test_the_bar_is_on_stderr_and_never_in_the_transcript(recogniser, clip, monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_wanted", lambda has_output_files: True)
    assert cli.main(["transcribe", clip]) == 0
    captured = capsys.readouterr()
    assert captured.out == "16000 samples\n"
    assert "16000 samples" not in captured.err


def test_a_wrong_option_is_said_once_not_for_every_file(recogniser, clip, capsys):
    def refuse(blocks, **options):
        raise ConfigError("language 'xx': unknown")

    recogniser.transcribe_blocks = refuse
    assert cli.main(["transcribe", clip, clip, "--language", "xx"]) == 2
    assert capsys.readouterr().err == "whisperfold: language 'xx': unknown\n"


def test_any_rate_and_channels(recogniser, tmp_path, capsys):
    path = tmp_path / "telephone.wav"
    sf.write(path, np.zeros((8000, 2), np.float32), 8000)
    assert cli.main(["transcribe", str(path)]) == 0
    assert capsys.readouterr().out == "16000 samples\n"


def test_stdin(recogniser, clip, monkeypatch, capsys):
    data = Path(clip).read_bytes()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    assert cli.main(["transcribe", "-", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == "-"
    assert document["duration_s"] == 1.0
    assert document["language"] == "en"


def test_output_directory_has_one_file_per_recording(recogniser, clip, tmp_path, capsys):
    other = tmp_path / "other.flac"
    sf.write(other, np.zeros(8000, np.float32), 16000)
    out = tmp_path / "out"
    arguments = ["transcribe", clip, str(other), str(tmp_path / "no.wav"), "--format", "srt", "-o", str(out)]
    assert cli.main(arguments) == 2
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in out.iterdir()) == ["clip.srt", "other.srt"]
    assert "00:00:00,000 --> 00:00:00,500" in (out / "other.srt").read_text()


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


def test_devices(usb_microphone, capsys):
    assert cli.main(["devices"]) == 0
    assert capsys.readouterr().out == "*  3  USB Mic  (ALSA, 1 channels, 48000 Hz)\n"
    assert cli.main(["devices", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["native_rate_hz"] == 48000 and record["would_use"] is True


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


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("transcribe", "listen", "serve", "devices", "doctor", "info", "version", "compile", "verify"):
        assert f" {command} " in out


def test_subtitles_of_a_bad_file_are_not_even_begun(recogniser, tmp_path, capsys):
    assert cli.main(["transcribe", str(tmp_path / "none.wav"), "--format", "vtt"]) == 2
    assert capsys.readouterr().out == ""


def test_version(capsys):
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("whisperfold ")


class FakeEntry:
    """An entry point whose load() gives, or raises, what the test wants."""

    def __init__(self, result):
        self.result = result

    def load(self):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_a_plugin_gets_its_own_arguments(monkeypatch, capsys):
    import typer

    def compile_command(
        source: str,
        output: Path = typer.Option(..., "-o", "--output"),
        epochs: int = typer.Option(1, "--heal-epochs"),
    ) -> None:
        print(source, output, epochs)

    monkeypatch.setattr(plugins, "find_plugins", lambda: {"compile": FakeEntry(compile_command)})
    assert cli.main(["compile", "-o", "out", "tiny.en", "--heal-epochs", "3"]) == 0
    assert capsys.readouterr().out == "tiny.en out 3\n"
    assert cli.main(["compile", "--help"]) == 0
    assert "--heal-epochs" in capsys.readouterr().out
    assert cli.main(["compile", "tiny.en"]) == 2


def test_help_lists_plugins_without_loading_them(monkeypatch, capsys):
    monkeypatch.setattr(plugins, "find_plugins", lambda: {"compile": FakeEntry(AssertionError("loaded"))})
    assert cli.main(["--help"]) == 0
    assert "Make a bundle from a Whisper checkpoint" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("when", ["on load", "inside"])
def test_a_plugin_without_its_dependencies(monkeypatch, capsys, when):
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")

    def compile_command() -> None:
        raise missing

    entry = FakeEntry(missing if when == "on load" else compile_command)
    monkeypatch.setattr(plugins, "find_plugins", lambda: {"compile": entry})
    assert cli.main(["compile"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("compile needs the compiler extra: pip install 'whisperfold[compiler]'")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("raised", "code"), [("exit", 3), ("error", 2), ("interrupt", 130)])
def test_the_exit_code_of_a_plugin(monkeypatch, capsys, raised, code):
    import typer

    from whisperfold.runtime.errors import CompileError

    errors = {
        "exit": typer.Exit(3),
        "error": CompileError("stage heal: no audio"),
        "interrupt": KeyboardInterrupt(),
    }

    def verify_command() -> None:
        raise errors[raised]

    monkeypatch.setattr(plugins, "find_plugins", lambda: {"verify": FakeEntry(verify_command)})
    assert cli.main(["verify"]) == code
    if raised == "error":
        assert capsys.readouterr().err == "whisperfold: stage heal: no audio\n"


def whisperfold(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "whisperfold.runtime.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, cwd=ROOT / ".links")


@pytest.fixture(scope="module")
def packaged_bundle() -> Path:
    if not (default_bundle() / "manifest.json").is_file():
        pytest.skip("no packaged bundle in this tree: run make bundle")
    return default_bundle()


def test_the_sample_clip_for_real(packaged_bundle):
    done = whisperfold("transcribe", str(SAMPLE))
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode().lower()
    assert "ask not what your country can do for you" in text
    assert text.count("\n") == 1


def test_stdin_and_words_for_real(packaged_bundle):
    done = whisperfold("transcribe", "-", "--format", "json", "--word-timestamps", stdin=SAMPLE.read_bytes())
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    words = [word for segment in document["segments"] for word in segment["words"]]
    assert {"country"} <= {word["text"].strip(" ,.").lower() for word in words}
    assert all(0 <= word["start_s"] <= word["end_s"] <= document["duration_s"] + 0.01 for word in words)
    assert all(0 < word["probability"] <= 1 for word in words)


def test_clips_without_words_for_real(packaged_bundle, tmp_path):
    short, silent = tmp_path / "short.wav", tmp_path / "silent.wav"
    sf.write(short, np.full(800, 0.1, np.float32), 16000)  # 0.05 s
    sf.write(silent, np.zeros((16000 * 5, 2), np.float32), 8000)
    done = whisperfold("transcribe", str(short), str(silent))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_listen_to_a_file_for_real(packaged_bundle):
    done = whisperfold("listen", "--input", str(SAMPLE), "--as-fast-as-possible", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    finals = [record for record in records if record["type"] == "final"]
    assert "country" in " ".join(record["text"] for record in finals).lower()
    assert all(record["start_s"] < record["end_s"] <= 11.5 for record in finals)


def test_info_for_real(packaged_bundle, capsys):
    assert cli.main(["info"]) == 0
    assert "where the bytes are" in capsys.readouterr().out
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny.en"
