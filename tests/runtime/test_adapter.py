"""Adapters: nothing changes nothing, fold = base + adapter, files that peft reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from whisperfold.runtime.adapter import Adapter, matrices, modules
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BundleError, EnrollmentError, ProfileError
from whisperfold.runtime.quantized import dequantize_columns, quantize_columns, read_tensor
from whisperfold.runtime.session import Engine
from whisperfold.runtime.training_graph import TrainingGraph
from whisperfold.runtime.transcribe import Transcriber

TEXT = "And so my fellow Americans, ask not what your country can do for you, ask what you can do for your country."


@pytest.fixture(scope="module")
def adaptable(bundle: Bundle) -> Bundle:
    if "adapt" not in bundle.manifest:
        pytest.skip("the bundle has no training graph")
    return bundle


def random_adapter(bundle: Bundle, size: float) -> Adapter:
    rng, adapter = np.random.default_rng(1), Adapter.create(bundle, rank=4, alpha=8.0)
    for name, tensor in adapter.tensors.items():
        if not name.endswith(".lora_A"):
            tensor[...] = rng.normal(0.0, size, tensor.shape)
    return adapter


def test_quantised_columns_are_within_half_a_step() -> None:
    weight = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32)
    weight[:, 3] = 0.0
    quantized, scale = quantize_columns(weight)
    restored = dequantize_columns(quantized, scale)
    assert (np.abs(restored - weight) <= scale / 2 + 1e-6).all()
    again, scale_again = quantize_columns(restored)
    assert np.array_equal(again, quantized) and np.allclose(scale_again, scale, rtol=1e-6)


def test_an_empty_adapter_folds_to_the_bundles_own_weights(adaptable: Bundle) -> None:
    folded = Adapter.create(adaptable).fold(adaptable)
    places = {name: place for matrix in matrices(adaptable) for name, place in matrix["tensors"].items()}
    assert {name for name in places if not name.endswith(".zero_point")} == set(folded)
    for name, array in folded.items():
        stored = read_tensor(adaptable.path, places[name])
        assert array.dtype == stored.dtype and np.allclose(array, stored, rtol=1e-6, atol=0), name


def test_fold_is_base_plus_adapter_in_float(adaptable: Bundle) -> None:
    matrix = next(m for m in matrices(adaptable) if m["matrix"].endswith("attn.qkv.weight"))
    adapter, name = random_adapter(adaptable, 0.05), matrix["matrix"]
    folded = adapter.fold(adaptable)
    base = dequantize_columns(*(read_tensor(adaptable.path, matrix["tensors"][f"{name}{s}"]) for s in ("", ".scale")))
    x = np.random.default_rng(2).normal(size=(5, base.shape[0])).astype(np.float32)
    bias = read_tensor(adaptable.path, matrix["tensors"][matrix["bias"]])
    found = x @ dequantize_columns(folded[name], folded[f"{name}.scale"]) + folded[matrix["bias"]]
    for part in matrix["parts"]:
        columns = slice(*part["columns"])
        a, b = (adapter.tensors[f"{part['module']}.{key}"] for key in ("lora_A", "lora_B"))
        expected = x @ base[:, columns] + bias[columns] + part["factor"] * 2.0 * (x @ a.T) @ b.T
        if part["gain"]:
            expected = expected * (1.0 + adapter.tensors[f"{part['module']}.gain"])
        error = np.linalg.norm(found[:, columns] - expected) / np.linalg.norm(expected)
        assert error < 0.03, (part["module"], error)  # 8 bits; without the gain it is 0.05


def test_a_weaker_adapter_changes_a_share(adaptable: Bundle) -> None:
    adapter = random_adapter(adaptable, 0.05)
    half, whole = adapter.weakened(0.5), adapter.weakened(1.0)
    assert half.norms() == pytest.approx({name: norm / 2 for name, norm in adapter.norms().items()})
    assert whole.norms() == adapter.norms()
    for name, tensor in adapter.tensors.items():
        assert np.array_equal(half.tensors[name], tensor * (0.5 if name.endswith(".gain") else 1.0))


def test_the_folded_bundle_hears_what_base_and_adapter_hear(adaptable: Bundle, jfk: np.ndarray) -> None:
    adapter = random_adapter(adaptable, 0.01)
    graph = TrainingGraph(adaptable, 1)
    empty = Adapter.create(adaptable)
    assert graph.run(jfk, TEXT, adapter, ())[0] != pytest.approx(graph.run(jfk, TEXT, empty, ())[0], rel=1e-3)
    folded = Transcriber(Engine(adaptable, 1, overrides=adapter.fold(adaptable)))
    plain = Transcriber(Engine(adaptable, 1))
    assert "country" in folded.transcribe(jfk).text
    mel = np.random.default_rng(0).normal(size=(adaptable.dims.n_mels, 200)).astype(np.float32)
    a, b = (t.engine.encode(mel).values[0].numpy() for t in (folded, plain))
    assert not np.allclose(a, b)


def test_files_keep_everything_and_have_pefts_names(adaptable: Bundle, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    adapter, path = random_adapter(adaptable, 0.1), tmp_path / "adapter.safetensors"
    path.write_bytes(adapter.to_bytes())
    loaded = Adapter.load(path)
    assert (loaded.rank, loaded.alpha, loaded.scaling) == (4, 8.0, 2.0)
    assert set(loaded.tensors) == set(adapter.tensors)
    assert all(np.array_equal(loaded.tensors[name], array) for name, array in adapter.tensors.items())
    module = next(modules(adaptable)).name
    assert f"base_model.model.{module}.lora_A.weight" in load_file(path)
    assert loaded.norms()[module] > 0.0
    with pytest.raises(ProfileError, match="not an adapter"):
        Adapter.load(tmp_path / "gone")


def test_what_cannot_be_adapted_is_refused(adaptable: Bundle, tmp_path: Path) -> None:
    bare = replace(adaptable, manifest={key: value for key, value in adaptable.manifest.items() if key != "adapt"})
    with pytest.raises(EnrollmentError, match="no training graph"):
        Adapter.create(bare)
    adapter = Adapter.create(adaptable)
    module = next(modules(adaptable)).name
    adapter.tensors[f"{module}.lora_A"] = np.zeros((8, 3), np.float32)
    with pytest.raises(EnrollmentError, match="another bundle"):
        adapter.fold(adaptable)
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(BundleError, match="1 of 9 values"):
        read_tensor(tmp_path, {"file": "short", "offset": 0, "shape": [3, 3], "dtype": "float32"})
