"""Live captions in the browser: microphone, worklet, socket, text; and what is said when one of them is missing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, Page
from served import Served
from spoken import SPEECH, cue_times, n_different_words

_COMMITTED = "[...document.querySelectorAll('.captions .committed')].map((span) => span.textContent).join(' ')"


def test_live_captions_of_the_browsers_microphone(browser: Browser, page: Page, tmp_path: Path) -> None:
    page.press("Start listening")
    page.wait_for("document.getElementById('state').textContent === 'Listening'")
    page.wait_for("document.querySelector('.captions .tentative')?.textContent", timeout_s=15)
    assert page.run("document.querySelector('.captions .tentative').getAttribute('aria-hidden')") == "true"
    page.wait_for("Number(document.getElementById('level').getAttribute('aria-valuenow')) > -50")
    # Stop while the end is tentative: nothing of it may get lost.
    page.wait_for("/do for your country/i.test(document.querySelector('.captions').textContent)", timeout_s=25)
    latency = page.text("#latency")
    page.press("Stop")
    page.wait_for("document.getElementById('state').textContent === 'Ready'", timeout_s=15)
    committed = page.run(_COMMITTED)
    assert n_different_words(committed, SPEECH) <= 3, committed
    assert page.run("[...document.querySelectorAll('.captions .tentative')].every((span) => !span.textContent)")
    assert re.fullmatch(r"\d+\.\d s", latency), latency
    with browser.saving_to(tmp_path) as download:
        page.press("Download captions as vtt")
        vtt = download("*.vtt")
    assert vtt.startswith("WEBVTT\n\n")
    assert n_different_words(re.sub(r".*-->.*|WEBVTT", "", vtt), SPEECH) <= 3
    times = cue_times(vtt)
    assert times == sorted(times) and times[-1] < 16


def test_nothing_is_lost_when_the_connection_breaks(page: Page) -> None:
    page.press("Start listening")
    page.wait_for("/fellow/i.test(document.querySelector('.captions .committed')?.textContent)", timeout_s=15)
    page.run(_CUT_OFF)
    page.wait_for("document.getElementById('state').textContent === 'Reconnecting'")
    assert "nothing is lost" in page.text("#live-notice")
    page.wait_for("document.getElementById('elapsed').textContent === '0:09'", timeout_s=15)
    page.run("window.WebSocket = Real; window.dispatchEvent(new Event('online'))")
    page.wait_for(f"/do for your country/i.test({_COMMITTED})", timeout_s=25)
    page.press("Stop")
    page.wait_for("document.getElementById('state').textContent === 'Ready'", timeout_s=15)
    committed = page.run(_COMMITTED)
    assert n_different_words(committed, SPEECH) <= 3, committed


_CUT_OFF = """window.Real = WebSocket;
window.WebSocket = class {
  static OPEN = 1;
  constructor() { setTimeout(() => this.onclose({ reason: "" })); }
  close() {}
};
sockets.at(-1).close()"""


def test_stopping_without_a_connection_says_what_is_missing(page: Page) -> None:
    page.press("Start listening")
    page.wait_for("document.getElementById('state').textContent === 'Listening'")
    page.run(_CUT_OFF)
    page.wait_for("document.getElementById('state').textContent === 'Reconnecting'")
    page.press("Stop")
    page.wait_for("document.getElementById('state').textContent === 'Ready'")
    assert "the last words are not transcribed" in page.text("#live-notice")


def test_captions_of_the_devices_microphone(browser: Browser, server: Served) -> None:
    page = browser.open(server.url, before=_DEVICE)
    page.wait_for("!document.getElementById('sources').hidden")
    page.press("The device")
    page.press("Start listening")
    page.wait_for("document.getElementById('state').textContent === 'Listening'")
    page.run(
        """for (const record of [
          { type: "status", status: "lost", message: "USB Mic is gone" },
          { type: "level", dbfs: -20, in_speech: true, heard_s: 5000.9 },
          { type: "start", utterance: 7, start_s: 5000, end_s: 5000, committed: "", tentative: "" },
          { type: "partial", utterance: 7, start_s: 5000, end_s: 5000.5, committed: "Good", tentative: "morning" },
        ]) sockets.at(-1).onmessage({ data: JSON.stringify(record) })"""
    )
    assert page.text(".captions .committed") == "Good"
    assert page.text(".captions .tentative") == "morning"
    assert page.text(".captions time") == "0:00"
    assert page.text("#latency") == "0.4 s"
    assert "USB Mic is gone" in page.text("#live-notice")
    assert page.run("document.getElementById('level').getAttribute('aria-valuenow')") == "-20"
    page.run(
        """sockets.at(-1).onmessage({ data: JSON.stringify(
          { type: "final", utterance: 7, start_s: 5000, end_s: 5001, committed: "Good morning.", tentative: "" }) })"""
    )
    page.press("Stop")
    page.wait_for("document.getElementById('state').textContent === 'Ready'")
    assert page.text(".captions li p").strip() == "Good morning."
    assert page.errors == []
    page.close()


_DEVICE = """{
  const real = window.fetch;
  window.fetch = (url, ...rest) => (String(url).endsWith("/health")
    ? Promise.resolve(new Response('{"microphone": {"state": "listening"}}')) : real(url, ...rest));
  window.WebSocket = class {
    static OPEN = 1;
    readyState = 1;
    constructor() { sockets.push(this); setTimeout(() => this.onopen()); }
    close() {}
  };
}"""


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); }",
            "Allow it",
        ),
        (
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError'); }",
            "Connect one",
        ),
        ("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })", "https:// or from localhost"),
    ],
)
def test_without_a_microphone_the_page_says_what_to_do(
    browser: Browser, server: Served, before: str, told: str
) -> None:
    page = browser.open(server.url, before=before)
    page.press("Start listening")
    page.wait_for("!document.getElementById('live-notice').hidden")
    assert told in page.text("#live-notice")
    assert page.text("#listen") == "Start listening"
    assert page.errors == []
    page.close()


@pytest.mark.parametrize("rate_hz", [44100, 48000, 16000])
def test_worklet_resamples_speech_and_stops_what_would_fold_back(page: Page, rate_hz: int) -> None:
    def level_db(tone_hz: int) -> float:
        samples = np.array(page.run(f"({_RENDER})({rate_hz}, {tone_hz})"), dtype=float)[2000:]
        return float(10 * np.log10(np.mean((samples / 32767) ** 2) + 1e-12))

    assert level_db(1000) == pytest.approx(10 * np.log10(0.5 * 0.5**2), abs=0.1)
    if rate_hz > 24000:
        assert level_db(15000) < -60


_RENDER = """async (rate, tone) => {
  const context = new OfflineAudioContext(1, rate, rate);
  await context.audioWorklet.addModule("/static/pcm_worklet.js");
  const worklet = new AudioWorkletNode(context, "pcm-worklet", { numberOfOutputs: 1 });
  const samples = [];
  worklet.port.onmessage = ({ data }) => samples.push(...new Int16Array(data.pcm));
  const [sine, gain] = [new OscillatorNode(context, { frequency: tone }), new GainNode(context, { gain: 0.5 })];
  sine.connect(gain).connect(worklet).connect(context.destination);
  sine.start();
  await context.startRendering();
  await new Promise((resolve) => { // the last block of 40 ms is on its way
    const look = () => (samples.length >= 22000 ? resolve() : setTimeout(look, 10));
    look();
  });
  return samples;
}"""
