"""The loss head gives float64's loss and gradient, whatever the size of the vocabulary."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from whisperfold.compiler.graph import Graph
from whisperfold.compiler.loss_head import Table, Targets, loss_head

N_STATE = 64
VOCABULARIES = (51864, 51865, 51866)
"""English, multilingual, large-v3."""


def run_head(table: np.ndarray, feed: dict[str, np.ndarray], has_rows: bool) -> tuple[float, np.ndarray]:
    """Loss and gradient by the graph."""
    graph = Graph("head")
    hidden = graph.input("hidden", "float32", ("batch", "n", N_STATE))
    labels = graph.input("labels", "int64", ("batch", "n"))
    weights, smoothing = graph.input("weights", "float32", ("batch", "n")), graph.input("smoothing", "float32", ())
    name = graph.constant("table", table.T.copy() if has_rows else table)
    embedding = Table(name, graph.constant("mean", table.mean(axis=1, keepdims=True)), has_rows)
    loss, seed = loss_head(graph, hidden, embedding, Targets(labels, weights, smoothing), table.shape[1])
    graph.output(loss, "loss", ())
    graph.output(seed, "gradient", ("batch", "n", N_STATE))
    graph.prune()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    value, gradient = ort.InferenceSession(graph.model().SerializeToString(), options).run(None, feed)
    return float(value), gradient


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("n_vocab", "has_rows"), [*((n, False) for n in VOCABULARIES), (51864, True)])
def test_loss_and_gradient_are_those_of_float64(
    n_vocab: int, has_rows: bool, smoothing: float, rng: np.random.Generator
) -> None:
    table = rng.normal(size=(N_STATE, n_vocab)).astype(np.float32)
    labels = rng.integers(0, n_vocab, (2, 6))
    believed = np.stack([np.arange(6), labels[1]])  # sure of a wrong token that is summed first; surer of the label
    sure = np.array([[0.25] * 6, [0.0, 0.0, 0.05, 0.1, 0.15, 0.2]])[..., None]
    hidden = sure * table.T[believed] + 0.1 * rng.normal(size=(2, 6, N_STATE))
    weights = rng.uniform(0.5, 2.0, (2, 6)).astype(np.float32)
    weights[:, 0] = 0.0
    feed = {"hidden": hidden.astype(np.float32), "labels": labels, "weights": weights}
    loss, gradient = run_head(table, {**feed, "smoothing": np.array(smoothing, np.float32)}, has_rows)

    exact = torch.tensor(feed["hidden"]).double().requires_grad_()
    logits = (exact @ torch.tensor(table).double()).flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(
        logits, torch.tensor(labels).flatten(), reduction="none", label_smoothing=smoothing
    )
    shares = torch.tensor(weights).double().flatten() / float(weights.sum(dtype=np.float64))
    expected = (losses * shares).sum()
    assert loss == pytest.approx(expected.item(), rel=3e-7)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    for found, wanted in zip(gradient[:, 1:].reshape(-1, N_STATE), expected_gradient[:, 1:].flatten(0, 1), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6 * float(wanted.abs().max()))
    assert not gradient[:, 0].any()
