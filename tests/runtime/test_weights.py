"""Profiles of a running recogniser: switched by it, by another process, while unloaded, when damaged."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_loop import run, until

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BundleError, ProfileError
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recognizer import Recognizer
from whisperfold.runtime.speaker import open_transcriber
from whisperfold.runtime.transcribe import Transcriber

RATE_HZ = 16_000
Make = Callable[..., Recognizer]


@pytest.fixture
def make(bundle: Bundle, voices: ProfileStore, transcriber: Transcriber) -> Make:
    """Recognizers with anna's store, on weights that are loaded already."""

    def make(is_loaded: bool = True, **settings: Any) -> Recognizer:
        recognizer = Recognizer(bundle.path, threads=2, profiles=voices.folder.parent, **settings)
        recognizer._weights._loaded = transcriber if is_loaded else None
        return recognizer

    return make


@pytest.fixture
def clip(jfk: np.ndarray) -> np.ndarray:
    return jfk[: RATE_HZ * 5]


@pytest.fixture
def texts(bundle: Bundle, voices: ProfileStore, transcriber: Transcriber, clip: np.ndarray) -> tuple[str, str]:
    """The clip as the bundle hears it, and as anna's profile does."""
    anna = open_transcriber(bundle.path, "anna", voices.folder.parent, 2)
    plain, profiled = transcriber.transcribe(clip).text, anna.transcribe(clip).text
    assert plain and profiled and plain != profiled
    return plain, profiled


def damage(store: ProfileStore) -> None:
    with (store.get("anna").folder / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")


def name_in_use(recognizer: Recognizer) -> str | None:
    profile = recognizer.status()["profile"]
    return profile["name"] if profile else None


def test_use(make: Make, voices: ProfileStore, clip: np.ndarray, texts: tuple[str, str]) -> None:
    async def work() -> None:
        recognizer = make()
        assert recognizer.profile is None and recognizer.store.folder == voices.folder
        await recognizer.use("anna")
        assert recognizer.status()["profile"] == {"name": "anna", "version": "0001"}
        assert (await recognizer.transcribe(clip)).text == texts[1]
        assert voices.active().name == "anna"
        await recognizer.use(None)
        assert recognizer.profile is None and (await recognizer.transcribe(clip)).text == texts[0]
        with pytest.raises(ProfileError, match="no profile 'zoe'"):
            await recognizer.use("zoe")
        assert voices.active() is None
        await recognizer.close()

    run(work())


def test_another_process_switches_and_the_next_clip_has_it(
    make: Make, voices: ProfileStore, clip: np.ndarray, texts: tuple[str, str]
) -> None:
    async def work() -> None:
        recognizer = make()
        for name, text in (("anna", texts[1]), (None, texts[0]), ("anna", texts[1])):
            voices.use(name)
            assert name_in_use(recognizer) == name
            assert (await recognizer.transcribe(clip)).text == text
        anna = voices.get("anna")
        voices.promote(voices.add("anna", anna.adapter(), anna.weights(), anna.facts, ""))
        await recognizer.transcribe(clip[:RATE_HZ])
        assert recognizer._weights._loaded.profile.version == recognizer.status()["profile"]["version"] == "0002"
        voices.delete("anna")
        assert [segment.text async for segment in recognizer.segments([clip])] == [texts[0]]
        await recognizer.close()

    run(work())


def test_unload_and_reload_keep_the_profile(
    make: Make, voices: ProfileStore, clip: np.ndarray, texts: tuple[str, str]
) -> None:
    async def work() -> None:
        voices.use("anna")
        recognizer = make(is_loaded=False, idle_unload_s=0.05)
        await recognizer.load()
        await until(lambda: not recognizer.status()["loaded"])
        assert name_in_use(recognizer) == "anna"
        assert (await recognizer.transcribe(clip)).text == texts[1]
        await recognizer.reload()
        assert (await recognizer.transcribe(clip)).text == texts[1]
        await until(lambda: not recognizer.status()["loaded"])
        voices.use(None)
        assert name_in_use(recognizer) is None and (await recognizer.transcribe(clip)).text == texts[0]
        await recognizer.close()

    run(work())


def test_a_bundle_that_cannot_be_reloaded_is_held_back_until_one_can(make: Make, tmp_path: Path) -> None:
    async def work() -> None:
        recognizer = make()
        with pytest.raises(BundleError):
            await recognizer.reload(tmp_path / "none")
        assert recognizer.status()["held_back"] == "bundle" and recognizer.status()["error"]
        await recognizer.reload()
        assert recognizer.status()["held_back"] is None and recognizer.status()["error"] is None
        await recognizer.close()

    run(work())


def test_a_damaged_profile_does_not_keep_the_server_down(
    make: Make, voices: ProfileStore, clip: np.ndarray, texts: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    voices.use("anna")
    damage(voices)

    async def work() -> None:
        recognizer = make(is_loaded=False)
        with caplog.at_level(logging.WARNING):
            assert (await recognizer.transcribe(clip)).text == texts[0]
            assert (await recognizer.transcribe(clip)).text == texts[0]
        (record,) = caplog.records
        assert "left out" in record.message
        assert recognizer.status()["profile"] is None and recognizer.status()["error"] is None
        with pytest.raises(ProfileError, match="checksum"):
            await recognizer.use("anna")
        await recognizer.close()

    run(work())
    (voices.get("anna").folder / "profile.json").write_text("{")
    assert make(is_loaded=False).profile is None


def test_a_server_for_one_speaker(make: Make, voices: ProfileStore, clip: np.ndarray, texts: tuple[str, str]) -> None:
    async def work() -> None:
        recognizer = make(is_loaded=False, speaker="anna")
        assert (await recognizer.transcribe(clip)).text == texts[1]
        with pytest.raises(ProfileError, match="started for speaker 'anna'"):
            await recognizer.use(None)
        voices.delete("anna")
        assert (await recognizer.transcribe(clip)).text == texts[1]  # what is loaded goes on
        assert "no profile 'anna'" in recognizer.status()["error"]
        assert recognizer.status()["held_back"] == "profile"
        recognizer._weights.drop()
        with pytest.raises(ProfileError, match="no profile 'anna'"):
            await recognizer.transcribe(clip)
        assert recognizer.status()["held_back"] is None and recognizer.status()["error"]  # nothing goes on
        await recognizer.close()

    run(work())
    with pytest.raises(ProfileError, match="no profile 'anna'"):
        make(speaker="anna")
    voices.use(None)
    assert make(is_loaded=False, speaker="none").profile is None
