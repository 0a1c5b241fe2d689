"""fp32 graphs -> graphs with 8-bit weights, or 4-bit ones where blocks are given; what is lost is measured.

A matrix product with a stored weight becomes DynamicQuantizeMatMul: weight uint8 with one scale per output channel
and zero point 128, activations quantised as they come. uint8 on both sides, because on AVX2 without VNNI the signed
kernels saturate (docs/decisions/0004). A matrix that loses more than `max_error` stays float32: never a surprise.
Convolutions and position tables, which no integer kernel reads, are stored in 8 bits too, one scale per filter or row,
and unpacked when the device loads the graph.

A matrix that is given in 4 bits (blocks.py) becomes MatMulNBits on inputs times the column factors, and a second one
for what the first rows lost. Where it is looked up (the token embedding), ordinary nodes unpack its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from whisperfold.compiler.blocks import BLOCK, FINE_ROWS, Blocks, fine_rows, stored_rows
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


def quantize(
    model: onnx.ModelProto, max_error: float = 0.05, blocks: Mapping[str, Blocks] | None = None
) -> tuple[onnx.ModelProto, list[MatrixError]]:
    """Return the quantised graph and the error of every matrix; the input is not changed.

    Args:
        model: the fp32 graph.
        max_error: relative error above which a matrix is not stored in 8 bits.
        blocks: matrices in 4 bits, (n_out, n_in), by the names of the graph's initializers (n_in, n_out).
    """
    blocks = blocks or {}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    errors: list[MatrixError] = []
    stored: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(node.input[1] for node in products):
        if name in blocks:
            coarse, rows = blocks[name], np.ascontiguousarray(weights[name].T)
            fine = fine_rows(rows, coarse)
            lost = stored_rows(coarse, fine) - rows
            errors.append(MatrixError(name, 4, float(np.linalg.norm(lost) / np.linalg.norm(rows))))
            stored |= {
                name: coarse.packed,
                f"{name}.scale.half": coarse.scale,
                f"{name}.columns": coarse.columns,
                f"{name}.fine": fine.packed,
                f"{name}.fine.scale.half": fine.scale,
            }
            continue
        quantized, scale = quantize_columns(weights[name])
        error = relative_error(weights[name], quantized, scale)
        bits = 8 if error <= max_error else 32
        errors.append(MatrixError(name.removesuffix(".weight"), bits, error))
        if bits == 8:
            zero_points = np.full(scale.size, ZERO_POINT, np.uint8)
            stored |= {name: quantized, f"{name}.scale": scale, f"{name}.zero_point": zero_points}
    nodes = _rewrite(model, stored, weights, blocks)
    kept = {name: array for name, array in weights.items() if name not in stored}
    packed, unpacking = _pack_rows(kept)
    initializers = [numpy_helper.from_array(array, name) for name, array in {**kept, **packed, **stored}.items()]
    used = {name for node in [*nodes, *unpacking] for name in node.input}
    graph = helper.make_graph(
        [*unpacking, *nodes],
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
    model: onnx.ModelProto, stored: dict[str, np.ndarray], weights: dict[str, np.ndarray], blocks: Mapping[str, Blocks]
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
        if node.op_type == "MatMul" and node.input[1] in blocks:
            nodes += _block_product(node, blocks[node.input[1]])
        elif node.op_type == "Gather" and node.input[0] in blocks:
            nodes += _unpacked_columns(node, min(FINE_ROWS, len(blocks[node.input[0]].packed)))
        elif node.op_type == "MatMul" and node.input[1] in stored:
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


def _block_product(product: onnx.NodeProto, matrix: Blocks) -> list[onnx.NodeProto]:
    """Return nodes that multiply with a 4-bit matrix; accuracy level 4 is 8-bit activations, as elsewhere.

    Values named logits. are those after the hidden states, which adapt_graph.py leaves out.
    """
    x, name, label = product.input[0], product.input[1], product.name
    n_out, n_blocks, _ = matrix.packed.shape
    n_fine = min(n_out, FINE_ROWS)

    def multiply(table: str, n_rows: int, output: str) -> list[onnx.NodeProto]:
        """The product with one table."""
        shape = {"N": n_rows, "K": n_blocks * BLOCK, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        inputs, scale = [f"{label}.x", table, f"{output}.s"], f"{table}.scale.half"
        node = helper.make_node("MatMulNBits", inputs, [output], output, domain=MICROSOFT, **shape)
        return [_to_float(scale, f"{output}.s"), node]

    sizes = numpy_helper.from_array(np.array([n_fine, n_out - n_fine]), "logits.sizes")
    return [
        helper.make_node("Mul", [x, f"{name}.columns"], [f"{label}.x"], f"{label}.x"),
        *multiply(name, n_out, "logits.coarse"),
        *multiply(f"{name}.fine", n_fine, "logits.fine"),
        helper.make_node("Constant", [], ["logits.sizes"], "logits.sizes", value=sizes),
        helper.make_node(
            "Split", ["logits.coarse", "logits.sizes"], ["logits.first", "logits.rest"], "logits.split", axis=-1
        ),
        helper.make_node("Add", ["logits.first", "logits.fine"], ["logits.sum"], "logits.sum"),
        helper.make_node("Concat", ["logits.sum", "logits.rest"], [product.output[0]], label, axis=-1),
    ]


def _unpacked_columns(gather: onnx.NodeProto, n_fine: int) -> list[onnx.NodeProto]:
    """Return nodes that gather rows of a 4-bit matrix for tokens (batch, n) and put them out as (n_in, batch, n)."""
    table, tokens, name = gather.input[0], gather.input[1], gather.name

    def constant(label: str, values: list[int], dtype: type[np.generic]) -> onnx.NodeProto:
        """A small constant of this look-up."""
        tensor = numpy_helper.from_array(np.array(values, dtype), f"{name}.{label}")
        return helper.make_node("Constant", [], [f"{name}.{label}"], f"{name}.{label}", value=tensor)

    def node(kind: str, inputs: list[str], label: str, **attributes: Any) -> onnx.NodeProto:
        """One node; names that begin with a dot are of this look-up."""
        names = [f"{name}{value}" if value.startswith(".") else value for value in inputs]
        return helper.make_node(kind, names, [f"{name}{label}"], f"{name}{label}", **attributes)

    def unpack(source: str, ids: str, at: str) -> list[onnx.NodeProto]:
        """Rows of one table before the column factors, as at.row (batch, n, n_in)."""
        return [
            node("Gather", [source, ids], f"{at}.packed", axis=0),
            node("BitwiseAnd", [f"{at}.packed", ".fifteen"], f"{at}.low"),
            node("BitShift", [f"{at}.packed", ".four"], f"{at}.high", direction="RIGHT"),
            node("Unsqueeze", [f"{at}.low", ".last"], f"{at}.low1"),
            node("Unsqueeze", [f"{at}.high", ".last"], f"{at}.high1"),
            node("Concat", [f"{at}.low1", f"{at}.high1"], f"{at}.pairs", axis=-1),
            node("Reshape", [f"{at}.pairs", ".blocks"], f"{at}.levels"),
            _to_float(f"{name}{at}.levels", f"{name}{at}.levels.f"),
            node("Sub", [f"{at}.levels.f", ".middle"], f"{at}.signed"),
            node("Gather", [f"{source}.scale.half", ids], f"{at}.scale", axis=0),
            _to_float(f"{name}{at}.scale", f"{name}{at}.scale.f"),
            node("Unsqueeze", [f"{at}.scale.f", ".last"], f"{at}.scale1"),
            node("Mul", [f"{at}.signed", f"{at}.scale1"], f"{at}.scaled"),
            node("Reshape", [f"{at}.scaled", ".rows"], f"{at}.row"),
        ]

    return [
        constant("fifteen", [15], np.uint8),
        constant("four", [4], np.uint8),
        constant("last", [-1], np.int64),
        constant("blocks", [0, 0, 0, -1], np.int64),
        constant("rows", [0, 0, -1], np.int64),
        constant("middle", [8], np.float32),
        constant("last_fine", [n_fine - 1], np.int64),
        *unpack(table, tokens, ".coarse"),
        node("Min", [tokens, ".last_fine"], ".near"),
        *unpack(f"{table}.fine", ".near", ".fine"),
        node("Equal", [tokens, ".near"], ".is_fine"),
        _to_float(f"{name}.is_fine", f"{name}.is_fine.f"),
        node("Unsqueeze", [".is_fine.f", ".last"], ".is_fine1"),
        node("Mul", [".fine.row", ".is_fine1"], ".added"),
        node("Add", [".coarse.row", ".added"], ".row"),
        node("Mul", [".row", f"{table}.columns"], ".embedded"),
        helper.make_node("Transpose", [f"{name}.embedded"], [gather.output[0]], name, perm=[2, 0, 1]),
    ]


def _to_float(name: str, output: str) -> onnx.NodeProto:
    """Return a cast to float32."""
    return helper.make_node("Cast", [name], [output], output, to=int(onnx.TensorProto.FLOAT))


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


def _pack_rows(kept: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    """Take convolution weights and position tables out of kept; return them in 8 bits and the nodes that unpack them.

    onnxruntime runs these nodes once, when it loads the graph; it would keep a DequantizeLinear.
    """
    packed: dict[str, np.ndarray] = {}
    nodes = []
    tables = [name for name in kept if name.endswith(".positions") or (".conv" in name and name.endswith(".weight"))]
    for name in tables:
        weight = kept.pop(name)
        quantized, scale = quantize_columns(weight.reshape(len(weight), -1).T)
        packed |= {
            f"{name}.rows": np.ascontiguousarray(quantized.T).reshape(weight.shape),
            f"{name}.rows.scale": scale.reshape(-1, *[1] * (weight.ndim - 1)),
            "rows.zero_point": np.array(ZERO_POINT, np.float32),
        }
        nodes += [
            _to_float(f"{name}.rows", f"{name}.rows.f"),
            helper.make_node("Sub", [f"{name}.rows.f", "rows.zero_point"], [f"{name}.rows.c"], f"{name}.rows.c"),
            helper.make_node("Mul", [f"{name}.rows.c", f"{name}.rows.scale"], [name], f"{name}.unpacked"),
        ]
    return packed, nodes


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
