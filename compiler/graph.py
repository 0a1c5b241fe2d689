"""A thin builder of ONNX graphs: nodes in order, initializers by the checkpoint's names, static checks at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


class Graph:
    """One ONNX graph under construction; every method that adds a node returns the name of its output."""

    def __init__(self, name: str, opset: int = OPSET) -> None:
        """Start an empty graph."""
        self.name, self.opset = name, opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.matrices: set[str] = set()  # values that are stored matrices (backward.py)
        self.sizes: dict[str, list[int]] = {}  # of the parts that `join` has joined

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare a graph input; a string in shape is a dynamic dimension."""
        self.inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], list(shape)))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        """Declare value to be the graph's float32 output name."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def constant(self, name: str, array: np.ndarray | int | float | list[int]) -> str:
        """Store an array once under name (int64 for Python ints and lists) and return the name."""
        if name not in self.initializers:
            array = np.asarray(array, dtype=None if isinstance(array, np.ndarray) else np.int64)
            self.initializers[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        """Return an int64 vector constant, shared by all uses of the same values."""
        return self.constant("ints_" + "_".join(map(str, values)).replace("-", "m"), list(values))

    def scalar(self, value: float) -> str:
        """Return a float32 constant, shared by all uses of the same value."""
        return self.constant(f"float_{value!r}", np.array(value, np.float32))

    def join(self, parts: Sequence[str], sizes: Sequence[int], axis: int) -> str:
        """Concatenate values of known sizes along an axis."""
        if len(parts) == 1:
            return parts[0]
        joined = str(self.op("Concat", *parts, axis=axis))
        self.sizes[joined] = list(sizes)
        return joined

    def op(self, kind: str, *inputs: str, n_out: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node; return its output's name, or a list of names where n_out > 1."""
        label = f"{kind}_{len(self.nodes)}"
        outputs = [label] if n_out == 1 else [f"{label}.{i}" for i in range(n_out)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=label, domain=domain, **attributes))
        return label if n_out == 1 else outputs

    def linear(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        """Return x @ weight + bias for weight (n_in, n_out)."""
        y = self.op("MatMul", x, self.constant(f"{name}.weight", weight.astype(np.float32)))
        return y if bias is None else self.op("Add", y, self.constant(f"{name}.bias", bias.astype(np.float32)))

    def layer_norm(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """Return the layer norm over the last axis, Whisper's epsilon."""
        scale, shift = self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)

    def heads(self, x: str, n_head: int, axes: tuple[int, ...] = (0, 2, 1, 3)) -> str:
        """Split (batch, n, n_head * width) and transpose; default (batch, n_head, n, width)."""
        split = self.op("Reshape", x, self.ints(0, 0, n_head, -1))
        return self.op("Transpose", split, perm=list(axes))

    def prune(self) -> None:
        """Drop nodes and initializers that no output needs."""
        needed = {item.name for item in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.initializers = {name: tensor for name, tensor in self.initializers.items() if name in needed}

    def model(self) -> onnx.ModelProto:
        """Return the checked model."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="whisperfold", ir_version=10)
        onnx.checker.check_model(model)
        return model
