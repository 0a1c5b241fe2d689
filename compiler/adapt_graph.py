"""A bundle's graphs -> adapt.onnx: loss and gradients of an adapter, for plain onnxruntime.

    mel, tokens --encoder.onnx, decoder.onnx with adapters--> hidden states -> loss_head.py -> backward.py -> gradients

    y = (x W + b + scaling (x A^T) B^T) (1 + gain)      at every product with a stored matrix, for each of its modules

    inputs   mel (batch, n_mels, frames), tokens, labels, label_weights (batch, n), scaling (), label_smoothing (),
             M.lora_A (rank, n_in), M.lora_B (n_out, rank) for every module M, M.gain (n_out,) for q, v, fc1
    outputs  loss (), grad.NAME for every tensor of the adapter

The graphs are taken from the bundle node by node: an integer product becomes DequantizeLinear and MatMul, the past of
the decoder is empty, the logits make way for the loss. Weights are not copied (shared_weights.py). Sessions need
session.disable_quant_qdq = 1: onnxruntime would make integer products again. Docs: decisions/0007.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from whisperfold.compiler.backward import differentiate
from whisperfold.compiler.blocks import BLOCK, Blocks, stored_rows
from whisperfold.compiler.graph import OPSET, Graph
from whisperfold.compiler.loss_head import Table, Targets, loss_head
from whisperfold.compiler.projections import Part, matrix_parts
from whisperfold.compiler.shared_weights import folding_facts, share_weights
from whisperfold.runtime.bundle import GRAPHS, Bundle, write_bundle
from whisperfold.runtime.errors import CompileError
from whisperfold.runtime.quantized import dequantize_columns

GRAPH_NAME = "adapt.onnx"
EMBEDDING = "decoder.token_embedding"
OPSET_OF_BLOCKS = 21
"""The first one whose DequantizeLinear knows 4 bits and blocks."""
LEFT_OUT = ("present_", "logits", "cross_attention")
"""What the decoder puts out and training does not need."""


def add_adapt_graph(path: Path) -> Bundle:
    """Add adapt.onnx, and what folding needs, to a bundle; the other files stay as they are.

    Raises:
        CompileError: the graphs of the bundle are not those that this version exports.
        BundleError: it cannot be written; the old bundle stays.
    """
    bundle = Bundle.open(path)
    model = adapt_graph(bundle)
    share_weights(model, bundle)
    graph = model.SerializeToString()
    try_out(graph, bundle)
    kept = {name: bundle.file(name) for name in bundle.manifest["files"] if name != bundle.stored(GRAPH_NAME)}
    packed = gzip.compress(graph, mtime=0)
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("format", "files")}
    manifest["adapt"] = {"graph": GRAPH_NAME, "matrices": folding_facts(bundle)}
    if "bytes" in manifest:
        manifest["bytes"] = {**manifest["bytes"], "training graph": len(packed)}
    return write_bundle(path, {**kept, f"{GRAPH_NAME}.gz": packed}, manifest)


def adapt_graph(bundle: Bundle) -> onnx.ModelProto:
    """Return the training graph of a bundle, weights inside."""
    encoder, decoder = (onnx.load(str(bundle.file(name))) for name in GRAPHS)
    in_blocks = any(tensor.name == f"{EMBEDDING}.columns" for tensor in decoder.graph.initializer)
    dims, graph = bundle.dims, _Training(matrix_parts(bundle), OPSET_OF_BLOCKS if in_blocks else OPSET)
    mel = graph.input("mel", "float32", ("batch", dims.n_mels, "frames"))
    tokens, labels = (graph.input(name, "int64", ("batch", "n")) for name in ("tokens", "labels"))
    label_weights = graph.input("label_weights", "float32", ("batch", "n"))
    graph.scaling = graph.input("scaling", "float32", ())
    smoothing = graph.constant(graph.input("label_smoothing", "float32", ()), np.array(0.0, np.float32))  # the default
    graph.take(encoder, {"mel": mel})
    cross = {name: value for name, value in graph.values.items() if name.startswith("cross_")}
    graph.take(decoder, {**cross, "tokens": tokens})
    logits = next(node for node in decoder.graph.node if "MatMul" in node.op_type and node.input[1] == EMBEDDING)
    hidden = graph.values[logits.input[0]]
    loss, seed = loss_head(graph, hidden, graph.table(), Targets(labels, label_weights, smoothing), dims.n_vocab)
    graph.output(loss, "loss", ())
    shapes = {item.name: item.type.tensor_type.shape.dim for item in graph.inputs}
    for name, gradient in differentiate(graph, hidden, seed, graph.trained).items():
        graph.output(gradient, f"grad.{name}", [dim.dim_param or dim.dim_value for dim in shapes[name]])
    graph.prune()
    return graph.model()


def try_out(graph: bytes, bundle: Bundle) -> None:
    """Load the training graph beside the bundle's files, and take one step on 0.4 s of nothing.

    Raises:
        CompileError: onnxruntime cannot, or the loss is not a number.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    feed: dict[str, np.ndarray] = {
        "mel": np.zeros((1, bundle.dims.n_mels, 40), np.float32),
        "tokens": np.array([[bundle.tokens.sot]]),
        "labels": np.array([[bundle.tokens.eot]]),
        "label_weights": np.ones((1, 1), np.float32),
        "scaling": np.array(1.0, np.float32),
    }
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for item in session.get_inputs():
            if item.name not in feed:
                shape = [size if isinstance(size, int) else 1 for size in item.shape]
                feed[item.name] = np.full(shape, 0.01, np.float32)
        values = session.run(None, feed)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise CompileError(f"{bundle.path}: {GRAPH_NAME} does not run ({error}); report it") from error
    if not all(np.isfinite(value).all() for value in values):
        raise CompileError(f"{bundle.path}: {GRAPH_NAME} gives no finite gradients; compile the bundle again")


class _Training(Graph):
    """The graph under construction: values of the source graphs by the names that they have here."""

    def __init__(self, parts: dict[str, list[Part]], opset: int) -> None:
        super().__init__("adapt", opset)
        self.parts = parts
        self.values: dict[str, str] = {}
        self.stored: dict[str, np.ndarray] = {}
        self.products: dict[str, tuple[str, str]] = {}  # (x, matrix), until it is known whether a bias follows
        self.trained: list[str] = []
        self.scaling = ""

    def take(self, model: onnx.ModelProto, inputs: dict[str, str]) -> None:
        """Take over the nodes of a model, with its inputs bound to values of this graph; outputs keep their names."""
        self.values = dict(inputs)
        self.stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if not any(name.startswith(LEFT_OUT) for name in (*node.input, *node.output)):
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
        elif kind == "Add" and inputs[0] in self.products and inputs[1] in self.stored:
            self.values[output] = self.adapted(*self.products.pop(inputs[0]), inputs[1])
        elif "MatMul" in kind and inputs[1] in self.stored:
            if inputs[1] == EMBEDDING:
                return
            self.products[output] = (self._value(inputs[0]), inputs[1])
            if len(inputs) > 4:
                self.values[output] = self.adapted(*self.products.pop(output), inputs[4])
        else:
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            names = [self._value(name) if name else "" for name in inputs]
            made = self.op(kind, *names, n_out=len(node.output), domain=node.domain, **attributes)
            self.values.update(zip(node.output, [made] if isinstance(made, str) else made, strict=True))

    def _value(self, name: str) -> str:
        """A value of the source graph by its name here; stored tensors are taken over when they are first used."""
        if name in self.products:
            self.values[name] = self.adapted(*self.products.pop(name), "")
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

    def table(self) -> Table:
        """The token embedding in float32, as the hidden states that the logits read are multiplied with it."""
        weight, scale = self.stored[EMBEDDING], self.stored.get(f"{EMBEDDING}.scale")
        if f"{EMBEDDING}.columns" not in self.stored:
            mean = (weight if scale is None else dequantize_columns(weight, scale)).mean(axis=1, keepdims=True)
            return Table(self.matrix(EMBEDDING), self.constant(f"{EMBEDDING}.mean", mean), has_rows=False)
        coarse, fine = (
            Blocks(self.stored[name], self.stored[f"{name}.scale.half"], np.ones(weight.shape[1] * BLOCK, np.float32))
            for name in (EMBEDDING, f"{EMBEDDING}.fine")
        )
        n_fine, n_vocab = len(fine.packed), len(weight)
        mean = self.constant(f"{EMBEDDING}.mean", stored_rows(coarse, fine).mean(axis=0)[:, None])
        first, rest = self.op("Split", self._rows(EMBEDDING), self.ints(n_fine, n_vocab - n_fine), n_out=2, axis=0)
        table = self.op("Concat", self.op("Add", first, self._rows(f"{EMBEDDING}.fine")), rest, axis=0)
        self.matrices.add(table)
        return Table(table, mean, has_rows=True)

    def _rows(self, name: str) -> str:
        """A 4-bit table (n_out, n_in) in float32, without its column factors."""
        packed, halves = self.stored[name], self.stored[f"{name}.scale.half"]
        for label, raw, shape in (
            ("levels", packed.tobytes(), (len(packed), packed.shape[1] * BLOCK)),
            ("zero_point", bytes([0x88]) * -(-halves.size // 2), halves.shape),
        ):
            tensor = helper.make_tensor(f"{name}.{label}", TensorProto.UINT4, shape, raw, raw=True)
            self.initializers[tensor.name] = tensor
        names = [f"{name}.levels", self.op("Cast", self._value(f"{name}.scale.half"), to=TensorProto.FLOAT)]
        return str(self.op("DequantizeLinear", *names, f"{name}.zero_point", axis=1, block_size=BLOCK))

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
