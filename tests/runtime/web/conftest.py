"""Headless Chromium, the real server, and a page of it in a new tab.

One server and one Chromium for all tests; Chromium's fake microphone speaks the packaged clip, from its
beginning each time it is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

sys.path.insert(0, str(Path(__file__).parent))
from chromium import CHROMIUM, Browser, Page  # noqa: E402
from served import Served, serving, with_silence  # noqa: E402

from whisperfold.runtime.audio import SAMPLE_RATE  # noqa: E402

OTHER_NAME = "speech.test"
"""A name for this machine that is not localhost: no secure context, and no trust without the token."""


@pytest.fixture(scope="session")
def server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(bundle_path, tmp_path_factory.mktemp("serve")) as served:
        yield served


@pytest.fixture(scope="session")
def browser(jfk: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    spoken = tmp_path_factory.mktemp("speech") / "jfk.wav"
    sf.write(spoken, with_silence(jfk), SAMPLE_RATE)
    with Browser(microphone=spoken, names={OTHER_NAME: "127.0.0.1"}) as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Page]:
    """The page in a new tab; whatever a test does, nothing may be complained about or fetched from elsewhere."""
    opened = browser.open(server.url)
    yield opened
    assert opened.errors == []
    outside = [url for url in opened.requests if f"127.0.0.1:{server.port}/" not in url and not url.startswith("blob:")]
    assert outside == []
    opened.close()


@pytest.fixture
def other_url(server: Served) -> str:
    """The server under a name that is not localhost."""
    return f"http://{OTHER_NAME}:{server.port}/"
