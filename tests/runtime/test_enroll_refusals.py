"""What must not become anybody's profile: each is refused on one line, by the command, and the old one stays in use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime.adaptation import AdaptationOptions
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.audio import load_audio
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.cli import main
from whisperfold.runtime.enroll import enroll
from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.lessons import CANARY
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recordings import Candidate, read_source
from whisperfold.runtime.transcribe import Transcriber

FACTS = {"promoted": True, "reason": "better", "owner": {"before": 10.0, "after": 8.0}, "recordings": 8}
N = 10
N_JUDGES = 16
"""Clips of the canary that stand for the others where its rest is learned."""
SECONDS = np.arange(4 * 16000, dtype=np.float32) / 16000


@pytest.fixture
def store(bundle: Bundle, tmp_path: Path) -> ProfileStore:
    """Anna has a profile, and it is in use; it changes nothing."""
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    store = ProfileStore(bundle, tmp_path / "profiles")
    adapter = Adapter.create(bundle, 1)
    store.promote(store.add("anna", adapter, adapter.fold(bundle), FACTS, "<p>report</p>"))
    store.use("anna")
    return store


def white(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0.0, 0.05, SECONDS.size).astype(np.float32)


def hum(number: int) -> np.ndarray:
    tones = [np.sin(2 * np.pi * 50 * k * SECONDS + number) / k for k in (1, 2, 3, 5, 7)]
    return (0.1 * np.sum(tones, axis=0)).astype(np.float32)


def silence(number: int) -> np.ndarray:
    return np.full(SECONDS.size, number * 1e-4, np.float32)


@pytest.fixture(scope="module")
def others() -> list[Candidate]:
    """Clips of ten other people, with their texts."""
    return list(read_source(CANARY / "canary.jsonl"))[:N]


def recordings(kind: str, others: list[Candidate]) -> list[tuple[np.ndarray, str]]:
    """Samples and texts that should not be learned from."""
    prompt = "Please turn the kitchen lights on and close the blue curtains."
    if kind == "wrong texts":
        return [(others[i].samples, others[i - 1].text or "") for i in range(N)]
    if kind == "three only":
        return [(clip.samples, clip.text or "") for clip in others[:3]]
    make = {"white noise": white, "hum": hum, "silence": silence}[kind]
    return [(make(number), prompt) for number in range(N)]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("wrong texts", "10 of 10 texts are not what is said in the recordings: are they somebody else's?"),
        ("white noise", "0 of 10 recordings can be used, 0 s (0001.flac: no speech in it: silence or noise)"),
        ("hum", "0 of 10 recordings can be used, 0 s (0001.flac: no speech in it: silence or noise)"),
        ("silence", "0 of 10 recordings can be used, 0 s (0001.flac: no speech in it: silence or noise)"),
        ("three only", "3 of 3 recordings can be used, 40 s; expected at least 8 and 30 s: record more"),
    ],
    ids=["wrong-texts", "white-noise", "hum", "silence", "three-only"],
)
def test_refused_before_anything_is_learned(
    store: ProfileStore,
    bundle: Bundle,
    others: list[Candidate],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    reason: str,
) -> None:
    rows = []
    for number, (samples, text) in enumerate(recordings(kind, others)):
        sf.write(tmp_path / f"{number}.flac", samples, 16000)
        rows.append(json.dumps({"audio": f"{number}.flac", "text": text}))
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    where = ["--profiles", str(store.folder.parent), "--bundle", str(bundle.path)]
    code = main(["enroll", "anna", "--from", str(tmp_path / "list.jsonl"), "--nice", "0", *where])
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    first, last = printed.err.splitlines()
    assert "recordings imported" in first and last.startswith("whisperfold: ") and reason in last
    assert store.active().version == "0001" and len(store.versions("anna")) == 1
    assert store.active().weights()


def many_voices() -> list[Candidate]:
    """Eighteen clips of eighteen speakers, none of whom is among the N_JUDGES."""
    return list(read_source(CANARY / "canary.jsonl"))[N_JUDGES:]


def one_voice(speech: Path) -> list[Candidate]:
    """Twenty recordings of one accented speaker."""
    rows = [json.loads(line) for line in (speech / "accented-enroll.jsonl").read_text().splitlines()[:20]]
    return [Candidate(row["audio"], load_audio(speech / row["audio"]), row["text"]) for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("voices", ["many", "one"])
def test_a_wild_recipe_is_refused(
    store: ProfileStore, transcriber: Transcriber, request: pytest.FixtureRequest, voices: str
) -> None:
    """Right texts, a rate at which the model forgets, and no stop that would save it: no gain, or others lose."""
    many = voices == "many"
    clips = many_voices() if many else one_voice(request.getfixturevalue("speech_dir"))
    for clip in clips:
        store.recordings("anna").add(clip.samples, clip.text or "")
    wild = AdaptationOptions(rank=16, alpha=32.0, learning_rate=2e-3, epochs=14, batch=1, held_out_clips=0)
    options = EnrollOptions(wild, folds=2, threads=2, canary_clips=N_JUDGES if many else 0)
    outcome = enroll(store, "anna", transcriber, options)
    reason = outcome.decision.reason
    assert not outcome.decision.promoted, reason
    assert reason.startswith(("no gain: ", "the gain may be luck ", "others would be understood worse: "))
    assert "\n" not in reason
    assert store.active().version == "0001" and store.active().weights()
    assert "Not taken" in outcome.profile.report.read_text()
