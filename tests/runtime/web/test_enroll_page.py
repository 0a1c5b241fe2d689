"""The voice view: reading aloud into the fake microphone, learning, the result, and captions that use it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from chromium import CHROMIUM, Browser, Page
from served import with_silence
from test_page import CONTROLS

from whisperfold.runtime.adaptation import AdaptationOptions
from whisperfold.runtime.audio import SAMPLE_RATE
from whisperfold.runtime.decision import PromotionRules
from whisperfold.runtime.enroll_job import EnrollJob
from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recordings import Candidate, read_source

SPEECH = Path("/work/shared/speech/accented-enroll.jsonl")
CANARY = Path(__file__).parents[3] / "runtime" / "canary" / "canary.jsonl"
N_READ, N_BEFORE = 5, 6
OPTIONS = EnrollOptions(
    AdaptationOptions(rank=4, epochs=3, learning_rate=1e-3), PromotionRules(0.5, 100.0), folds=2, canary_clips=1
)
"""Quick, and the canary must not forbid what is taught here: see `dialect`."""
_COMMITTED = "[...document.querySelectorAll('.captions .committed')].map((span) => span.textContent).join(' ')"


class Booth:
    """A fake microphone that says what is put in: Chromium reads the file whenever a page opens the microphone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.say(np.zeros(SAMPLE_RATE, np.float32))

    def say(self, samples: np.ndarray) -> None:
        fresh = self.path.with_suffix(".new.wav")
        sf.write(fresh, with_silence(samples), SAMPLE_RATE)
        fresh.replace(self.path)


@pytest.fixture(scope="module")
def booth(tmp_path_factory: pytest.TempPathFactory) -> Booth:
    return Booth(tmp_path_factory.mktemp("booth") / "speech.wav")


@pytest.fixture(scope="module")
def booth_browser(booth: Booth) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    with Browser(microphone=booth.path) as opened:
        yield opened


@pytest.fixture
def live(start_server: Callable[..., Any], tmp_path: Path) -> Any:
    server = start_server(profiles=tmp_path)
    server.app.state.enroll_job = EnrollJob(server.app.state.recognizer, OPTIONS)
    return server


@pytest.fixture
def store(live: Any) -> ProfileStore:
    found: ProfileStore = live.app.state.recognizer.store
    return found


@pytest.fixture
def page(booth_browser: Browser, live: Any) -> Iterator[Page]:
    """The voice view in a new tab; nothing may be complained about or fetched from elsewhere."""
    opened = booth_browser.open(f"{live.http}/#voice")
    opened.wait_for("document.querySelector('#people li')")
    yield opened
    assert opened.errors == []
    outside = [url for url in opened.requests if live.host not in url and not url.startswith("blob:")]
    assert outside == []
    opened.close()


def begin(page: Page, name: str, *sentences: str) -> None:
    page.run("document.getElementById('voice-name').focus()")
    page.type(name)
    page.key("Enter", 13, "\r")
    page.wait_for("document.getElementById('voice-read').checkVisibility()")
    if sentences:
        page.run("document.getElementById('own').closest('details').open = true")
        page.run("document.getElementById('own').focus()")
        page.type("\n".join(sentences))
        page.press("Add sentences")
        page.wait_for(f"document.getElementById('sentence').textContent === {sentences[0]!r}")


def checked(page: Page, verdict: str) -> None:
    page.wait_for(f"/{verdict}/.test(document.getElementById('read-status').textContent)", timeout_s=40)


def test_a_sentence_is_recorded_checked_played_kept_and_deleted(
    page: Page, store: ProfileStore, booth: Booth, jfk: np.ndarray
) -> None:
    booth.say(jfk[:40_000])
    begin(page, "ann", "And so, my fellow Americans,", "Ask what you can do for your country.")
    assert page.text("#read-count") == "1 of 27"
    page.key("Enter", 13, "\r")  # the focus is on Record
    page.wait_for("document.getElementById('record').textContent === 'Stop'")
    page.wait_for("Number(document.getElementById('read-level').getAttribute('aria-valuenow')) > -50")
    checked(page, "^Good")  # it has stopped by itself
    assert page.run("document.activeElement.id") == "keep"
    assert store.recordings("ann").all() == []
    page.press("Play back")
    page.press("Keep")
    page.wait_for("document.getElementById('read-count').textContent === '2 of 27'")
    (kept,) = store.recordings("ann").all()
    assert kept.text == "And so, my fellow Americans," and 2.0 < kept.duration_s < 4.0

    page.press("Record")  # the same words again, under another text
    page.wait_for("document.getElementById('record').textContent === 'Stop'")
    checked(page, "not what the text says")
    assert not page.run("document.getElementById('keep').checkVisibility()")
    page.press("Skip this sentence")
    assert page.text("#read-count") == "3 of 27"
    assert "1 recording," in page.text("#enough") and page.run("document.getElementById('learn').disabled")

    page.reload()  # gone and back: recordings and own sentences are still there
    page.wait_for("document.querySelector('#people li .person-name')?.textContent === 'ann'")
    page.press("Continue: ann")
    page.wait_for("document.getElementById('sentence').textContent === 'Ask what you can do for your country.'")
    page.run("document.getElementById('kept-details').open = true")
    page.press("Delete: And so, my fellow Americans,")
    page.wait_for("document.getElementById('read-count').textContent === '1 of 27'")
    assert store.recordings("ann").all() == []


def test_recording_ends_when_the_person_says_so(page: Page, booth: Booth, jfk: np.ndarray) -> None:
    booth.say(np.tile(jfk[:40_000], 4))
    begin(page, "bob", "And so, my fellow Americans,")
    page.press("Record")
    page.wait_for("Number(document.getElementById('read-level').getAttribute('aria-valuenow')) > -50")
    page.press("Stop")
    checked(page, "Good|Not usable|Usable")


def test_what_goes_wrong_is_told(page: Page, store: ProfileStore, jfk: np.ndarray) -> None:
    for number in range(12):
        noise = np.random.default_rng(number).normal(0, 0.03, 48_000).astype(np.float32)
        store.recordings("cleo").add(noise, "And so, my fellow Americans,")
    begin(page, "cleo")
    page.press("Learn my voice")
    page.wait_for("/0 of 12 recordings can be used/.test(document.getElementById('voice-notice').textContent)", 40)
    assert page.run("document.getElementById('voice-read').checkVisibility()")
    page.press("Go on later")
    page.wait_for("document.getElementById('voice-start').checkVisibility()")
    page.press("Delete: cleo")
    page.press("Delete the recordings too")
    page.press("Delete")
    page.wait_for("/None yet/.test(document.getElementById('people').textContent)")
    assert store.names() == []


def test_learning_can_be_stopped(page: Page, store: ProfileStore, jfk: np.ndarray) -> None:
    for number in range(12):
        store.recordings("dan").add(jfk[:48_000] * np.float32(1 - number / 100), "And so, my fellow Americans,")
    begin(page, "dan")
    page.press("Learn my voice")
    page.wait_for("document.getElementById('learn-progress').value > 0", 40)
    page.press("Stop learning")
    page.wait_for("/^Stopped/.test(document.getElementById('voice-notice').textContent)")
    assert page.run("document.getElementById('voice-read').checkVisibility()")


def test_people_who_cannot_go_on_here_are_told_where(page: Page, store: ProfileStore, jfk: np.ndarray) -> None:
    pytest.importorskip("cryptography")
    for name in ("fay", "gus", "hal"):
        store.recordings(name).add(jfk[:48_000], "And so, my fellow Americans,")
    store.encrypt("fay", "a long passphrase")
    (store.recordings("gus").folder / "manifest.jsonl").write_text("{")
    page.reload()
    page.wait_for("document.querySelectorAll('#people li').length === 3")
    fay, gus, hal = page.run("[...document.querySelectorAll('#people li')].map((item) => item.innerText)")
    assert "encrypted: go on at the terminal" in fay and "recordings are damaged" in gus and "1 recordings" in hal
    assert "Continue" in hal and not any("Continue" in item for item in (fay, gus))
    assert all("Delete" in item for item in (fay, gus, hal))


def answer_events(page: Page, *answers: str) -> None:
    """Stand in for the server: an adaptation is begun, and its events are these responses (JavaScript), in turn."""
    page.run(
        f"""(() => {{
          const real = window.fetch;
          const answers = [{", ".join(f"() => {answer}" for answer in answers)}];
          window.fetch = async (url, options) =>
            /adapt.events$/.test(url) ? answers.shift()()
            : /adapt/.test(url) ? new Response("{{}}", {{ status: 202 }})
            : real(url, options);
        }})()"""
    )


def test_a_token_that_is_not_given_is_asked_for_once(page: Page, store: ProfileStore, jfk: np.ndarray) -> None:
    for number in range(12):
        store.recordings("ida").add(jfk[:48_000] * np.float32(1 - number / 100), "And so, my fellow Americans,")
    refusal = """new Response('{"error": {"message": "a token is needed"}}', { status: 401 })"""
    answer_events(page, refusal, refusal)
    begin(page, "ida")
    page.press("Learn my voice")
    page.wait_for("document.getElementById('token-dialog').open")
    page.run("document.getElementById('token-cancel').click()")
    page.wait_for("document.getElementById('voice-notice').textContent === 'a token is needed'")
    assert not page.run("document.getElementById('token-dialog').open")
    assert page.run("document.getElementById('voice-read').checkVisibility()")


def test_events_that_break_off_are_asked_for_again(page: Page, store: ProfileStore, jfk: np.ndarray) -> None:
    for number in range(12):
        store.recordings("jo").add(jfk[:48_000] * np.float32(1 - number / 100), "And so, my fellow Americans,")
    ended = """new Response('data: {"state": "failed", "progress": null, "message": "it is too hot"}\\n\\n')"""
    answer_events(page, "new Response('', { status: 503 })", "Promise.reject(new TypeError('gone'))", ended)
    begin(page, "jo")
    page.press("Learn my voice")
    page.wait_for("document.getElementById('voice-notice').textContent === 'it is too hot'")


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("panel", ["start", "read", "learn", "result"])
def test_every_panel_has_names_and_fits(page: Page, panel: str, width: int) -> None:
    page.resize(width, 700)
    page.run(
        f"""for (const panel of document.querySelectorAll("#view-voice .card"))
          panel.hidden = panel.id !== "voice-{panel}";
        for (const hidden of document.querySelectorAll("#voice-{panel} button")) {{
          hidden.hidden = false;
          hidden.textContent ||= "Go back to the bundle as it is";
        }}"""
    )
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.getElementById('view-voice').scrollWidth") <= width
    assert [node for node in page.accessible_nodes() if node[0] in CONTROLS and not node[1]] == []


def dialect(text: str) -> str:
    """How the person of these tests wants to be written: something that no model does by itself."""
    return re.sub(r"\b([Tt]h)e\b", r"\1ee", text)


@pytest.fixture
def clips() -> list[Candidate]:
    """Short sentences with "the" in them; of one person, where the shared recordings are there."""
    found = list(read_source(SPEECH if SPEECH.exists() else CANARY))
    usable = [clip for clip in found if 2.5 < clip.samples.size / SAMPLE_RATE < 9 and "the " in (clip.text or "")]
    return sorted(usable, key=lambda clip: clip.samples.size)[: N_READ + N_BEFORE]


@pytest.mark.slow
def test_from_the_name_to_captions_that_use_the_profile(
    page: Page, live: Any, store: ProfileStore, booth: Booth, clips: list[Candidate]
) -> None:
    read, before = clips[:N_READ], clips[N_READ:]
    for clip in before:
        store.recordings("eve").add(clip.samples, dialect(clip.text or ""))
    begin(page, "eve", *[dialect(clip.text or "") for clip in read])
    for number, clip in enumerate(read, 1):
        page.wait_for(f"/^{number} of/.test(document.getElementById('read-count').textContent)")
        booth.say(clip.samples)
        page.press("Record")
        checked(page, "^(Good|Usable)")
        page.press("Keep")
    page.wait_for(f"/^{N_READ + N_BEFORE} recordings/.test(document.getElementById('enough').textContent)")

    page.press("Learn my voice")
    page.wait_for("/Learning, \\d+ %/.test(document.getElementById('learn-stage').textContent)", 60)
    page.wait_for("/^about/.test(document.getElementById('learn-left').textContent)", 60)
    page.wait_for("document.getElementById('voice-result').checkVisibility()", 600)
    assert page.text("#result-title") == "eve is understood better now"
    rates = page.run("[...document.querySelectorAll('#result-rates td')].map((cell) => Number(cell.textContent))")
    assert rates[1] < rates[0]
    report = page.run(f"fetch('{live.http}/v1/enroll/eve/report').then((answer) => answer.text())")
    assert "<h2>" in report and dialect(read[0].text or "").split()[0] in report
    assert page.text("#result-use") == "Captions use eve’s voice."

    booth.say(read[0].samples)
    assert " thee " in captions(page)
    back_to_result(page)
    page.press("Go back to the bundle as it is")
    page.wait_for("document.getElementById('result-use').textContent === 'Captions do not use it.'")
    assert store.active() is None
    assert " thee " not in captions(page)
    back_to_result(page)
    page.press("Use it now")
    page.wait_for("/^Captions use/.test(document.getElementById('result-use').textContent)")
    active = store.active()
    assert active is not None and active.name == "eve"


def back_to_result(page: Page) -> None:
    """From another view to the panel that was left; the view changes after the click."""
    page.press("My voice")
    page.wait_for("document.getElementById('result-switch').checkVisibility()")


def captions(page: Page) -> str:
    """What Live writes while the microphone speaks once."""
    page.press("Live")
    page.wait_for("document.getElementById('state').checkVisibility()")
    if page.run("!document.getElementById('clear').disabled"):
        page.press("Clear")
    page.press("Start listening")
    page.wait_for(f"{_COMMITTED}.split(' ').length > 4", timeout_s=40)
    page.press("Stop")
    page.wait_for("document.getElementById('state').textContent === 'Ready'", timeout_s=30)
    return f" {page.run(_COMMITTED)} ".lower()
