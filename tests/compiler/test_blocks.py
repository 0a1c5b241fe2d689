"""4-bit blocks: what is stored is what was meant, and outliers and correlated inputs are taken into account."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from whisperfold.compiler import blocks as blocks_module
from whisperfold.compiler.blocks import BLOCK, fine_rows, quantize_blocks, stored_rows
from whisperfold.compiler.graph import Graph
from whisperfold.compiler.quantize import quantize
from whisperfold.runtime.errors import CompileError


@pytest.fixture
def matrix() -> torch.Tensor:
    """Rows like a token embedding's: a few columns are thirty times larger."""
    weight = torch.randn(300, 2 * BLOCK, generator=torch.Generator().manual_seed(0)) * 0.01
    weight[:, 7] *= 30.0
    return weight


@pytest.fixture
def inputs() -> torch.Tensor:
    """Correlated, as hidden states are."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(16, 2 * BLOCK, generator=generator)
    return torch.randn(1000, 16, generator=generator) @ mixing + 0.3 * torch.randn(1000, 2 * BLOCK, generator=generator)


def plain(weight: torch.Tensor) -> torch.Tensor:
    """Rounding to the nearest level of each block."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    scale = blocks.abs().amax(2, keepdim=True) / 7
    return ((blocks / scale).round().clamp(-8, 7) * scale).flatten(1)


def test_products_are_nearer_than_with_plain_rounding(matrix: torch.Tensor, inputs: torch.Tensor) -> None:
    blocks = quantize_blocks(matrix, inputs.T @ inputs / len(inputs))
    wanted = inputs @ matrix.T
    lost = (inputs @ torch.from_numpy(blocks.dequantized()).T - wanted).norm() / wanted.norm()
    lost_plain = (inputs @ plain(matrix).T - wanted).norm() / wanted.norm()
    assert lost < 0.02 < 0.3 * lost_plain


def test_storage_is_half_a_byte_a_weight(matrix: torch.Tensor, inputs: torch.Tensor) -> None:
    blocks = quantize_blocks(matrix, inputs.T @ inputs)
    assert blocks.packed.shape == (300, 2, BLOCK // 2) and blocks.packed.dtype == np.uint8
    assert blocks.scale.shape == (300, 2) and blocks.scale.dtype == np.float16 and np.isfinite(blocks.scale).all()
    first = (blocks.packed[5, 0, 3] & 15).astype(np.float32) - 8, (blocks.packed[5, 0, 3] >> 4).astype(np.float32) - 8
    expected = np.array(first) * np.float32(blocks.scale[5, 0]) * blocks.columns[6:8]
    np.testing.assert_allclose(blocks.dequantized()[5, 6:8], expected, rtol=1e-6)


def test_zeros_and_odd_sizes() -> None:
    blocks = quantize_blocks(torch.zeros(4, BLOCK), torch.eye(BLOCK))
    assert not blocks.dequantized().any()
    with pytest.raises(CompileError, match="200 is no multiple of 128"):
        quantize_blocks(torch.zeros(3, 200), torch.eye(200))


def test_the_graph_looks_up_and_multiplies_with_the_same_bytes(matrix: torch.Tensor, inputs: torch.Tensor) -> None:
    blocks = quantize_blocks(matrix, inputs.T @ inputs / len(inputs))
    graph = Graph("table")
    tokens, x = graph.input("tokens", "int64", ("batch", "n")), graph.input("x", "float32", ("batch", "n", 2 * BLOCK))
    table = graph.constant("table", matrix.numpy().T.copy())
    rows = graph.op("Transpose", graph.op("Gather", table, tokens, axis=1), perm=[1, 2, 0])
    graph.output(rows, "rows", ("batch", "n", 2 * BLOCK))
    graph.output(graph.op("MatMul", x, table), "logits", ("batch", "n", 300))
    quantized, errors = quantize(graph.model(), blocks={"table": blocks})
    assert [(error.matrix, error.bits) for error in errors] == [("table", 4)]
    assert len(quantized.SerializeToString()) < 1.2 * matrix.numel() + 4000  # all rows are fine ones
    feed = {"tokens": np.array([[0, 7], [299, 7]]), "x": inputs[:4].reshape(2, 2, -1).numpy()}
    found, logits = ort.InferenceSession(quantized.SerializeToString()).run(None, feed)
    meant = stored_rows(blocks, fine_rows(matrix.numpy(), blocks))
    np.testing.assert_allclose(found, meant[feed["tokens"]], rtol=1e-5, atol=1e-7)
    expected = feed["x"] @ meant.T
    assert np.linalg.norm(logits - expected) < 0.02 * np.linalg.norm(expected)


def test_the_first_rows_are_finer(matrix: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "FINE_ROWS", 100)
    coarse = quantize_blocks(matrix, torch.eye(2 * BLOCK))
    lost = np.linalg.norm(stored_rows(coarse, fine_rows(matrix.numpy(), coarse)) - matrix.numpy(), axis=1)
    before = np.linalg.norm(coarse.dequantized() - matrix.numpy(), axis=1)
    assert np.median(lost[:100] / before[:100]) < 0.15 and (lost[:100] < before[:100]).all()
    np.testing.assert_array_equal(lost[100:], before[100:])
