"""The graph bench: chains are found where they are and only there; bytes of the cache; one whole run of the command."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from whisperfold.compiler.graph import Graph
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.session import Engine

sys.path.insert(0, str(Path(__file__).parent))
import chains  # noqa: E402
import fused_kernels  # noqa: E402
import graphs  # noqa: E402


def fused_names(graph: Graph) -> list[str]:
    """The fused ops that a graph lacks, and how the places are called."""
    return [place.chain.fused for place in chains.find_chains(graph.model().graph)]


def small_graph() -> Graph:
    """A graph with two inputs of one shape."""
    graph = Graph("g")
    for name in "xy":
        graph.input(name, "float32", (1, 2, "n", 4))
    return graph


def vector(graph: Graph, name: str) -> str:
    """A stored vector as wide as the inputs."""
    return graph.constant(name, np.ones(4, np.float32))


def test_residual_sum_before_a_norm_is_found_though_another_node_reads_it() -> None:
    graph = small_graph()
    total = graph.op("Add", "x", "y")
    normed = graph.op("LayerNormalization", total, vector(graph, "scale"), vector(graph, "b"), axis=-1)
    graph.output(graph.op("Add", total, normed), "out", (1, 2, "n", 4))
    (place,) = chains.find_chains(graph.model().graph)
    assert (place.chain.fused, place.nodes) == ("SkipLayerNormalization", ("Add_0", "LayerNormalization_1"))


@pytest.mark.parametrize(("stored", "expected"), [(True, ["BiasGelu"]), (False, [])])
def test_only_a_stored_summand_is_a_bias(stored: bool, expected: list[str]) -> None:
    graph = small_graph()
    total = graph.op("Add", "x", vector(graph, "bias") if stored else "y")
    graph.output(graph.op("Gelu", total), "out", (1, 2, "n", 4))
    assert fused_names(graph) == expected


@pytest.mark.parametrize(("perm", "expected"), [([0, 1, 3, 2], 1), ([0, 2, 1, 3], 0)])
def test_only_swapped_last_axes_go_into_a_product(perm: list[int], expected: int) -> None:
    graph = small_graph()
    turned = graph.op("Transpose", "y", perm=perm)
    graph.output(graph.op("MatMul", "x", turned), "out", (1, 2, "n", "n"))
    assert fused_names(graph) == ["FusedMatMul, transposed input"] * expected


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_found_with_and_without_mask_and_past(masked: bool) -> None:
    graph = small_graph()
    keys = graph.op("Concat", "x", "y", axis=2)
    scores = graph.op("MatMul", "x", graph.op("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = graph.op("Add", scores, graph.op("Add", scores, scores)) if masked else scores
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), keys)
    merged = graph.op("Reshape", graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), graph.ints(1, -1, 8))
    graph.output(merged, "out", (1, "n", 8))
    places = [place for place in chains.find_chains(graph.model().graph) if "Attention" in place.chain.fused]
    assert [place.chain.fused for place in places] == [
        "MultiHeadAttention, Attention (opset 23)",
        "Attention (opset 23), past inside",
    ]
    assert places[1].nodes[0] == "Concat_0" and places[1].nodes[-1].startswith("Reshape")
    assert any(name.startswith("Add") for name in places[0].nodes) is masked


@pytest.mark.parametrize("read_again", [True, False])
def test_an_output_is_copied_where_another_node_reads_it(read_again: bool) -> None:
    graph = small_graph()
    value = graph.op("Relu", "x")
    graph.output(value, "out", (1, 2, "n", 4))
    if read_again:
        graph.output(graph.op("Relu", value), "other", (1, 2, "n", 4))
    assert fused_names(graph) == ["output without a copy"] * read_again


def test_an_attention_whose_product_has_a_weight_is_none() -> None:
    """MatMul, Softmax, MatMul with stored matrices is a classifier, no attention."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["d", "shape"], ["out"]),
    ]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "out")]
    assert chains.find_chains(helper.make_graph(nodes, "g", values[:1], values[1:], [weight])) == []


def test_ops_beyond_onnx_have_their_domain() -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Q", ["y"], ["z"], domain="com.microsoft")]
    graph = helper.make_graph(nodes, "g", [], [])
    assert chains.count_ops(graph) == {"Add": 1, "com.microsoft:Q": 1}


@pytest.fixture(scope="module")
def quarter(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random model of one layer whose decoder heads are a quarter as wide, and float32."""
    shape = {"state": 64, "head": 2, "layer": 1}
    return graphs.random_bundle(tmp_path_factory.mktemp("random") / "quarter", shape, 25, "fp32")


def test_cache_of_a_random_model_is_what_the_engine_holds(quarter: Bundle) -> None:
    engine = Engine(quarter, threads=1)
    cache = graphs.make_cache(engine, 3, 1.0)
    found = graphs.cache_bytes(quarter)
    assert found == {"self_bytes_per_token": 4 * 2 * (8 + 8), "cross_bytes_per_s": 4 * 50 * 2 * (8 + 8)}
    assert sum(value.numpy().nbytes for value in cache.past) == 3 * found["self_bytes_per_token"]
    assert sum(value.numpy().nbytes for value in cache.cross.values) == found["cross_bytes_per_s"]


def test_steps_leave_the_cache_as_it_was(quarter: Bundle) -> None:
    rows = graphs.time_steps({"a": Engine(quarter, threads=1)}, [2], [0.5, 1.0], repeats=3)
    assert [(row["past_tokens"], row["audio_s"]) for row in rows] == [(2, 0.5), (2, 1.0)]
    assert all(0 < row["min_ms"] <= row["median_ms"] for row in rows)


def test_the_command_reports_ops_chains_and_steps(quarter: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(quarter.path), "--threads", "1", "--repeats", "2", "--past", "4", "--audio", "1"]
    assert graphs.main(options) == 0
    text = capsys.readouterr().out
    assert "| com.microsoft:BiasGelu |  | 1 |" in text and "**SkipLayerNormalization**" in text
    assert "| 128 | 6400 | 4 |" in text
    assert graphs.main([*options, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["bundles"].values()
    assert found["graphs"]["encoder.onnx"]["before"]["Gelu"] == 3


def test_a_fused_kernel_is_compared_or_its_refusal_shown() -> None:
    same = fused_kernels.compare(fused_kernels.step_attention("MultiHeadAttention", 4, 8, 8), 1, 2)
    assert same["max_difference"] < 1e-5
    cut = fused_kernels.compare(fused_kernels.step_attention("MultiHeadAttention", 4, 8, 24), 1, 2)
    assert "head_size" in cut["refused"]
    wrong = replace(fused_kernels.skip_norm(3), together=lambda graph: {"normed": "x", "sum": "y"})
    assert fused_kernels.compare(wrong, 1, 1)["max_difference"] > 0.1
    assert "refused: " in fused_kernels.markdown([cut])
