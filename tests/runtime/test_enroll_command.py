"""`whisperfold enroll` from a folder: texts, no texts, own sentences, a passphrase, Ctrl-C, what logs may say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime import enroll_command, enroll_terminal
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.cli import main
from whisperfold.runtime.decision import Decision
from whisperfold.runtime.enroll import Progress
from whisperfold.runtime.enroll_command import _sentences
from whisperfold.runtime.errors import EnrollmentError
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recordings import Candidate, label
from whisperfold.runtime.transcribe import Transcriber

REPOSITORY = Path(__file__).parents[2]
PASSPHRASE = "six thick thistle sticks"


@pytest.fixture
def store(bundle: Bundle, tmp_path: Path) -> ProfileStore:
    return ProfileStore(bundle, tmp_path / "profiles")


@pytest.fixture
def where(store: ProfileStore, bundle: Bundle) -> list[str]:
    return ["--profiles", str(store.folder.parent), "--bundle", str(bundle.path), "--nice", "0"]


@pytest.fixture
def folder(tmp_path: Path, jfk: np.ndarray) -> Path:
    """Two recordings with texts, and one of 44 s without."""
    path = tmp_path / "from"
    path.mkdir()
    sf.write(path / "a.wav", jfk[: 3 * 16000], 16000)
    (path / "a.txt").write_text("And so, my fellow Americans,\n")
    sf.write(path / "b.flac", jfk[8 * 16000 :], 16000)
    (path / "b.txt").write_text("Ask what you can do for your country.\n")
    sf.write(path / "c.flac", np.tile(jfk, 4), 16000)
    return path


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The adaptation is not run: who was given to it."""
    seen: list[Any] = []

    def refuse(store: ProfileStore, name: str, transcriber: Any, options: Any, on_progress: Any) -> None:
        seen.append((name, [item.text for item in store.recordings(name).all()]))
        on_progress(Progress("checking recordings", 0.0))
        raise EnrollmentError("too few")

    monkeypatch.setattr("whisperfold.runtime.enroll.enroll", refuse)
    return seen


def test_a_folder_with_texts_and_without(
    store: ProfileStore,
    where: list[str],
    folder: Path,
    bundle: Bundle,
    adapted: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["enroll", "anna", "--from", str(folder), *where]) == 2
    kept = store.recordings("anna").all()
    assert [item.kind for item in kept][:2] == ["import", "import"]
    labelled = kept[2:]
    assert len(labelled) >= 3 and all(item.kind == "self" for item in labelled)
    assert all(item.duration_s <= bundle.window.max_s for item in kept)
    assert sum("country" in item.text for item in labelled) >= 3
    assert f"2 recordings imported, {len(labelled)} labelled by the model, 0 known" in capsys.readouterr().err

    assert main(["enroll", "anna", "--from", str(folder), *where]) == 2  # there are recordings: say what is wanted
    assert "--resume goes on with them, --add adds more" in capsys.readouterr().err
    assert main(["enroll", "anna", "--from", str(folder), "--add", *where]) == 2
    assert f"0 recordings imported, 0 labelled by the model, {len(kept)} known" in capsys.readouterr().err
    assert main(["enroll", "anna", "--resume", *where]) == 2
    assert [len(texts) for _, texts in adapted] == [len(kept)] * 3
    assert main(["enroll", "anna", "--resume", "--add", *where]) == 2
    assert "--resume takes no more recordings" in capsys.readouterr().err


def test_the_language_is_asked_for_once(
    store: ProfileStore, where: list[str], folder: Path, adapted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "c.flac").unlink()
    command = ["enroll", "anna", "--from", str(folder), *where]
    assert main([*command, "--language", "de"]) == 2
    assert "English-only" in capsys.readouterr().err and store.names() == []
    assert main([*command, "--language", "en"]) == 2
    assert store.language("anna") == "en" and len(adapted) == 1
    (store.home("anna") / "language").write_text("de\n")
    assert main(["enroll", "anna", "--resume", *where]) == 2
    assert "language 'de'" in capsys.readouterr().err
    assert main(["enroll", "anna", "--resume", "--language", "en", *where]) == 2
    assert "the recordings are in 'de', not 'en'" in capsys.readouterr().err


def test_speech_longer_than_the_window_is_cut_at_pauses(transcriber: Transcriber, jfk: np.ndarray) -> None:
    found = label(Candidate("long", np.tile(jfk, 5), None), transcriber)
    limit = round(transcriber.bundle.window.max_s * 16000)
    assert found and all(item.samples.size <= limit for item in found)
    assert sum(item.samples.size for item in found) > 3 * jfk.size


def test_a_passphrase_from_the_first_recording_on(
    store: ProfileStore,
    where: list[str],
    folder: Path,
    adapted: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(PASSPHRASE)
    wrong.write_text("another one of them")
    (folder / "c.flac").unlink()
    command = ["enroll", "anna", "--from", str(folder), "--encrypt", "--passphrase-file", str(right), *where]
    assert main(command) == 2
    assert adapted == [("anna", ["And so, my fellow Americans,", "Ask what you can do for your country."])]
    names = {path.name for path in store.root.rglob("*")}
    assert names == {
        "people",
        "anna",
        ".lock",
        "vault.json",
        "recordings",
        "manifest.jsonl.sealed",
        "0001.flac.sealed",
        "0002.flac.sealed",
    }
    capsys.readouterr()
    assert main(["enroll", "anna", "--resume", "--passphrase-file", str(wrong), *where]) == 2
    assert capsys.readouterr().err == "whisperfold: anna: wrong passphrase; nothing was changed\n"
    assert main(["enroll", "anna", "--resume", *where]) == 2
    assert "needs a terminal; or give --passphrase-file" in capsys.readouterr().err
    assert main(["enroll", "anna", "--resume", "--passphrase-file", str(right), *where]) == 2
    assert len(adapted) == 2


def test_own_sentences_and_other_languages(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Mach bitte das Licht in der Küche an.\n\nRuf Jürgen an.\n", encoding="utf-8")
    expected = ["Grüß Gott.", "Mach bitte das Licht in der Küche an.", "Ruf Jürgen an."]
    assert _sentences(25, ["Grüß Gott."], own, "de") == expected
    assert _sentences(2, ["Hello Zoe."], None, "en")[0] == "Hello Zoe."
    assert len(_sentences(2, ["Hello Zoe."], None, "en")) == 3
    with pytest.raises(EnrollmentError, match="no prompts for 'de', there are: en; give --sentences FILE"):
        _sentences(25, [], None, "de")
    with pytest.raises(EnrollmentError, match="nothing to read aloud"):
        _sentences(0, [], None, "en")
    own.write_bytes(b"\xff\xfe")
    for path in (own, tmp_path / "gone.txt"):
        with pytest.raises(EnrollmentError, match="not readable"):
            _sentences(0, [], path, "en")


@pytest.mark.parametrize(("ending", "code"), [(KeyboardInterrupt, 130), (EOFError, 130), (None, 0)])
def test_leaving_keeps_what_is_there(
    store: ProfileStore,
    where: list[str],
    jfk: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ending: type[BaseException] | None,
    code: int,
) -> None:
    def read_aloud(wanted: list[str], recordings: Any, *rest: Any) -> bool:
        recordings.add(jfk[:48000], wanted[0])
        if ending is not None:
            raise ending
        return False

    monkeypatch.setattr(enroll_terminal, "read_aloud", read_aloud)
    monkeypatch.setattr(enroll_command, "_studio", lambda device: None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["enroll", "anna", "--prompts", "3", *where]) == code
    assert "1 recordings are kept; go on with: whisperfold enroll anna --add" in capsys.readouterr().err
    assert len(store.recordings("anna").all()) == 1


def test_without_a_terminal_there_is_nothing_to_ask(where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enroll", "anna", *where]) == 2
    assert "recording needs a terminal; import recordings with --from" in capsys.readouterr().err


def test_ctrl_c_while_it_learns_says_how_to_go_on(
    where: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("whisperfold.runtime.enroll.enroll", interrupted)
    assert main(["enroll", "anna", "--from", str(folder / "a.wav").replace("a.wav", ""), *where]) == 130
    assert "nothing has changed; go on with: whisperfold enroll anna --resume" in capsys.readouterr().err


def test_the_result_names_what_was_left_out_and_what_could_be_better(capsys: pytest.CaptureFixture[str]) -> None:
    selection = SimpleNamespace(left_out=[("a.wav", "clipped")], warnings=[("b.wav", "noisy: speech is 12 dB above")])
    profile = SimpleNamespace(name="anna", report=Path("report.html"))
    decision = Decision(True, "2 of 90 words fewer")
    enroll_command._print(SimpleNamespace(selection=selection, decision=decision, profile=profile))
    out, err = capsys.readouterr()
    assert out.splitlines() == ["anna: in use now: 2 of 90 words fewer", "report: report.html"]
    assert err.splitlines() == [
        "whisperfold: a.wav: left out, clipped",
        "whisperfold: b.wav: learned, but noisy: speech is 12 dB above",
    ]


def test_logs_above_debug_hold_no_texts_and_no_names(store: ProfileStore, bundle: Bundle, folder: Path) -> None:
    """A whole enrollment with -vv, small, in a process of its own; what it prints for people is not a log."""
    (folder / "c.flac").unlink()
    done = subprocess.run(
        [sys.executable, __file__, str(store.folder.parent), str(bundle.path), str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / ".links")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "zoe: in use now" in done.stdout, done.stderr
    logged = [line for line in done.stderr.splitlines() if line.startswith(("INFO ", "WARNING ", "ERROR "))]
    assert any("whisperfold.runtime.enroll " in line for line in logged), "nothing was logged: this test tells nothing"
    for line in logged:
        for secret in ("zoe", "fellow", "country", "Ask"):
            assert secret not in line, line


def log_a_small_enrollment(root: str, bundle: str, folder: str) -> int:
    """`whisperfold -vv enroll zoe --from FOLDER`, with two recordings only, taken whatever it is worth."""
    from unittest import mock

    from whisperfold.runtime.adaptation import AdaptationOptions
    from whisperfold.runtime.enroll_options import EnrollOptions

    small = EnrollOptions(AdaptationOptions(rank=1, epochs=1, held_out_clips=1), folds=2, canary_clips=1)
    with (
        mock.patch("whisperfold.runtime.lessons.MIN_RECORDINGS", 2),
        mock.patch("whisperfold.runtime.lessons.MIN_TOTAL_S", 1.0),
        mock.patch("whisperfold.runtime.enroll.decide", lambda *figures: Decision(True, "for the test")),
        mock.patch("whisperfold.runtime.enroll.EnrollOptions", lambda **options: small),
    ):
        return main(["-vv", "enroll", "zoe", "--from", folder, "--profiles", root, "--bundle", bundle, "--nice", "0"])


if __name__ == "__main__":
    sys.exit(log_a_small_enrollment(*sys.argv[1:]))
