"""Fixtures that every test may use: the bundle, a loaded transcriber, the sample clip, the shared speech."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from whisperfold.runtime.audio import load_audio
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.packaged import default_bundle
from whisperfold.runtime.transcribe import Transcriber

if TYPE_CHECKING:
    from whisperfold.models.sources import Checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE_CLIP = REPOSITORY / "runtime" / "samples" / "jfk.flac"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bundle", type=Path, default=None, help="bundle to test instead of the packaged one")


def pytest_report_header(config: pytest.Config) -> str:
    import onnxruntime

    bundle = config.getoption("--bundle") or default_bundle()
    return f"numpy {np.__version__}, onnxruntime {onnxruntime.__version__}, bundle {bundle}"


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Undo what the command line does to logging: its handler writes to the stderr of one test, which is closed."""
    root, package = logging.getLogger(), logging.getLogger("whisperfold")
    before = root.level, package.level
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers
    root.setLevel(before[0])
    package.setLevel(before[1])


@pytest.fixture(scope="session")
def bundle_path(request: pytest.FixtureRequest) -> Path:
    """Directory of the bundle under test."""
    path = request.config.getoption("--bundle") or default_bundle()
    if not path.is_dir():
        pytest.skip(f"no bundle at {path}: `make bundle` builds the default one")
    return path


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    """The bundle under test, opened."""
    return Bundle.open(bundle_path)


@pytest.fixture(scope="session")
def transcriber(bundle_path: Path) -> Transcriber:
    """One loaded transcriber for the whole run, two threads."""
    return Transcriber.open(bundle_path, threads=2)


@pytest.fixture(scope="session")
def jfk() -> np.ndarray:
    """The packaged sample clip: 11 s, "ask not what your country can do for you" (public domain)."""
    samples = load_audio(SAMPLE_CLIP)
    samples.setflags(write=False)
    return samples


@pytest.fixture(scope="session")
def speech_dir() -> Path:
    """Real speech beside the repository; it is not part of it."""
    path = REPOSITORY.parent / "shared" / "speech"
    if not path.is_dir():
        pytest.skip(f"no real speech at {path}")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Checkpoint:
    """A seeded two-layer checkpoint with the real tokenizer."""
    from whisperfold.models.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tokenizer.json").write_bytes(Bundle.open(bundle_path, check=False).read("tokenizer.json"))
    return tiny_checkpoint(folder)
