"""Every rule of backward.py gives torch's gradient; what has none, or cannot be reached, is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pytest
import torch

from whisperfold.compiler.backward import RULES, differentiate
from whisperfold.compiler.graph import Graph
from whisperfold.runtime.errors import CompileError

WEIGHT, SCALE = (np.random.default_rng(9).normal(size=shape).astype(np.float32) for shape in ((5, 3), (5,)))


@dataclass(frozen=True)
class Case:
    """One rule: the nodes, and the same in torch."""

    shapes: tuple[tuple[int, ...], ...]
    build: Callable[..., str]
    torch: Callable[..., torch.Tensor]


def stored_matrix(g: Graph, x: str) -> str:
    g.matrices.add(g.constant("W", WEIGHT))
    return str(g.op("MatMul", x, "W"))


def split(g: Graph, x: str) -> str:
    a, b = g.op("Split", x, g.ints(2, 3), n_out=2, axis=-1)
    return g.join([b, a], [3, 2], 1)


def layer_norm(g: Graph, x: str) -> str:
    return str(g.layer_norm(x, "ln", SCALE, SCALE))


CASES = {
    "Add": Case(((4, 5), (4, 5)), lambda g, a, b: g.op("Add", a, b), lambda a, b: a + b),
    "Identity": Case(((4, 5),), lambda g, x: g.op("Identity", x), lambda x: x),
    "Mul by a vector": Case(((4, 5), (5,)), lambda g, x, v: g.op("Mul", x, v), lambda x, v: x * v),
    "MatMul of heads": Case(((2, 3, 4, 5), (2, 3, 5, 6)), lambda g, a, b: g.op("MatMul", a, b), lambda a, b: a @ b),
    "MatMul by a stored matrix": Case(((4, 5),), stored_matrix, lambda x: x @ torch.tensor(WEIGHT)),
    "Gemm": Case(((4, 5), (3, 5)), lambda g, a, b: g.op("Gemm", a, b, transB=1), lambda a, b: a @ b.T),
    "Transpose": Case(
        ((2, 3, 4, 5),), lambda g, x: g.op("Transpose", x, perm=[0, 2, 3, 1]), lambda x: x.permute(0, 2, 3, 1)
    ),
    "Reshape": Case(((2, 6),), lambda g, x: g.op("Reshape", x, g.ints(-1, 4)), lambda x: x.reshape(3, 4)),
    "Concat": Case(((2, 3), (2, 4)), lambda g, a, b: g.join([a, b], [3, 4], 1), lambda a, b: torch.cat([a, b], dim=1)),
    "Split": Case(((4, 5),), split, lambda x: torch.cat([x[:, 2:], x[:, :2]], dim=1)),
    "Softmax": Case(((4, 5),), lambda g, x: g.op("Softmax", x, axis=-1), lambda x: x.softmax(-1)),
    "Gelu": Case(((4, 5),), lambda g, x: g.op("Gelu", x), torch.nn.functional.gelu),
    "LayerNormalization": Case(
        ((4, 5),),
        layer_norm,
        lambda x: torch.nn.functional.layer_norm(x, (5,), torch.tensor(SCALE), torch.tensor(SCALE)),
    ),
    "Add of two uses of a value": Case(
        ((4, 5),),
        lambda g, x: g.op("Add", g.op("Gelu", x), g.op("Softmax", x, axis=-1)),
        lambda x: torch.nn.functional.gelu(x) + x.softmax(-1),
    ),
}


def test_every_rule_has_a_case() -> None:
    assert {name.split()[0] for name in CASES} == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_the_gradient_of_torch(name: str, rng: np.random.Generator) -> None:
    case, graph = CASES[name], Graph("test")
    arrays = {f"x{i}": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(case.shapes)}
    for label, array in arrays.items():
        graph.input(label, "float32", array.shape)
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays.values()]
    y = case.torch(*tensors)
    seed = rng.normal(size=tuple(y.shape)).astype(np.float32)
    output = case.build(graph, *arrays)
    gradients = differentiate(graph, output, graph.input("seed", "float32", seed.shape), arrays)
    graph.output(output, "y", list(y.shape))
    for label, gradient in gradients.items():
        graph.output(gradient, f"grad.{label}", arrays[label].shape)
    graph.prune()
    session = ort.InferenceSession(graph.model().SerializeToString())
    found_y, *found = session.run(None, {**arrays, "seed": seed})
    np.testing.assert_allclose(found_y, y.detach().numpy(), atol=1e-5, rtol=1e-5)
    for gradient, expected in zip(found, torch.autograd.grad(y, tensors, torch.tensor(seed)), strict=True):
        np.testing.assert_allclose(gradient, expected.numpy(), atol=1e-5, rtol=1e-5)


def test_nothing_is_computed_below_the_lowest_input() -> None:
    graph = Graph("test")
    x = graph.input("x", "float32", (4, 5))
    frozen = graph.op("Gelu", graph.op("Gelu", x))
    y = graph.op("Mul", frozen, graph.input("gain", "float32", (5,)))
    n_forward = len(graph.nodes)
    differentiate(graph, y, graph.input("seed", "float32", (4, 5)), ["gain"])
    assert [node.op_type for node in graph.nodes[n_forward:]] == ["Mul", "ReduceSum"]


def test_a_node_without_a_rule_is_refused() -> None:
    graph = Graph("test")
    y = graph.op("Sin", graph.input("x", "float32", (4,)))
    with pytest.raises(CompileError, match="no rule for Sin"):
        differentiate(graph, y, "seed", ["x"])


def test_an_input_that_the_output_does_not_need_is_refused() -> None:
    graph = Graph("test")
    y = graph.op("Gelu", graph.input("x", "float32", (4,)))
    graph.input("unused", "float32", (4,))
    with pytest.raises(CompileError, match="does not depend on unused"):
        differentiate(graph, y, "seed", ["x", "unused"])


def test_a_split_with_an_unused_part_is_refused() -> None:
    graph = Graph("test")
    first, _ = graph.op("Split", graph.input("x", "float32", (4, 5)), graph.ints(2, 3), n_out=2, axis=-1)
    with pytest.raises(CompileError, match="is not used"):
        differentiate(graph, graph.op("Gelu", first), "seed", ["x"])
