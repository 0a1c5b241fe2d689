"""The wizard's endpoints against a live server: takes, recordings, an adaptation in its own process, refusals."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf

from whisperfold.runtime.adaptation import AdaptationOptions
from whisperfold.runtime.enroll_job import EnrollJob
from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.enroll_worker import options_of
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.workers import BULK, FINAL

QUICK = EnrollOptions(AdaptationOptions(rank=2, epochs=1), folds=2, canary_clips=1)
TEXT = "And so, my fellow Americans,"


@pytest.fixture(scope="module")
def live(start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = start_server(profiles=tmp_path_factory.mktemp("profiles"))
    server.app.state.enroll_job = EnrollJob(server.app.state.recognizer, QUICK)
    return server


@pytest.fixture(scope="module")
def http(live: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.http, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def store(live: Any) -> ProfileStore:
    found: ProfileStore = live.app.state.recognizer.store
    return found


def wav(samples: np.ndarray) -> bytes:
    out = io.BytesIO()
    sf.write(out, samples, 16_000, format="WAV")
    return out.getvalue()


def post(http: httpx.Client, name: str, samples: np.ndarray, **fields: str) -> httpx.Response:
    return http.post(f"/v1/enroll/{name}/recordings", files={"file": ("take.wav", wav(samples))}, data=fields)


def fill(store: ProfileStore, name: str, jfk: np.ndarray, n: int, noise: bool = False) -> None:
    """Three seconds, each another recording by a hair; or noise under the same words."""
    recordings = store.recordings(name)
    for number in range(n):
        samples = jfk[:48_000] * np.float32(1.0 - 0.01 * number)
        if noise:
            samples = np.random.default_rng(number).normal(0, 0.03, 80_000).astype(np.float32)
        recordings.add(samples, TEXT)


def state_of(http: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/v1/enroll/{name}").json()["adaptation"]
    return found


def events(http: httpx.Client, name: str) -> list[dict[str, Any]]:
    """All states until the adaptation ends."""
    with http.stream("GET", f"/v1/enroll/{name}/adapt/events") as answer:
        return [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]


def test_what_to_read_and_how_much(http: httpx.Client) -> None:
    body = http.get("/v1/enroll", params={"language": "en"}).json()
    assert len(body["prompts"]) == 25 and all(len(text.split()) > 3 for text in body["prompts"])
    assert body["needed"] == {"recordings": 8, "seconds": 30.0} and body["max_s"] > 5 and not body["running"]
    refused = http.get("/v1/enroll", params={"language": "tlh"})
    assert refused.status_code == 400 and "this bundle knows" in refused.json()["error"]["message"]


def test_a_take_is_checked_kept_played_back_and_deleted(http: httpx.Client, jfk: np.ndarray) -> None:
    spoken = np.pad(jfk[:48_000], 64_000)
    checked = post(http, "ann", spoken, text=TEXT)
    assert checked.status_code == 200 and checked.json()["problem"] == "" and "fellow" in checked.json()["heard"]
    assert checked.json()["recording"] is None and http.get("/v1/enroll/ann").json()["recordings"] == []

    kept = post(http, "ann", spoken, text=f"  {TEXT} ", keep="1")
    recording = kept.json()["recording"]
    assert kept.status_code == 201 and recording["text"] == TEXT
    assert 2.5 < recording["duration_s"] < 4.5  # 8 s of silence are gone
    assert post(http, "ann", spoken, text=TEXT, keep="1").json()["recording"] == recording  # the answer had got lost
    other = post(http, "ann", spoken, text="And so my fellow Canadians", keep="1")
    assert other.status_code == 409 and "kept already" in other.json()["error"]["message"]

    assert [item["text"] for item in http.get("/v1/enroll/ann").json()["recordings"]] == [TEXT]
    assert {"name": "ann", "recordings": 1, "problem": ""} in http.get("/v1/enroll").json()["people"]
    audio = http.get(f"/v1/enroll/ann/recordings/{recording['file']}")
    samples, rate_hz = sf.read(io.BytesIO(audio.content))
    assert audio.headers["content-type"] == "audio/flac" and samples.size / rate_hz == recording["duration_s"]
    gone = http.delete(f"/v1/enroll/ann/recordings/{recording['file']}")
    assert gone.json()["recordings"] == []
    assert http.get(f"/v1/enroll/ann/recordings/{recording['file']}").status_code == 404


@pytest.mark.parametrize(
    ("text", "sound", "problem"),
    [
        ("Please turn the kitchen lights on and close the curtains.", "speech", "not what the text says"),
        (TEXT, "silence", "no speech in it"),
        (TEXT, "loud", "clipped"),
    ],
)
def test_a_bad_take_is_not_kept_whatever_was_asked(
    http: httpx.Client, jfk: np.ndarray, text: str, sound: str, problem: str
) -> None:
    samples = {"speech": jfk[:48_000], "silence": np.zeros(48_000), "loud": np.clip(jfk[:48_000] * 40, -1, 1)}[sound]
    answer = post(http, "bob", samples, text=text, keep="1")
    assert answer.status_code == 200 and problem in answer.json()["problem"]
    assert answer.json()["recording"] is None and http.get("/v1/enroll/bob").json()["recordings"] == []


@pytest.mark.parametrize(
    ("name", "fields", "status", "message"),
    [
        ("a b", {"text": TEXT}, 400, "profile name 'a b': expected"),
        ("ann", {"text": "?!"}, 400, "expected the words that are said"),
        ("ann", {"text": "a " * 300}, 400, "at most 500"),
        ("ann", {"text": TEXT, "keep": "yes"}, 400, "keep='yes': expected 0 or 1"),
        ("ann", {"text": TEXT, "language": "xx"}, 400, "this bundle knows"),
    ],
)
def test_forms_that_are_refused(
    http: httpx.Client, jfk: np.ndarray, name: str, fields: dict[str, str], status: int, message: str
) -> None:
    answer = post(http, name, jfk[:16_000], **fields)
    assert answer.status_code == status and message in answer.json()["error"]["message"]


def test_recordings_that_are_no_sentence_are_refused(http: httpx.Client) -> None:
    long = post(http, "ann", np.zeros(16_000 * 100), text=TEXT)
    assert long.status_code == 413 and "one sentence at a time" in long.json()["error"]["message"]
    no_file = http.post("/v1/enroll/ann/recordings", json={"text": TEXT})
    assert no_file.status_code == 415
    broken = http.post("/v1/enroll/ann/recordings", files={"file": ("a.wav", b"RIFFnothing")}, data={"text": TEXT})
    assert broken.status_code == 400


def test_a_take_waits_behind_live_captions_and_for_a_place(
    start_server: Callable[..., Any], jfk: np.ndarray, tmp_path: Path
) -> None:
    live = start_server(profiles=tmp_path, max_waiting=0)
    recognizer, release = live.app.state.recognizer, threading.Event()
    asyncio.run_coroutine_threadsafe(recognizer.run(FINAL, release.wait), live.loop)  # the only worker
    with httpx.Client(base_url=live.http, timeout=10) as http, ThreadPoolExecutor(1) as pool:
        try:
            take, end_s = pool.submit(post, http, "ann", jfk[:48_000], text=TEXT), time.monotonic() + 10
            while not (waiting := recognizer._workers._queue.queue[:1]):
                assert time.monotonic() < end_s
            assert waiting[0][0] == BULK
            refused = post(http, "bob", jfk[:48_000], text=TEXT)
        finally:
            release.set()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "queue"
        assert take.result().status_code == 200


def test_one_persons_damage_is_not_everybodys(http: httpx.Client, store: ProfileStore, jfk: np.ndarray) -> None:
    for name in ("kim", "lea"):
        store.recordings(name).add(jfk[:48_000], TEXT)
    (store.recordings("kim").folder / "manifest.jsonl").write_text("{")
    listed = http.get("/v1/enroll")
    assert listed.status_code == 200
    assert {"name": "kim", "recordings": None, "problem": "damaged"} in listed.json()["people"]
    assert {"name": "lea", "recordings": 1, "problem": ""} in listed.json()["people"]
    assert "damaged" in http.get("/v1/enroll/kim").json()["error"]["message"]


def test_a_recording_is_played_as_it_was_kept(http: httpx.Client, store: ProfileStore, jfk: np.ndarray) -> None:
    kept = store.recordings("mia").add(jfk[:48_000], TEXT)
    assert kept is not None
    path = store.recordings("mia").folder / kept.file
    path.write_bytes(path.read_bytes() + b"to the last byte")
    assert http.get(f"/v1/enroll/mia/recordings/{kept.file}").content == path.read_bytes()
    path.unlink()
    gone = http.get(f"/v1/enroll/mia/recordings/{kept.file}")
    assert gone.status_code == 404 and "its file is gone" in gone.json()["error"]["message"]


def test_encrypted_recordings_are_unsealed_where_the_server_may_and_refused_otherwise(
    http: httpx.Client, store: ProfileStore, jfk: np.ndarray
) -> None:
    pytest.importorskip("cryptography")
    kept = store.recordings("nora").add(jfk[:48_000], TEXT)
    assert kept is not None
    flac = http.get(address := f"/v1/enroll/nora/recordings/{kept.file}").content
    store.encrypt("nora", "a long passphrase")
    assert flac[:4] == b"fLaC" and http.get(address).content == flac
    assert {"name": "nora", "recordings": None, "problem": "encrypted"} in http.get("/v1/enroll").json()["people"]
    store._unlocked.clear()
    assert http.get(address).status_code == 409


def test_the_servers_settings_reach_the_worker(
    start_server: Callable[..., Any], jfk: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start_server(profiles=tmp_path / "profiles", threads=1, enroll_max_memory_mb=700, enroll_nice=15)
    fill(live.app.state.recognizer.store, "ola", jfk, 12)
    worker = tmp_path / "worker"  # says what it is told
    script = "import json, sys\nprint(json.dumps({'type': 'error', 'message': sys.stdin.readline()}))\n"
    worker.write_text(f"#!{sys.executable}\n{script}")
    worker.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(worker))
    with httpx.Client(base_url=live.http, timeout=30) as http:
        assert http.post("/v1/enroll/ola/adapt").status_code == 202
        order = json.loads(events(http, "ola")[-1]["message"])
    assert (order["nice"], order["options"]["threads"], order["options"]["max_memory_mb"]) == (15, 1, 700)


def test_nothing_to_adapt_cancel_or_show(http: httpx.Client) -> None:
    too_few = http.post("/v1/enroll/carl/adapt")
    assert too_few.status_code == 409 and "0 recordings, 0 s; expected at least 8" in too_few.json()["error"]["message"]
    assert http.delete("/v1/enroll/carl/adapt").status_code == 409
    assert http.get("/v1/enroll/carl/report").status_code == 404
    assert events(http, "carl") == [{"state": "idle", "progress": None, "message": ""}]


def test_an_adaptation_that_cannot_be_ends_with_its_reason_and_no_name_in_the_log(
    http: httpx.Client, store: ProfileStore, jfk: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, "dora", jfk, 10, noise=True)
    with caplog.at_level("INFO", logger="whisperfold"):
        post(http, "dora", jfk[:48_000], text=TEXT, keep="1")
        assert http.post("/v1/enroll/dora/adapt").status_code == 202
        told = events(http, "dora")
    assert told[-1]["state"] == "failed" and "1 of 11 recordings can be used" in told[-1]["message"]
    assert state_of(http, "dora")["state"] == "failed"
    lines = [record.getMessage() for record in caplog.records]
    assert any("path=/v1/enroll/{name}/adapt" in line for line in lines)
    assert any("event=adaptation_ended state=failed" in line for line in lines)
    assert not any("dora" in line or "fellow" in line for line in lines)


def test_one_adaptation_at_a_time_and_a_cancel_ends_it(
    http: httpx.Client, store: ProfileStore, live: Any, jfk: np.ndarray
) -> None:
    for name in ("eve", "finn"):
        fill(store, name, jfk, 12)
    assert http.post("/v1/enroll/eve/adapt").json()["state"] == "running"
    with http.stream("GET", "/v1/enroll/eve/adapt/events") as answer:
        for line in answer.iter_lines():
            if '"progress": {' in line:
                break
    for name in ("eve", "finn"):
        busy = http.post(f"/v1/enroll/{name}/adapt")
        assert busy.status_code == 409 and "wait for its end" in busy.json()["error"]["message"]
    assert http.delete("/v1/enroll/finn/adapt").status_code == 409
    locked = post(http, "eve", jfk[:48_000], text=TEXT, keep="1")
    assert locked.status_code == 409 and "enrolled by another process" in locked.json()["error"]["message"]
    heard = http.post(
        "/v1/audio/transcriptions", files={"file": ("a.wav", wav(jfk[:48_000]))}, data={"model": "whisper-1"}
    )
    assert "fellow" in heard.json()["text"]  # the server works on
    assert http.delete("/v1/enroll/eve/adapt").json()["state"] == "cancelled"
    assert not live.app.state.enroll_job.is_running
    with store.locked("eve"):
        pass  # nobody holds it any more


def test_the_worker_ends_with_the_server(store: ProfileStore, jfk: np.ndarray, live: Any) -> None:
    fill(store, "gina", jfk, 12)
    order = {
        "name": "gina",
        "bundle": str(live.app.state.recognizer.bundle.path),
        "profiles": str(store.folder.parent),
        "nice": 5,
        "options": asdict(QUICK),
    }
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "whisperfold.runtime.enroll_worker"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps(order).encode() + b"\n")
        worker.stdin.flush()
        assert json.loads(worker.stdout.readline())["stage"] == "checking recordings"
        worker.stdin.close()  # as when the server is killed
        assert worker.wait(20) == -signal.SIGTERM


def test_a_worker_that_is_killed_is_a_failure_that_says_so(
    http: httpx.Client, store: ProfileStore, live: Any, jfk: np.ndarray
) -> None:
    fill(store, "hal", jfk, 12)
    http.post("/v1/enroll/hal/adapt")
    live.call(live.app.state.enroll_job._running[1].kill)
    end_s = time.monotonic() + 20
    while (state := state_of(http, "hal"))["state"] == "running":
        assert time.monotonic() < end_s
    assert state["state"] == "failed" and "signal 9" in state["message"] and "start it again" in state["message"]


def test_options_survive_the_way_to_the_worker() -> None:
    options = EnrollOptions(AdaptationOptions(rank=3, modules=("encoder",)), folds=3, language="de")
    assert options_of(json.loads(json.dumps(asdict(options)))) == options


def test_a_stopping_server_takes_the_worker_with_it(
    start_server: Callable[..., Any], jfk: np.ndarray, tmp_path: Path
) -> None:
    live = start_server(profiles=tmp_path)
    job = live.app.state.enroll_job = EnrollJob(live.app.state.recognizer, QUICK)
    fill(live.app.state.recognizer.store, "jan", jfk, 12)
    with httpx.Client(base_url=live.http, timeout=60) as http:
        assert http.post("/v1/enroll/jan/adapt").status_code == 202
        process = job._running[1]
        asyncio.run_coroutine_threadsafe(job.close(), live.loop).result(20)
        assert process.returncode == -signal.SIGTERM and state_of(http, "jan")["state"] == "cancelled"
