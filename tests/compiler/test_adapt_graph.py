"""adapt.onnx: the gradients of torch, the weights of the bundle, no copy of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from gradient_table import LONG, QUICK, Case, base_bundle, speech_feed
from reference_adapter import (
    SCALING,
    Feed,
    adapted_logits,
    largest_error,
    onnx_gradients,
    random_adapter,
    torch_gradients,
    torch_model,
    trainable_bundle,
    trainable_copy,
)

from whisperfold.compiler.adapt_graph import GRAPH_NAME, adapt_graph, try_out
from whisperfold.compiler.projections import matrix_parts
from whisperfold.compiler.shared_weights import share_weights
from whisperfold.models.dims import DecoderWidths, EncoderWidths, Widths
from whisperfold.models.sources import Checkpoint, SourceError
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import GRAPHS, Bundle
from whisperfold.runtime.errors import CompileError
from whisperfold.runtime.session import Engine

SPEECH = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in LONG)]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Bundle:
    """The packaged bundle with a training graph made now."""
    return trainable_copy(tmp_path_factory.mktemp("adapt") / "tiny.en", bundle_path)


@pytest.fixture(scope="module", params=["fp32", "int8", "mixed"])
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: Checkpoint) -> Bundle:
    """A bundle of a random model with another width in each place; mixed needs whole blocks of 128."""
    dims = replace(tiny.dims, n_audio_state=128, n_text_state=128) if request.param == "mixed" else tiny.dims
    encoder = (EncoderWidths(qk=16, vo=24, ffn=256), EncoderWidths(qk=32, vo=32, ffn=128))
    decoder = (DecoderWidths(self_qk=8, self_vo=16, cross_qk=24, cross_vo=8, ffn=64),)
    model = Whisper(dims, Widths(encoder, decoder))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return trainable_bundle(tmp_path_factory.mktemp("cut") / "cut", tiny, model, request.param)


def random_feed(bundle: Bundle, n_batch: int, n_frames: int, n: int) -> Feed:
    """Noise, and tokens that mean nothing: large gradients everywhere."""
    rng, dims = np.random.default_rng(n), bundle.dims
    weights = rng.uniform(0.5, 2.0, (n_batch, n)).astype(np.float32)
    weights[:, 0] = 0.0
    tokens, labels = (rng.integers(0, dims.n_vocab, (n_batch, n)) for _ in range(2))
    mel = rng.normal(size=(n_batch, dims.n_mels, n_frames)).astype(np.float32)
    return {"mel": mel, "tokens": tokens, "labels": labels, "label_weights": weights}


def check_gradients(bundle: Bundle, feed: Feed, tolerance: float = 1e-4) -> None:
    adapter = random_adapter(bundle, rank=4)
    loss, found = onnx_gradients(bundle, feed, adapter)
    expected_loss, expected = torch_gradients(bundle, feed, adapter)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    error, name = largest_error(found, expected)
    assert error <= tolerance, name


@pytest.mark.parametrize("case", SPEECH, ids=str)
def test_gradients_on_speech_are_those_of_torch(packaged: Bundle, case: Case) -> None:
    feed = speech_feed(packaged, case)
    assert feed["mel"].shape[0] == len(case.lengths_s)
    check_gradients(packaged, feed)


@pytest.mark.parametrize(("n_batch", "n_frames", "n"), [(1, 33, 2), (2, 40, 7), (3, 101, 12)])
def test_gradients_of_a_random_model_are_those_of_torch(cut: Bundle, n_batch: int, n_frames: int, n: int) -> None:
    check_gradients(cut, random_feed(cut, n_batch, n_frames, n))


def test_label_smoothing_is_that_of_torch(cut: Bundle) -> None:
    feed = random_feed(cut, 2, 40, 7) | {"label_smoothing": np.array(0.1, np.float32)}
    check_gradients(cut, feed)


def test_every_projection_has_an_adapter(packaged: Bundle) -> None:
    modules = {name for name, module in torch_model(packaged).named_modules() if isinstance(module, torch.nn.Linear)}
    assert {part.module for parts in matrix_parts(packaged).values() for part in parts} == modules


def test_weights_are_not_copied(packaged: Bundle) -> None:
    graph = onnx.load_from_string(packaged.read(GRAPH_NAME)).graph
    assert packaged.manifest["files"][packaged.stored(GRAPH_NAME)]["bytes"] < 500_000
    assert packaged.size_bytes < 25_000_000
    sources = {
        name: {tensor.name: tensor.raw_data for tensor in onnx.load(str(packaged.file(name))).graph.initializer}
        for name in GRAPHS
    }
    contents = {name: packaged.file(name).read_bytes() for name in GRAPHS}
    shared = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert len(shared) > 40
    for tensor in shared:
        place = {entry.key: entry.value for entry in tensor.external_data}
        name, first = place["location"], int(place["offset"])
        assert (
            contents[name][first : first + int(place["length"])] == sources[name][tensor.name.removesuffix(".levels")]
        )


def test_the_other_files_stay_as_they_are(packaged: Bundle, bundle: Bundle) -> None:
    old, new = (
        {name: entry for name, entry in one.manifest["files"].items() if name != one.stored(GRAPH_NAME)}
        for one in (bundle, packaged)
    )
    assert old == new
    assert Bundle.open(packaged.path).manifest == packaged.manifest


def test_the_packaged_training_graph_is_that_of_its_files(packaged: Bundle, bundle: Bundle) -> None:
    assert bundle.read(GRAPH_NAME) == packaged.read(GRAPH_NAME)
    assert bundle.manifest["adapt"] == packaged.manifest["adapt"]


def test_folding_facts_lead_to_the_stored_tensors(cut: Bundle) -> None:
    tensors = {t.name: t for name in GRAPHS for t in onnx.load(str(cut.file(name))).graph.initializer}
    matrices = cut.manifest["adapt"]["matrices"]
    assert [matrix["matrix"].removesuffix(".weight") for matrix in matrices] == list(matrix_parts(cut))
    for matrix in matrices:
        assert matrix["tensors"][matrix["matrix"]]["shape"][1] == matrix["parts"][-1]["columns"][1]
        assert (matrix["bias"] is None) == (matrix["matrix"] == "decoder.cross_kv.weight")
        for name, place in matrix["tensors"].items():
            found = np.fromfile(cut.file(place["file"]), np.uint8, offset=place["offset"])
            assert found[: len(tensors[name].raw_data)].tobytes() == tensors[name].raw_data, name


def test_weights_of_another_bundle_are_refused(packaged: Bundle, cut: Bundle) -> None:
    with pytest.raises(CompileError, match=r"is not stored in encoder\.onnx or decoder\.onnx"):
        share_weights(adapt_graph(packaged), cut)


def test_a_graph_that_does_not_run_is_refused(cut: Bundle) -> None:
    with pytest.raises(CompileError, match="does not run"):
        try_out(b"not a graph", cut)


def test_gradients_that_are_no_numbers_are_refused(cut: Bundle) -> None:
    model = adapt_graph(cut)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "encoder.layers.0.attn.out.bias")
    bias.raw_data = np.full(bias.dims[0], np.nan, np.float32).tobytes()
    with pytest.raises(CompileError, match="no finite gradients"):
        try_out(model.SerializeToString(), cut)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The multilingual base, nothing cut."""
    try:
        return base_bundle(tmp_path_factory.mktemp("base") / "base")
    except SourceError as error:
        pytest.skip(f"no base checkpoint: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("case", [*QUICK, *LONG], ids=str)
def test_gradients_of_base_are_those_of_torch(base: Bundle, case: Case) -> None:
    check_gradients(base, speech_feed(base, case), tolerance=5e-4)


def test_the_folded_profile_is_base_plus_adapter(cut: Bundle) -> None:
    """Logits and next words of the device with a folded profile are those of torch, the adapter beside the weights."""
    if cut.precision != "fp32":
        pytest.skip("folding into 8 bits rounds again; tests/runtime/test_adapter.py has its tolerance")
    arrays = {name: 5 * array for name, array in random_adapter(cut, rank=4).items()}
    adapter = Adapter(arrays, 4, 4 * SCALING)
    feed = random_feed(cut, 1, 300, 9)
    expected = adapted_logits(cut, feed, arrays)
    engine = Engine(cut, 1, overrides=adapter.fold(cut))
    cache = engine.new_cache(engine.encode(feed["mel"]))
    found, _ = engine.step(feed["tokens"], cache, np.arange(9))
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert (found.argmax(-1) == expected.argmax(-1)).all()
    plain = Engine(cut, 1)
    bare, _ = plain.step(feed["tokens"], plain.new_cache(plain.encode(feed["mel"])), np.arange(9))
    assert np.abs(bare - expected).max() > 0.05 * np.abs(expected).max()
