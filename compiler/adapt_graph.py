"""A bundle's graphs -> adapt.onnx: loss and gradients of an adapter, for plain onnxruntime.

    mel, tokens --encoder.onnx, decoder.onnx with adapters--> hidden states -> loss head -> backward.py -> gradients

    y = (x W + b + scaling (x A^T) B^T) (1 + gain)      at every product with a stored matrix, for each of its modules

The graphs are taken from the bundle node by node: an integer product becomes DequantizeLinear and MatMul, the past of
the decoder is empty, the logits make way for the loss. Weights are not copied: the initializers are external data that
point into encoder.onnx and decoder.onnx. Docs: decisions/0007.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from whisperfold.compiler.backward import differentiate
from whisperfold.compiler.graph import Graph
from whisperfold.runtime.bundle import Bundle, write_bundle
from whisperfold.runtime.errors import CompileError

GRAPH_NAME = "adapt.onnx"
FILES = ("encoder.onnx", "decoder.onnx")
EMBEDDING = "decoder.token_embedding"
INLINE_BYTES, LARGE_BYTES = 4096, 1 << 20
"""Smaller tensors are stored in adapt.onnx itself; float32 ones, which another protobuf does not align, up to 1 MB."""
LEFT_OUT = ("logits", "cross_attention")
"""Outputs of the decoder that training does not need; present_* are not taken over either."""


@dataclass(frozen=True)
class Part:
    """One projection in a stored matrix, which may hold several side by side."""

    module: str
    """As in torch and peft, e.g. encoder.layers.0.attn.q."""
    n_in: int
    n_out: int
    factor: float = 1.0
    """The stored columns are this many times the projection (queries hold the attention scale)."""

    @property
    def has_gain(self) -> bool:
        """Whether its outputs have a trainable gain: the twins' singular values, and FFN neurons."""
        return self.module.endswith((".q", ".v", ".fc1"))


def matrix_parts(bundle: Bundle) -> dict[str, list[Part]]:
    """Return the projections of every adapted matrix of a bundle, in the order of its columns."""
    dims, widths = bundle.dims, bundle.manifest["widths"]
    audio, text = dims.n_audio_state, dims.n_text_state
    parts: dict[str, list[Part]] = {}
    for i, w in enumerate(widths["encoder"]):
        name, heads = f"encoder.layers.{i}", dims.n_audio_head
        parts |= _attention(f"{name}.attn", audio, heads, w["qk"], w["vo"]) | _ffn(f"{name}.ffn", audio, w["ffn"])
    cross: list[Part] = []
    for i, w in enumerate(widths["decoder"]):
        name, heads = f"decoder.layers.{i}", dims.n_text_head
        parts |= _attention(f"{name}.attn", text, heads, w["self_qk"], w["self_vo"])
        scale = (text // heads) ** -0.5
        parts[f"{name}.cross.q"] = [Part(f"{name}.cross.q", text, heads * w["cross_qk"], scale)]
        parts[f"{name}.cross.out"] = [Part(f"{name}.cross.out", heads * w["cross_vo"], text)]
        parts |= _ffn(f"{name}.ffn", text, w["ffn"])
        cross += [Part(f"{name}.cross.k", audio, heads * w["cross_qk"])]
        cross += [Part(f"{name}.cross.v", audio, heads * w["cross_vo"])]
    parts["decoder.cross_kv"] = cross
    return parts


def _attention(name: str, n_state: int, heads: int, qk: int, vo: int) -> dict[str, list[Part]]:
    """Self-attention: queries, keys and values side by side, and the output."""
    scale = (n_state // heads) ** -0.5
    qkv = [Part(f"{name}.q", n_state, heads * qk, scale), Part(f"{name}.k", n_state, heads * qk)]
    qkv += [Part(f"{name}.v", n_state, heads * vo)]
    return {f"{name}.qkv": qkv, f"{name}.out": [Part(f"{name}.out", heads * vo, n_state)]}


def _ffn(name: str, n_state: int, neurons: int) -> dict[str, list[Part]]:
    """The feed-forward layer."""
    return {
        f"{name}.fc1": [Part(f"{name}.fc1", n_state, neurons)],
        f"{name}.fc2": [Part(f"{name}.fc2", neurons, n_state)],
    }


class _Training(Graph):
    """The graph under construction: values of the source graphs by the names that they have here."""

    def __init__(self, parts: dict[str, list[Part]]) -> None:
        super().__init__("adapt")
        self.parts = parts
        self.values: dict[str, str] = {}
        self.stored: dict[str, np.ndarray] = {}
        self.trained: list[str] = []
        self.scaling = ""

    def take(self, model: onnx.ModelProto, inputs: dict[str, str]) -> None:
        """Take over the nodes of a model, with its inputs bound to values of this graph; outputs keep their names."""
        self.values = dict(inputs)
        self.stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if not any(name.startswith(("present_", *LEFT_OUT)) for name in node.output):
                self._take_node(node)

    def _take_node(self, node: onnx.NodeProto) -> None:
        """Copy, adapt or drop one node."""
        kind, inputs, output = node.op_type, list(node.input), node.output[0]
        if kind == "Identity":
            self.values[output] = self._value(inputs[0])
        elif kind == "Concat" and inputs[0].startswith("past_"):
            self.values[output] = self._value(inputs[1])  # the past is empty
        elif kind == "Shape" and inputs[0].startswith("past_"):
            self.values[output] = self.ints(0)
        elif kind == "Gather" and inputs[1] == "logit_positions":
            self.values[output] = self._value(inputs[0])
        elif kind in ("DynamicQuantizeMatMul", "MatMul") and inputs[1] in self.stored:
            if not inputs[1].startswith(EMBEDDING):
                bias = inputs[4] if len(inputs) > 4 else ""
                self.values[output] = self.adapted(self._value(inputs[0]), inputs[1], bias)
        else:
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            names = [self._value(name) if name else "" for name in inputs]
            made = self.op(kind, *names, n_out=len(node.output), domain=node.domain, **attributes)
            self.values.update(zip(node.output, [made] if isinstance(made, str) else made, strict=True))

    def _value(self, name: str) -> str:
        """A value of the source graph by its name here; stored tensors are taken over when they are first used."""
        if name in self.values:
            return self.values[name]
        if name not in self.stored:
            raise CompileError(f"adapt: {name} is neither an input, a node nor stored; compile the bundle again")
        return self.constant(name, self.stored[name])

    def matrix(self, name: str) -> str:
        """A stored matrix (n_in, n_out) in float32."""
        value = self._value(name)
        if f"{name}.scale" in self.stored:
            label = f"{name}.float"
            if label not in self.matrices:
                scale, zero = self._value(f"{name}.scale"), self._value(f"{name}.zero_point")
                self.nodes.append(helper.make_node("DequantizeLinear", [value, scale, zero], [label], label, axis=1))
            value = label
        self.matrices.add(value)
        return value

    def adapted(self, x: str, name: str, bias: str) -> str:
        """Return the product of x (batch, n, n_in) with a stored matrix and its adapters."""
        parts = self.parts[name.removesuffix(".weight")]
        n_in, sizes = parts[0].n_in, [part.n_out for part in parts]
        rows = self.op("Reshape", x, self.ints(-1, n_in))
        y = self.op("MatMul", rows, self.matrix(name))
        if bias:
            y = self.op("Add", y, self._value(bias))
        deltas = [self._delta(rows, part) for part in parts]
        y = self.op("Add", y, self.join(deltas, sizes, 1))
        if any(part.has_gain for part in parts):
            gains = [self._gain(part) for part in parts]
            y = self.op("Mul", y, self.op("Add", self.join(gains, sizes, 0), self.scalar(1.0)))
        shape = self.op("Concat", self.op("Shape", x, end=2), self.ints(sum(sizes)), axis=0)
        return str(self.op("Reshape", y, shape))

    def _delta(self, rows: str, part: Part) -> str:
        """Return scaling * factor * (x A^T) B^T."""
        a = self._trained(f"{part.module}.lora_A", ("rank", part.n_in))
        b = self._trained(f"{part.module}.lora_B", (part.n_out, "rank"))
        product = self.op("Gemm", self.op("Gemm", rows, a, transB=1), b, transB=1)
        factor = self.scaling if part.factor == 1.0 else self.op("Mul", self.scaling, self.scalar(part.factor))
        return str(self.op("Mul", product, factor))

    def _gain(self, part: Part) -> str:
        """The gain's input, or zeros for a part without one."""
        if part.has_gain:
            return self._trained(f"{part.module}.gain", (part.n_out,))
        return self.constant(f"zeros_{part.n_out}", np.zeros(part.n_out, np.float32))

    def _trained(self, name: str, shape: tuple[int | str, ...]) -> str:
        """Declare an input that gets a gradient."""
        self.trained.append(name)
        return self.input(name, "float32", shape)


def adapt_graph(bundle: Bundle) -> onnx.ModelProto:
    """Return the training graph of a bundle, weights inside."""
    dims, graph = bundle.dims, _Training(matrix_parts(bundle))
    mel = graph.input("mel", "float32", ("batch", dims.n_mels, "frames"))
    tokens, labels = (graph.input(name, "int64", ("batch", "n")) for name in ("tokens", "labels"))
    label_weights = graph.input("label_weights", "float32", ("batch", "n"))
    graph.scaling = graph.input("scaling", "float32", ())
    encoder, decoder = (onnx.load(str(bundle.file(name))) for name in FILES)
    graph.take(encoder, {"mel": mel})
    cross = {name: value for name, value in graph.values.items() if name.startswith("cross_")}
    graph.take(decoder, {**cross, "tokens": tokens})
    logits = next(node for node in decoder.graph.node if "MatMul" in node.op_type and node.input[1] == EMBEDDING)
    hidden = graph.values[logits.input[0]]
    loss, seed = _loss_head(graph, hidden, labels, label_weights, dims.n_text_state, dims.n_vocab)
    graph.output(loss, "loss", ())
    for name, gradient in differentiate(graph, hidden, seed, graph.trained).items():
        shape = next(item for item in graph.inputs if item.name == name).type.tensor_type.shape.dim
        graph.output(gradient, f"grad.{name}", [dim.dim_param or dim.dim_value for dim in shape])
    graph.prune()
    return graph.model()


def _loss_head(
    graph: _Training, hidden: str, labels: str, label_weights: str, n_state: int, n_vocab: int
) -> tuple[str, str]:
    """Return the cross-entropy and its gradient with respect to hidden (batch, n, n_state).

    The label's column is taken out of the exponentials before they are summed, in two stages: a sum of 51,864 float32
    numbers next to one that is nearly all of it would lose the gradient.
    """
    table = graph.matrix(EMBEDDING)
    rows = graph.op("Reshape", hidden, graph.ints(-1, n_state))
    label, weight = (graph.op("Reshape", name, graph.ints(-1)) for name in (labels, label_weights))
    total_weight = graph.op("ReduceSum", weight, graph.ints(0), keepdims=0)
    logits = graph.op("MatMul", rows, table)
    top = graph.op("ReduceMax", logits, graph.ints(1), keepdims=1)
    column = graph.op("Unsqueeze", label, graph.ints(1))
    vocabulary = graph.op("Range", *(graph.op("Squeeze", graph.ints(n)) for n in (0, n_vocab, 1)))
    exponentials = graph.op("Exp", graph.op("Sub", logits, top))
    others = graph.op("Where", graph.op("Equal", vocabulary, column), graph.scalar(0.0), exponentials)
    stages = graph.op("Reshape", others, graph.ints(0, _divisor(n_vocab), -1))
    sum_others = graph.op("ReduceSum", graph.op("ReduceSum", stages, graph.ints(2), keepdims=0), graph.ints(1))
    label_logit = graph.op("Sub", graph.op("GatherElements", logits, column, axis=1), top)
    total = graph.op("Add", sum_others, graph.op("Exp", label_logit))
    nll = graph.op("Squeeze", graph.op("Sub", graph.op("Log", total), label_logit), graph.ints(1))
    loss = graph.op("Div", graph.op("ReduceSum", graph.op("Mul", nll, weight), graph.ints(0), keepdims=0), total_weight)
    label_rows = graph.op("Transpose", graph.op("Gather", table, label, axis=1), perm=[1, 0])
    pull = graph.op("Sub", graph.op("Gemm", others, table, transB=1), graph.op("Mul", label_rows, sum_others))
    share = graph.op("Unsqueeze", graph.op("Div", weight, total_weight), graph.ints(1))
    gradient = graph.op("Mul", graph.op("Div", pull, total), share)
    return loss, str(graph.op("Reshape", gradient, graph.op("Shape", hidden)))


def _divisor(n: int) -> int:
    """The divisor of n that is nearest to 256."""
    return min((d for d in range(1, 2049) if n % d == 0), key=lambda d: abs(d - 256))


def share_weights(model: onnx.ModelProto, bundle: Bundle) -> None:
    """Turn large 8 and 16 bit initializers into external data that points into the bundle's graphs, in place.

    Raises:
        CompileError: a tensor is not in the bundle, or not once.
    """
    contents = {name: bundle.file(name).read_bytes() for name in FILES}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < INLINE_BYTES or (
            tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) < LARGE_BYTES
        ):
            continue
        place = _find(tensor.raw_data, contents)
        if place is None:
            raise CompileError(f"adapt: {tensor.name} is not stored in {' or '.join(FILES)}; export the bundle again")
        for key, value in zip(("location", "offset", "length"), (*place, len(tensor.raw_data)), strict=True):
            tensor.external_data.add(key=key, value=str(value))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")


def folding_facts(bundle: Bundle) -> dict[str, Any]:
    """Return what the device needs to fold an adapter: where each matrix lies, and which projections it holds."""
    contents = {name: bundle.file(name).read_bytes() for name in FILES}
    tensors = {tensor.name: tensor for name in FILES for tensor in onnx.load(str(bundle.file(name))).graph.initializer}
    matrices = []
    for matrix, parts in matrix_parts(bundle).items():
        names = [f"{matrix}.weight{suffix}" for suffix in ("", ".scale", ".zero_point")]
        stored = {name: _stored(tensors[name], contents) for name in names if name in tensors}
        stops = np.cumsum([part.n_out for part in parts]).tolist()
        spans = [
            {
                "module": part.module,
                "n_in": part.n_in,
                "columns": [stop - part.n_out, stop],
                "factor": part.factor,
                "gain": part.has_gain,
            }
            for part, stop in zip(parts, stops, strict=True)
        ]
        bias = _bias_name(matrix, tensors)
        if bias:
            stored[bias] = _stored(tensors[bias], contents)
        matrices.append({"matrix": f"{matrix}.weight", "bias": bias, "tensors": stored, "parts": spans})
    return {"graph": GRAPH_NAME, "matrices": matrices}


def _bias_name(matrix: str, tensors: dict[str, onnx.TensorProto]) -> str | None:
    """The matrix's bias, if it has one."""
    name = f"{matrix}.bias"
    return name if name in tensors else None


def _stored(tensor: onnx.TensorProto, contents: dict[str, bytes]) -> dict[str, Any]:
    """File, offset, shape and dtype of a stored tensor; small ones may occur twice, then the first will do."""
    place = _find(tensor.raw_data, contents)
    if place is None:
        raise CompileError(f"adapt: {tensor.name} is not stored as raw data; export the bundle again")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
    return {"file": place[0], "offset": place[1], "shape": list(tensor.dims), "dtype": dtype}


def _find(raw: bytes, contents: dict[str, bytes]) -> tuple[str, int] | None:
    """(file, offset) of bytes in the files."""
    found = ((name, content.find(raw)) for name, content in contents.items())
    return next(((name, offset) for name, offset in found if offset >= 0), None)


def add_adapt_graph(path: Path) -> Bundle:
    """Add adapt.onnx, and what folding needs, to a bundle; the other files stay as they are.

    Raises:
        CompileError: the graphs of the bundle are not those that this version exports.
        BundleError: it cannot be written; the old bundle stays.
    """
    bundle = Bundle.open(path)
    model = adapt_graph(bundle)
    share_weights(model, bundle)
    kept = {name: bundle.file(name) for name in bundle.manifest["files"] if name != GRAPH_NAME}
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("format", "files")}
    manifest["adapt"] = folding_facts(bundle)
    return write_bundle(path, {**kept, GRAPH_NAME: model.SerializeToString()}, manifest)
