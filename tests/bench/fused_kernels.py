"""Fused CPU kernels of this onnxruntime beside the nodes that the export writes: the same numbers? faster?

    python tests/bench/fused_kernels.py [--threads 2] [--repeats 200] [--json]

Each pair is two graphs of random inputs in the shapes of tiny.en: the nodes apart, and the fused op. A kernel that
refuses a case (head widths that differ, as cut ones do) shows its reason. graphs.py lists where the chains occur.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from machine import describe_machine

from whisperfold.compiler.graph import Graph
from whisperfold.compiler.quantize import MICROSOFT

N_HEAD, N_STATE = 6, 384
OPSET = 23
"""The first one with Attention."""
Shapes = dict[str, tuple[int, ...]]
Build = Callable[[Graph], dict[str, str]]
"""Adds nodes to a graph whose inputs are declared; returns value -> name of the output."""


@dataclass(frozen=True)
class Pair:
    """The same computation twice."""

    fused: str
    case: str
    inputs: Shapes
    apart: Build
    together: Build


def attend(graph: Graph, q: str, k: str, v: str) -> str:
    """Scores, softmax, mix for q, v (batch, head, n, width), k (batch, head, width, n), as export.py writes them."""
    weights = graph.op("Softmax", graph.op("MatMul", q, k), axis=-1)
    mixed = graph.op("Transpose", graph.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    return str(graph.op("Reshape", mixed, graph.ints(0, 0, -1)))


def skip_norm(n: int) -> Pair:
    """A residual sum and the norm after it, on n positions."""

    def norm(graph: Graph) -> tuple[str, str]:
        return graph.constant("scale", np.ones(N_STATE, np.float32)), graph.constant("b", np.ones(N_STATE, np.float32))

    def apart(graph: Graph) -> dict[str, str]:
        total = graph.op("Add", "x", "y")
        return {"normed": graph.op("LayerNormalization", total, *norm(graph), axis=-1, epsilon=1e-5), "sum": total}

    def together(graph: Graph) -> dict[str, str]:
        names = graph.op("SkipLayerNormalization", "x", "y", *norm(graph), n_out=4, domain=MICROSOFT, epsilon=1e-5)
        return {"normed": names[0], "sum": names[3]}

    shape = (1, n, N_STATE)
    return Pair("SkipLayerNormalization", f"{n} positions", {"x": shape, "y": shape}, apart, together)


def self_attention(kind: str, n: int, qk: int, vo: int) -> Pair:
    """An encoder layer's attention over n positions."""

    def apart(graph: Graph) -> dict[str, str]:
        q, v = (graph.heads(name, N_HEAD) for name in "qv")
        return {"y": attend(graph, q, graph.heads("k", N_HEAD, (0, 2, 3, 1)), v)}

    inputs = {"q": (1, n, N_HEAD * qk), "k": (1, n, N_HEAD * qk), "v": (1, n, N_HEAD * vo)}
    return Pair(
        kind, f"encoder, T = {n}, qk {qk}, vo {vo}", inputs, apart, lambda graph: {"y": fused(graph, kind, 1)[0]}
    )


def step_attention(kind: str, n_past: int, qk: int, vo: int) -> Pair:
    """A decoder layer's self-attention of one token over n_past others and itself."""

    def apart(graph: Graph) -> dict[str, str]:
        q, k, v = (graph.heads(name, N_HEAD) for name in "qkv")
        k, v = (graph.op("Concat", old, new, axis=2) for old, new in (("past_k", k), ("past_v", v)))
        return {"y": attend(graph, q, graph.op("Transpose", k, perm=[0, 1, 3, 2]), v), "k": k, "v": v}

    def together(graph: Graph) -> dict[str, str]:
        past = ("", "past_k", "past_v") if kind == "Attention" else ("", "", "", "past_k", "past_v")
        return dict(zip(("y", "k", "v"), fused(graph, kind, 3, *past), strict=True))

    inputs = {"q": (1, 1, N_HEAD * qk), "k": (1, 1, N_HEAD * qk), "v": (1, 1, N_HEAD * vo)}
    inputs |= {"past_k": (1, N_HEAD, n_past, qk), "past_v": (1, N_HEAD, n_past, vo)}
    return Pair(kind, f"decoder self, past {n_past}, qk {qk}, vo {vo}", inputs, apart, together)


def fused(graph: Graph, kind: str, n_out: int, *past: str) -> list[str]:
    """The one node, scale 1 as the export has it in q."""
    if kind == "Attention":
        options: dict[str, Any] = {"q_num_heads": N_HEAD, "kv_num_heads": N_HEAD}
    else:
        options = {"num_heads": N_HEAD, "domain": MICROSOFT}
    names = graph.op(kind, "q", "k", "v", *past, n_out=n_out, scale=1.0, **options)
    return [names] if n_out == 1 else list(names)


def pairs() -> list[Pair]:
    """What is compared: full and cut widths, windows of 3, 10 and 30 s, a step with a short and a long past."""
    kinds = ("MultiHeadAttention", "Attention")
    shapes = [(n, *widths) for n in (150, 500, 1500) for widths in ((64, 64), (24, 40))]
    steps = [(n_past, *widths) for n_past in (16, 200) for widths in ((64, 64), (24, 56))]
    return [
        *(skip_norm(n) for n in (1, 150, 500)),
        *(self_attention(kind, *shape) for shape in shapes for kind in kinds),
        *(step_attention(kind, *step) for step in steps for kind in kinds),
    ]


def session(pair: Pair, build: Build, threads: int) -> ort.InferenceSession:
    """Load one side of a pair."""
    from onnx import TensorProto, helper

    graph = Graph("pair", OPSET)
    for name, shape in pair.inputs.items():
        graph.input(name, "float32", ["batch", shape[1] if len(shape) == 4 else "n", *shape[2:]])
    for value, name in build(graph).items():
        graph.output(name, f"out_{value}", ())
    outputs = [helper.make_tensor_value_info(item.name, TensorProto.FLOAT, None) for item in graph.outputs]
    made = helper.make_graph(graph.nodes, graph.name, graph.inputs, outputs, list(graph.initializers.values()))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    model = helper.make_model(made, opset_imports=opsets, ir_version=11)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def compare(pair: Pair, threads: int, repeats: int) -> dict[str, Any]:
    """Return the largest difference and both times; their runs alternate, so that other work slows both alike."""
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in pair.inputs.items()}
    row: dict[str, Any] = {"fused": pair.fused, "case": pair.case}
    try:
        sides = [session(pair, build, threads) for build in (pair.apart, pair.together)]
        apart, together = (side.run(None, feed) for side in sides)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        return row | {"refused": str(error).rsplit("Status Message: ", 1)[-1].strip()}
    times_us: list[list[float]] = [[], []]
    for _ in range(repeats):
        for side, times in zip(sides, times_us, strict=True):
            started = time.perf_counter()
            side.run(None, feed)
            times.append(1e6 * (time.perf_counter() - started))
    return row | {
        "max_difference": max(float(np.abs(a - b).max()) for a, b in zip(apart, together, strict=True)),
        "apart_us": [statistics.median(times_us[0]), min(times_us[0])],
        "together_us": [statistics.median(times_us[1]), min(times_us[1])],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line per pair."""
    lines = ["| fused op | case | difference | apart, µs: median (least) | fused, µs |", "|---|---|---:|---:|---:|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['fused']} | {row['case']} | refused: {row['refused']} | | |")
            continue
        times = [f"{median:.0f} ({least:.0f})" for median, least in (row["apart_us"], row["together_us"])]
        lines.append(f"| {row['fused']} | {row['case']} | {row['max_difference']:.0e} | {' | '.join(times)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compare every pair."""
    parser = argparse.ArgumentParser(description="fused kernels against nodes apart")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    args = parser.parse_args(arguments)
    rows = [compare(pair, args.threads, args.repeats) for pair in pairs()]
    result = {"machine": describe_machine(), "onnxruntime": ort.__version__, "threads": args.threads, "pairs": rows}
    print(json.dumps(result) if args.json else markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
