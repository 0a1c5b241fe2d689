"""fp32 graphs and speech -> the same graphs with quieter outliers, for quantize.py; exact but for float32's rounding.

An integer product has one scale for all channels of its input, so one loud channel silences the others (a few
neurons of `base` reach 87 where most stay below 4). Channel c, whose largest magnitude over some speech is
peak_c, is made

    s_c = sqrt(max(1, peak_c / q))        q = 90th percentile of the input's peaks

times quieter, and row c of every matrix that reads it s_c times larger: SmoothQuant (Xiao et al. 2022, arXiv
2211.10438) for outliers alone, as quiet channels are never made louder. A layer norm before the product takes 1 / s
into its gain and bias, at no cost. Elsewhere (after GELU, after attention) it is a Mul, put in only where it matters
(MUL_FROM). What is read otherwise too (the token embedding) or stored in 4 bits stays as it is. Docs: decisions/0013.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from whisperfold.compiler.calibrate import window_of
from whisperfold.compiler.parity import empty_past
from whisperfold.compiler.teacher import Lesson, mel_window

QUANTILE, EXPONENT = 0.9, 0.5
MUL_FROM = 2.0
"""Largest s_c from which a Mul is worth its pass over the activations."""

Peaks = dict[str, np.ndarray]
"""Stored matrix (n_in, n_out) -> float32 (n_in,), the largest magnitude of each channel of its input."""


def measure_peaks(
    encoder: onnx.ModelProto, decoder: onnx.ModelProto, lessons: list[Lesson], kind: str, tail_s: float
) -> Peaks:
    """Return the peaks of both fp32 graphs over the lessons, each at its window (calibrate.window_of)."""
    listening, speaking = (ort.InferenceSession(_with_peaks(graph).SerializeToString()) for graph in (encoder, decoder))
    n_mels = listening.get_inputs()[0].shape[1]
    past = empty_past(speaking)
    peaks: Peaks = {}
    for lesson in lessons:
        mel = mel_window(lesson.samples, window_of(lesson, kind, tail_s), n_mels)[None].numpy()
        tokens = lesson.sequences[0][0][None, :-1].numpy()
        heard = _run(listening, {"mel": mel}, ("cross_", "peak."))
        cross = {name: value for name, value in heard.items() if name.startswith("cross_")}
        said = _run(speaking, {"tokens": tokens, "logit_positions": np.array([0]), **cross, **past}, ("peak.",))
        for name, value in (heard | said).items():
            matrix = name.removeprefix("peak.")
            if matrix != name:
                peaks[matrix] = np.maximum(value, peaks.get(matrix, 0.0))
    return peaks


def _run(
    session: ort.InferenceSession, feed: dict[str, np.ndarray], prefixes: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Return the outputs whose names begin with one of the prefixes."""
    names = [item.name for item in session.get_outputs() if item.name.startswith(prefixes)]
    return dict(zip(names, session.run(names, feed), strict=True))


def _with_peaks(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that also puts out "peak.MATRIX" (n_in,) of every matrix that can be smoothed."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), "peak_axes"))
    for value, matrices in _readers(model.graph).items():
        graph.node.append(helper.make_node("Abs", [value], [f"{value}.abs"]))
        for name in matrices:
            graph.node.append(
                helper.make_node("ReduceMax", [f"{value}.abs", "peak_axes"], [f"peak.{name}"], keepdims=0)
            )
            graph.output.append(helper.make_tensor_value_info(f"peak.{name}", TensorProto.FLOAT, None))
    return probe


def _readers(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Return the stored matrices that read each value which nothing else reads, and that nothing else uses."""
    stored = {tensor.name for tensor in graph.initializer}
    uses: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)

    def is_product(node: onnx.NodeProto, value: str) -> bool:
        """Whether a node multiplies the value by a matrix of its own."""
        return bool(
            node.op_type == "MatMul"
            and node.input[0] == value
            and node.input[1] in stored
            and len(uses[node.input[1]]) == 1
        )

    return {
        value: [node.input[1] for node in nodes]
        for value, nodes in uses.items()
        if all(is_product(node, value) for node in nodes)
    }


def loudness(peaks: np.ndarray) -> np.ndarray:
    """Return s (n_in,), by how much each channel is made quieter: 1 or more."""
    typical = max(float(np.quantile(peaks, QUANTILE)), 1e-6)
    return np.asarray(np.maximum(1.0, peaks / typical) ** EXPONENT, np.float32)


def smooth(model: onnx.ModelProto, peaks: Mapping[str, np.ndarray], kept: Collection[str] = ()) -> onnx.ModelProto:
    """Return the smoothed graph; the input is not changed.

    Args:
        model: an fp32 graph.
        peaks: of `measure_peaks`; a matrix without them stays as it is.
        kept: matrices that must stay as they are: those in 4 bits.
    """
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    graph = smoothed.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    muls: dict[str, str] = {}
    for value, matrices in _readers(model.graph).items():
        if any(name in kept or name not in peaks for name in matrices):
            continue
        s = loudness(peaks[matrices[0]])
        norm = next(
            (node for node in graph.node if node.op_type == "LayerNormalization" and node.output[0] == value), None
        )
        if norm:
            for name in norm.input[1:]:
                _multiply(tensors[name], 1 / s)
        elif s.max() >= MUL_FROM:
            muls[value] = f"{matrices[0].removesuffix('.weight')}.smooth"
            graph.initializer.append(numpy_helper.from_array(1 / s, muls[value]))
        else:
            continue
        for name in matrices:
            _multiply(tensors[name], s[:, None])
    nodes = _with_muls(list(graph.node), muls)
    del graph.node[:]
    graph.node.extend(nodes)
    return smoothed


def _multiply(tensor: onnx.TensorProto, factor: np.ndarray) -> None:
    """Multiply a stored tensor, in place."""
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * factor, tensor.name))


def _with_muls(nodes: list[onnx.NodeProto], muls: Mapping[str, str]) -> list[onnx.NodeProto]:
    """Return the nodes with the values in muls multiplied by the vectors given there, each right after it is made."""
    found: list[onnx.NodeProto] = []
    for node in nodes:
        node.input[:] = [f"{name}.smooth" if name in muls else name for name in node.input]
        found.append(node)
        for value in node.output:
            if value in muls:
                name = f"{value}.smooth"
                found.append(helper.make_node("Mul", [value, muls[value]], [name], name))
    return found
