"""Recordings in the browser: upload, text, downloads; the token; a server that is gone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from chromium import Browser, Page
from served import TOKEN
from spoken import SPEECH, cue_times, n_different_words, words

from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.formats import open_writer
from whisperfold.runtime.transcript import Segment


def test_uploads_are_transcribed_and_saved(browser: Browser, page: Page, jfk: np.ndarray, tmp_path: Path) -> None:
    sf.write(tmp_path / "speech.flac", jfk, SAMPLE_RATE)
    (tmp_path / "notes.wav").write_text("no sound at all")
    page.press("Files")
    page.choose_files("#picker", tmp_path / "speech.flac", tmp_path / "notes.wav")
    page.wait_for("document.querySelectorAll('.job[data-state=done], .job[data-state=failed]').length === 2", 30)
    failed, done = page.run("[...document.querySelectorAll('.job')].map((job) => job.innerText)")
    assert "Try again" in failed and "notes.wav" in failed
    assert n_different_words(done.split("\n")[-2], SPEECH) <= 2 or "country" in done
    with browser.saving_to(tmp_path) as download:
        page.press("Download transcript of speech.flac as srt")
        srt = download("speech.srt")
    blocks = srt.strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == [str(n + 1) for n in range(len(blocks))]
    assert n_different_words(" ".join(block.split("\n")[2] for block in blocks), SPEECH) <= 2
    times = cue_times(srt)
    assert times == sorted(times) and 5 < times[-1] <= 11.1
    page.errors = [
        error for error in page.errors if "status of 4" not in error
    ]  # the browser's own line about notes.wav


@pytest.mark.parametrize("name", ["txt", "srt", "vtt"])
def test_saved_files_are_those_of_the_command_line(page: Page, name: str) -> None:
    texts = [(0.0, 1.23456, "Hello  there\n\nyou"), (59.9996, 3661.5, "a < b & c --> d"), (4.0, 5.0, "  ")]
    cues = [{"start_s": start, "end_s": end, "text": text} for start, end, text in texts]
    saved = page.run(f"import('/static/subtitles.js').then((m) => m.toDocument('{name}', {json.dumps(cues)}))")
    out = io.StringIO()
    writer = open_writer(name, out, "clip")
    for start, end, text in texts:
        writer.write(Segment(start, end, text, -0.1, 0.0))
    writer.finish("en", 60.0)
    if name == "txt":  # a line per caption here, one line per recording there
        assert words(saved) == words(out.getvalue())
    else:
        assert saved == out.getvalue()


def test_token_is_asked_for_and_kept_for_the_tab(
    browser: Browser, other_url: str, jfk: np.ndarray, tmp_path: Path
) -> None:
    sf.write(tmp_path / "speech.flac", jfk, SAMPLE_RATE)
    page = browser.open(other_url + "#files")
    page.choose_files("#picker", tmp_path / "speech.flac")
    for token, is_wrong in (("wrong-token", False), (TOKEN, True)):
        page.wait_for("document.getElementById('token-dialog').open")
        assert page.run("document.getElementById('token-wrong').hidden") is not is_wrong
        page.type(token)
        page.key("Enter", 13, "\r")
        page.wait_for("!document.getElementById('token-dialog').open")
    page.wait_for("document.querySelector('.job[data-state=done]')", 20)
    assert page.run("sessionStorage.getItem('whisperfold-token')") == TOKEN
    page.close()


def test_a_server_that_does_not_answer_is_said(page: Page, jfk: np.ndarray, tmp_path: Path) -> None:
    sf.write(tmp_path / "speech.flac", jfk, SAMPLE_RATE)
    page.call("Network.setBlockedURLs", urls=["*/v1/*"])
    page.press("Files")
    page.choose_files("#picker", tmp_path / "speech.flac")
    page.wait_for("document.querySelector('.job[data-state=failed]')")
    assert "does not answer" in page.text(".job")
    page.call("Network.setBlockedURLs", urls=[])
    page.press("Try again: speech.flac")
    page.wait_for("document.querySelector('.job[data-state=done]')", 20)
    page.errors = [error for error in page.errors if "ERR_BLOCKED_BY_CLIENT" not in error]


def test_what_only_the_browser_can_read_goes_up_as_wav(page: Page) -> None:
    header, n_bytes, same = page.run(
        """(async () => {
          const context = new AudioContext();
          const out = context.createMediaStreamDestination();
          const tone = new OscillatorNode(context);
          tone.connect(out);
          tone.start();
          const recorder = new MediaRecorder(out.stream, { mimeType: "audio/webm" });
          const recorded = new Promise((resolve) => (recorder.ondataavailable = ({ data }) => resolve(data)));
          recorder.start();
          setTimeout(() => recorder.stop(), 600);
          const webm = new File([await recorded], "memo.webm");
          const { readable } = await import("/static/decode.js");
          const wav = new Uint8Array(await (await readable(webm)).arrayBuffer());
          const broken = new File(["nothing"], "broken.m4a");
          return [[...wav.slice(0, 44)], wav.length, (await readable(broken)) === broken];
        })()"""
    )
    samples, rate_hz = sf.read(io.BytesIO(bytes(header) + bytes(n_bytes - 44)))
    assert rate_hz == SAMPLE_RATE and samples.ndim == 1
    assert 0.3 < len(samples) / SAMPLE_RATE < 0.9
    assert same
