"""Reverse-mode differentiation of an ONNX graph under construction: forward nodes in, gradient nodes out.

    for every node from the last to the first whose output has a gradient dy:
        dx_i = rule(node, dy)            added to what x_i has already

Only what depends on the given inputs is differentiated, so nothing is computed below the lowest of them. The rules are
those of the nodes that our graphs hold (docs/decisions/0007). A rule lets a gradient through unchanged only where
shapes are equal; what is broadcast (positions, masks, biases) is constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import helper

from whisperfold.compiler.graph import Graph
from whisperfold.runtime.errors import CompileError

Rule = Callable[[Graph, onnx.NodeProto, str, int], str]
"""(graph, node, name of dy, index of the input) -> name of the input's gradient."""


def differentiate(graph: Graph, output: str, seed: str, wanted: Iterable[str]) -> dict[str, str]:
    """Append the nodes that compute the gradients of <seed, output>.

    Args:
        graph: with the forward nodes; gets the backward nodes.
        output: name of a value.
        seed: name of its gradient, of the same shape.
        wanted: names of float32 graph inputs.

    Returns:
        Name of the gradient of every wanted input.

    Raises:
        CompileError: output does not depend on a wanted input, or a node on the way has no rule.
    """
    wanted = list(wanted)
    forward = list(graph.nodes)
    active = set(wanted)
    for node in forward:
        if node.op_type != "Shape" and any(name in active for name in node.input):
            active.update(node.output)
    gradients = {output: seed}
    for node in reversed(forward):
        dy = _joined_parts(graph, node, gradients) if node.op_type == "Split" else gradients.get(node.output[0])
        if dy is None:
            continue
        for i, name in enumerate(node.input):
            if name not in active:
                continue
            if node.op_type not in RULES:
                raise CompileError(f"backward: no rule for {node.op_type} ({node.name}); add one to backward.RULES")
            dx = RULES[node.op_type](graph, node, dy, i)
            gradients[name] = graph.op("Add", gradients[name], dx) if name in gradients else dx
    missing = [name for name in wanted if name not in gradients]
    if missing:
        raise CompileError(f"backward: {output} does not depend on {missing[0]}")
    return {name: gradients[name] for name in wanted}


def _joined_parts(graph: Graph, node: onnx.NodeProto, gradients: dict[str, str]) -> str | None:
    """Join the gradients of a Split's outputs; None where there are none."""
    if not any(name in gradients for name in node.output):
        return None
    missing = [name for name in node.output if name not in gradients]
    if missing:
        raise CompileError(f"backward: {missing[0]} of {node.name} is not used; split off what is")
    return str(graph.op("Concat", *(gradients[name] for name in node.output), axis=_attribute(node, "axis")))


def _attribute(node: onnx.NodeProto, name: str) -> int:
    """An integer or integers attribute that the node has."""
    return helper.get_attribute_value(next(item for item in node.attribute if item.name == name))


def _same(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """Add, Identity: dy, where the other input is the broadcast one."""
    return dy


def _mul(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """Mul of rows by a vector or a scalar (index 1), whose gradient is summed over the rows."""
    product = graph.op("Mul", dy, node.input[1 - index])
    return str(product if index == 0 else graph.op("ReduceSum", product, graph.ints(0), keepdims=0))


def _matmul(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """MatMul: of rows by a stored matrix (Gemm, so that it is not stored transposed too), or of heads."""
    a, b = node.input
    if b in graph.matrices:
        return str(graph.op("Gemm", dy, b, transB=1))
    swap = [0, 1, 3, 2]
    if index == 0:
        return str(graph.op("MatMul", dy, graph.op("Transpose", b, perm=swap)))
    return str(graph.op("MatMul", graph.op("Transpose", a, perm=swap), dy))


def _gemm(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """Gemm with transB: y = a b^T."""
    a, b = node.input
    return str(graph.op("MatMul", dy, b) if index == 0 else graph.op("Gemm", dy, a, transA=1))


def _transpose(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """Transpose: the inverse permutation."""
    inverse = np.argsort(np.asarray(_attribute(node, "perm"))).tolist()
    return str(graph.op("Transpose", dy, perm=inverse))


def _reshape(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """Reshape: back to the shape of the input."""
    return str(graph.op("Reshape", dy, graph.op("Shape", node.input[0])))


def _concat(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """Concat by `Graph.join`: the part of this input."""
    axis, sizes = _attribute(node, "axis"), graph.sizes[node.output[0]]
    first = sum(sizes[:index])
    stop = first + sizes[index]
    return str(graph.op("Slice", dy, graph.ints(first), graph.ints(stop), graph.ints(axis)))


def _softmax(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """Softmax over the last axis: y (dy - sum(y dy))."""
    y = node.output[0]
    total = graph.op("ReduceSum", graph.op("Mul", y, dy), graph.ints(-1), keepdims=1)
    return str(graph.op("Mul", y, graph.op("Sub", dy, total)))


def _gelu(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """Gelu (erf): Phi(x) + x phi(x)."""
    x = node.input[0]
    scaled = graph.op("Mul", x, graph.scalar(1.0 / math.sqrt(2.0)))
    cumulative = graph.op("Mul", graph.op("Add", graph.op("Erf", scaled), graph.scalar(1.0)), graph.scalar(0.5))
    bell = graph.op("Exp", graph.op("Neg", graph.op("Mul", scaled, scaled)))
    density = graph.op("Mul", bell, graph.scalar(1.0 / math.sqrt(2.0 * math.pi)))
    return str(graph.op("Mul", dy, graph.op("Add", cumulative, graph.op("Mul", x, density))))


def _layer_norm(graph: Graph, node: onnx.NodeProto, dy: str, index: int) -> str:
    """LayerNormalization over the last axis: r (g - mean(g) - z mean(g z)), g = scale dy, z the normalised input."""
    x, scale, _ = node.input
    mean, deviation = f"{node.name}.mean", f"{node.name}.inverse_deviation"
    if len(node.output) == 1:
        node.output.extend([mean, deviation])
    last = graph.ints(-1)
    z = graph.op("Mul", graph.op("Sub", x, mean), deviation)
    g = graph.op("Mul", dy, scale)
    mean_g = graph.op("ReduceMean", g, last, keepdims=1)
    mean_gz = graph.op("ReduceMean", graph.op("Mul", g, z), last, keepdims=1)
    inner = graph.op("Sub", graph.op("Sub", g, mean_g), graph.op("Mul", z, mean_gz))
    return str(graph.op("Mul", deviation, inner))


RULES: dict[str, Rule] = {
    "Add": _same,
    "Identity": _same,
    "Split": _same,
    "Mul": _mul,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Concat": _concat,
    "Softmax": _softmax,
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
}
