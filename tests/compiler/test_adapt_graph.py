"""adapt.onnx: the gradients of torch, the weights of the bundle, no copy of them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from reference_adapter import SCALING, attach, random_adapter, torch_loss, torch_model  # noqa: E402

from whisperfold.compiler.adapt_graph import FILES, GRAPH_NAME, add_adapt_graph, matrix_parts  # noqa: E402
from whisperfold.runtime.audio import load_audio  # noqa: E402
from whisperfold.runtime.bundle import Bundle, default_bundle  # noqa: E402
from whisperfold.runtime.mel import log_mel  # noqa: E402

SAMPLE = Path(__file__).parents[2] / "runtime" / "samples" / "jfk.flac"


def open_session(bundle: Bundle) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(bundle.file(GRAPH_NAME)), options, providers=["CPUExecutionProvider"])


def batch(n_batch: int, n_frames: int, n: int, n_vocab: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Real speech, and tokens that are not its text: large gradients everywhere."""
    rng, samples = np.random.default_rng(seed), load_audio(SAMPLE)
    mels = [log_mel(samples[8000 * i : 8000 * i + 160 * n_frames], 80) for i in range(n_batch)]
    weights = np.ones((n_batch, n), np.float32)
    weights[:, :2] = 0.0
    tokens, labels = (rng.integers(0, n_vocab - 1600, (n_batch, n)) for _ in range(2))
    return {"mel": np.stack(mels), "tokens": tokens, "labels": labels, "label_weights": weights}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The packaged bundle with a training graph made now."""
    folder = tmp_path_factory.mktemp("adapt") / "tiny.en"
    shutil.copytree(default_bundle(), folder)
    return add_adapt_graph(folder)


@pytest.mark.parametrize(("n_batch", "n_frames", "n"), [(1, 600, 21), (3, 400, 9), (2, 774, 30)])
def test_gradients_are_those_of_torch(bundle: Bundle, n_batch: int, n_frames: int, n: int) -> None:
    adapter = random_adapter(bundle, rank=4)
    feed = batch(n_batch, n_frames, n, bundle.dims.n_vocab)
    session = open_session(bundle)
    names = ["loss", *(f"grad.{name}" for name in adapter)]
    inputs = {**feed, **adapter, "scaling": np.array(SCALING, np.float32)}
    loss, *gradients = session.run(names, inputs)

    model = torch_model(bundle)
    tensors = attach(model, adapter)
    expected = torch_loss(model, feed)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, found, wanted in zip(
        adapter, gradients, torch.autograd.grad(expected, list(tensors.values())), strict=True
    ):
        reference = wanted.numpy()
        assert found.shape == reference.shape
        assert np.abs(found - reference).max() <= 1e-3 * np.abs(reference).max(), name


def test_every_projection_has_an_adapter(bundle: Bundle) -> None:
    model = torch_model(bundle)
    modules = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {part.module for parts in matrix_parts(bundle).values() for part in parts} == modules


def test_weights_are_not_copied(bundle: Bundle) -> None:
    graph = onnx.load(str(bundle.file(GRAPH_NAME)), load_external_data=False).graph
    assert bundle.file(GRAPH_NAME).stat().st_size < 1_000_000
    sources = {
        name: {tensor.name: tensor.raw_data for tensor in onnx.load(str(bundle.file(name))).graph.initializer}
        for name in FILES
    }
    contents = {name: bundle.file(name).read_bytes() for name in FILES}
    shared = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert len(shared) > 40
    for tensor in shared:
        place = {entry.key: entry.value for entry in tensor.external_data}
        name, first = place["location"], int(place["offset"])
        assert contents[name][first : first + int(place["length"])] == sources[name][tensor.name], tensor.name


def test_the_other_files_stay_as_they_are(bundle: Bundle) -> None:
    old = Bundle.open(default_bundle()).manifest["files"]
    new = bundle.manifest["files"]
    assert {name: entry for name, entry in new.items() if name != GRAPH_NAME} == {
        name: entry for name, entry in old.items() if name != GRAPH_NAME
    }


def test_folding_facts_find_every_matrix(bundle: Bundle) -> None:
    for matrix in bundle.manifest["adapt"]["matrices"]:
        facts = matrix["tensors"][matrix["matrix"]]
        raw = np.memmap(bundle.file(facts["file"]), np.uint8, "r", facts["offset"], tuple(facts["shape"]))
        assert raw.shape[1] == matrix["parts"][-1]["columns"][1]
        assert abs(float(raw.mean()) - 128) < 8, "columns are centred on the zero point"
