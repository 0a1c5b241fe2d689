"""fp32 graphs -> graphs with 8-bit weights, the token embedding and the logits included; what is lost is measured.

A matrix product with a stored weight becomes DynamicQuantizeMatMul: weight uint8 with one scale per output channel
and zero point 128, activations quantised as they come. uint8 on both sides, because on AVX2 without VNNI the signed
kernels saturate (docs/decisions/0004). Convolutions and position tables, which no integer kernel reads, are
stored in float16. A matrix that loses more than `max_error` stays float32: never a surprise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from whisperfold.runtime.quantized import ZERO_POINT, dequantize_columns, quantize_columns

MICROSOFT = "com.microsoft"
GROUPS = (
    ("token embedding and logits", ("decoder.token_embedding",)),
    ("encoder layers", ("encoder.layers",)),
    ("cross-attention keys and values", ("decoder.cross_kv",)),
    ("decoder layers", ("decoder.layers",)),
    ("convolutions", ("encoder.conv",)),
    ("positions", ("encoder.positions", "decoder.positions")),
)
"""Where the bytes are: label, initializer name prefixes."""


@dataclass(frozen=True)
class MatrixError:
    """What quantisation did to one matrix."""

    matrix: str
    bits: int
    relative_error: float
    """Frobenius norm of the difference over that of the matrix."""


def relative_error(weight: np.ndarray, quantized: np.ndarray, scale: np.ndarray) -> float:
    """Return the relative Frobenius error of quantized columns."""
    restored = dequantize_columns(quantized, scale)
    return float(np.linalg.norm(restored - weight) / max(1e-12, float(np.linalg.norm(weight))))


def quantize(model: onnx.ModelProto, max_error: float = 0.05) -> tuple[onnx.ModelProto, list[MatrixError]]:
    """Return the 8-bit graph and the error of every matrix; the input is not changed."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    errors: list[MatrixError] = []
    stored: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(node.input[1] for node in products):
        quantized, scale = quantize_columns(weights[name])
        error = relative_error(weights[name], quantized, scale)
        bits = 8 if error <= max_error else 32
        errors.append(MatrixError(name.removesuffix(".weight"), bits, error))
        if bits == 8:
            zero_points = np.full(scale.size, ZERO_POINT, np.uint8)
            stored |= {name: quantized, f"{name}.scale": scale, f"{name}.zero_point": zero_points}
    nodes = _rewrite(model, stored, weights)
    kept = {name: array for name, array in weights.items() if name not in stored}
    halves, casts = _halve(kept)
    initializers = [numpy_helper.from_array(array, name) for name, array in {**kept, **halves, **stored}.items()]
    used = {name for node in [*nodes, *casts] for name in node.input}
    graph = helper.make_graph(
        [*casts, *nodes],
        model.graph.name,
        list(model.graph.input),
        list(model.graph.output),
        [tensor for tensor in initializers if tensor.name in used],
    )
    opsets = [*model.opset_import, helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, producer_name="whisperfold", ir_version=model.ir_version
    ), errors


def _rewrite(
    model: onnx.ModelProto, stored: dict[str, np.ndarray], weights: dict[str, np.ndarray]
) -> list[onnx.NodeProto]:
    """Return the nodes with integer products (their biases drawn in) and dequantised look-ups."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    absorbed: set[str] = set()
    for node in model.graph.node:
        if node.name in absorbed:
            continue
        if node.op_type == "MatMul" and node.input[1] in stored:
            name, output, bias = node.input[1], node.output[0], ""
            after = readers.get(output, [])
            if len(after) == 1 and after[0].op_type == "Add" and after[0].input[1] in weights:
                bias, output = after[0].input[1], after[0].output[0]
                absorbed.add(after[0].name)
            inputs = [node.input[0], name, f"{name}.scale", f"{name}.zero_point", *([bias] if bias else [])]
            nodes.append(helper.make_node("DynamicQuantizeMatMul", inputs, [output], node.name, domain=MICROSOFT))
        elif node.op_type == "Gather" and node.input[0] in stored:
            nodes += _dequantized_columns(node)
        else:
            nodes.append(node)
    return nodes


def _dequantized_columns(gather: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return nodes that gather uint8 columns (n_in, batch, n) and their scales, and multiply."""
    table, tokens, name = gather.input[0], gather.input[1], gather.name
    to_float = int(onnx.TensorProto.FLOAT)
    return [
        helper.make_node("Gather", [table, tokens], [f"{name}.q"], f"{name}.q", axis=1),
        helper.make_node("Gather", [f"{table}.scale", tokens], [f"{name}.s"], f"{name}.s", axis=0),
        helper.make_node("Gather", [f"{table}.zero_point", tokens], [f"{name}.z"], f"{name}.z", axis=0),
        helper.make_node("Cast", [f"{name}.q"], [f"{name}.qf"], f"{name}.qf", to=to_float),
        helper.make_node("Cast", [f"{name}.z"], [f"{name}.zf"], f"{name}.zf", to=to_float),
        helper.make_node("Sub", [f"{name}.qf", f"{name}.zf"], [f"{name}.c"], f"{name}.c"),
        helper.make_node("Mul", [f"{name}.c", f"{name}.s"], [gather.output[0]], f"{name}.m"),
    ]


def _halve(kept: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    """Take convolution weights and position tables out of kept; return them as float16 and the casts back."""
    names = [name for name in kept if name.endswith(".positions") or (".conv" in name and name.endswith(".weight"))]
    halves = {f"{name}.half": kept.pop(name).astype(np.float16) for name in names}
    to_float = int(onnx.TensorProto.FLOAT)
    casts = [helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.cast", to=to_float) for name in names]
    return halves, casts


def count_bytes(models: list[onnx.ModelProto]) -> dict[str, int]:
    """Return the stored bytes per group of `GROUPS`, and what is left as "graphs and norms"."""
    counts = dict.fromkeys([label for label, _ in GROUPS], 0)
    total = sum(model.ByteSize() for model in models)
    for model in models:
        for tensor in model.graph.initializer:
            label = next((label for label, prefixes in GROUPS if tensor.name.startswith(prefixes)), None)
            if label:
                counts[label] += len(tensor.raw_data)
    counts["graphs and norms"] = total - sum(counts.values())
    return counts


def as_facts(errors: list[MatrixError]) -> list[dict[str, str | int | float]]:
    """Return the errors in the manifest's form."""
    return [asdict(error) for error in errors]
