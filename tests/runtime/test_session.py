"""onnxruntime sessions of a bundle: caches, and what is said about a bundle that does not fit."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import AudioError, BundleError, ConfigError
from whisperfold.runtime.session import Engine
from whisperfold.runtime.transcribe import Transcriber


def test_cross_cache_has_one_position_per_20_ms(transcriber: Transcriber) -> None:
    engine = transcriber.engine
    cross = engine.encode(np.zeros((engine.dims.n_mels, 101), np.float32))
    assert cross.n_audio_positions == 51 and cross.batch == 1
    assert len(cross.values) == 2 * engine.dims.n_text_layer
    assert cross.values[0].shape()[-1] == cross.values[1].shape()[-2] == 51


def test_batches(transcriber: Transcriber) -> None:
    engine = transcriber.engine
    mel = np.random.default_rng(0).normal(size=(2, engine.dims.n_mels, 100)).astype(np.float32)
    cross = engine.encode(mel)
    cache = engine.new_cache(cross)
    logits, attention = engine.step(np.full((2, 2), engine.tokens.sot, np.int64), cache, attention=True)
    assert logits.shape == (2, 1, engine.dims.n_vocab) and cache.length == 2
    assert attention is not None and attention.shape[2:] == (2, 50)
    swapped = engine.reorder(cache, np.array([1, 0], np.int64))
    assert np.array_equal(swapped.past[0].numpy()[0], cache.past[0].numpy()[1])
    assert engine.reorder(cache, np.array([0, 0, 1], np.int64)).cross.batch == 3


def test_the_cache_is_the_callers(transcriber: Transcriber) -> None:
    engine = transcriber.engine
    cross = engine.encode(np.zeros((engine.dims.n_mels, 100), np.float32))
    first, second = engine.new_cache(cross), engine.new_cache(cross)
    engine.step(np.array([[engine.tokens.sot]], np.int64), first)
    assert (first.length, second.length) == (1, 0)
    assert engine.new_cache(cross).past[0].shape()[2] == 0


@pytest.mark.parametrize("shape", [(7, 100), (3001,), (80, 0), (80, 3001)])
def test_bad_mel(transcriber: Transcriber, shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match="mel: "):
        transcriber.engine.encode(np.zeros(shape, np.float32))


def test_too_many_tokens(transcriber: Transcriber) -> None:
    engine = transcriber.engine
    cross = engine.encode(np.zeros((engine.dims.n_mels, 100), np.float32))
    with pytest.raises(ConfigError, match="the model holds"):
        engine.step(np.zeros((1, engine.dims.n_text_ctx + 1), np.int64), engine.new_cache(cross))


def test_negative_threads(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="threads=-1"):
        Engine(bundle, threads=-1)


def test_a_graph_that_is_none(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    (copy / "encoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="encoder.onnx: onnxruntime cannot load it"):
        Engine(Bundle(copy, bundle.manifest))


def test_graphs_of_another_bundle(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    shutil.copy(copy / "encoder.onnx", copy / "decoder.onnx")
    with pytest.raises(BundleError, match="decoder.onnx: no input "):
        Engine(Bundle(copy, bundle.manifest))
