"""A torch Whisper of any widths -> encoder.onnx and decoder.onnx, fp32, each weight stored once.

    encoder: mel (batch, n_mels, frames) -> cross_k_i (batch, head, qk, T), cross_v_i (batch, head, T, vo)
    decoder: tokens (batch, n), logit_positions (m,), past_*, cross_* -> logits (batch, m, n_vocab), present_*,
             cross_attention (batch, alignment head, n, T)

The graphs are written node by node instead of traced: q, k and v become one matrix, as do all cross-attention
keys and values (one quantised input on the device), the attention scale moves into q, the token embedding is stored
transposed and serves both the look-up (Gather on its columns) and the logits, and one decoder graph serves first and
later steps (past length 0 or more). See docs/decisions/0002-graphs-by-hand.md.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx
import torch
from torch import nn

from whisperfold.compiler.graph import Graph
from whisperfold.models.low_rank import LowRankLinear
from whisperfold.models.whisper import Attention, FeedForward, Whisper, frequencies, sinusoids

NEGATIVE = np.array(-1e9, np.float32)
SINUSOID_TOLERANCE = 1e-5
"""Sine and cosine of different libraries differ by less, position tables that were trained by more."""


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().to(torch.float32).numpy())


def _linear(graph: Graph, x: str, name: str, layer: nn.Linear | LowRankLinear, scale: float = 1.0) -> str:
    """Return scale * layer(x); two products where the layer has factors."""
    if isinstance(layer, LowRankLinear):
        x, name, layer = graph.linear(x, f"{name}.down", _array(layer.down.weight).T), f"{name}.up", layer.up
    weight, bias = _array(layer.weight).T * scale, None if layer.bias is None else _array(layer.bias) * scale
    return graph.linear(x, name, weight, bias)


def _norm(graph: Graph, x: str, name: str, norm: nn.LayerNorm) -> str:
    return graph.layer_norm(x, name, _array(norm.weight), _array(norm.bias))


def _self_qkv(graph: Graph, x: str, name: str, attn: Attention) -> list[str]:
    """Return q (scaled), k and v (batch, n, head * width) from one joined matrix, or each from its two factors."""
    if any(isinstance(part, LowRankLinear) for part in (attn.q, attn.k, attn.v)):
        return _factored_qkv(graph, x, name, attn)
    q, k, v = (_array(part.weight).T for part in (attn.q, attn.k, attn.v))
    weight = np.concatenate([q * attn.scale, k, v], axis=1)
    bias = np.zeros(weight.shape[1], np.float32)
    bias[: q.shape[1]] = _array(attn.q.bias) * attn.scale
    joined = graph.linear(x, f"{name}.qkv", weight, bias)
    sizes = graph.ints(q.shape[1], k.shape[1], v.shape[1])
    return list(graph.op("Split", joined, sizes, n_out=3, axis=-1))


def _factored_qkv(graph: Graph, x: str, name: str, attn: Attention) -> list[str]:
    """Return q (scaled), k and v; the inner factors are joined, as they read the same input."""
    parts = {"q": attn.q, "k": attn.k, "v": attn.v}
    inner = {part: layer.down for part, layer in parts.items() if isinstance(layer, LowRankLinear)}
    joined = graph.linear(x, f"{name}.qkv.down", np.concatenate([_array(d.weight).T for d in inner.values()], axis=1))
    ranks = [down.out_features for down in inner.values()]
    split = graph.op("Split", joined, graph.ints(*ranks), n_out=len(ranks), axis=-1) if len(ranks) > 1 else [joined]
    inputs = dict(zip(inner, split, strict=True))
    scales = {"q": attn.scale, "k": 1.0, "v": 1.0}
    return [
        _linear(graph, inputs[part], f"{name}.{part}.up", layer.up, scales[part])
        if isinstance(layer, LowRankLinear)
        else _linear(graph, x, f"{name}.{part}", layer, scales[part])
        for part, layer in parts.items()
    ]


def _attend(graph: Graph, q: str, k: str, v: str, name: str, attn: Attention, mask: str = "") -> tuple[str, str]:
    """Return the projected output and the weights, for q, v (batch, head, n, width), k (batch, head, width, n)."""
    scores = graph.op("MatMul", q, k)
    weights = graph.op("Softmax", graph.op("Add", scores, mask) if mask else scores, axis=-1)
    mixed = graph.op("Transpose", graph.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    merged = graph.op("Reshape", mixed, graph.ints(0, 0, -1))
    return _linear(graph, merged, f"{name}.out", attn.out), weights


def _feed_forward(graph: Graph, x: str, name: str, ffn: FeedForward) -> str:
    hidden = graph.op("Gelu", _linear(graph, x, f"{name}.fc1", ffn.fc1))
    return _linear(graph, hidden, f"{name}.fc2", ffn.fc2)


def _first_positions(graph: Graph, name: str, table: torch.Tensor, start: str, stop: str) -> str:
    """Return rows start..stop (int64 vectors of one element) of a position table."""
    return str(graph.op("Slice", graph.constant(name, _array(table)), start, stop, graph.ints(0)))


def _encoder_positions(graph: Graph, table: torch.Tensor, n_frames: str) -> str:
    """Return the first positions of the encoder: computed where they are Whisper's sinusoids, else stored."""
    if (table - sinusoids(*table.shape)).abs().max() > SINUSOID_TOLERANCE:
        return _first_positions(graph, "encoder.positions", table, graph.ints(0), n_frames)
    zero, one = (graph.op("Squeeze", graph.ints(value)) for value in (0, 1))
    steps = graph.op("Range", zero, graph.op("Squeeze", n_frames), one)
    column = graph.op("Unsqueeze", graph.op("Cast", steps, to=int(onnx.TensorProto.FLOAT)), graph.ints(1))
    angles = graph.op("Mul", column, graph.constant("encoder.frequencies", _array(frequencies(table.shape[1]))[None]))
    return str(graph.op("Concat", graph.op("Sin", angles), graph.op("Cos", angles), axis=1))


def encoder_graph(model: Whisper) -> onnx.ModelProto:
    """Return the encoder with every decoder layer's cross-attention keys and values."""
    dims, encoder = model.dims, model.encoder
    graph = Graph("encoder")
    x = graph.input("mel", "float32", ("batch", dims.n_mels, "frames"))
    for name, conv, stride in (("conv1", encoder.conv1, 1), ("conv2", encoder.conv2, 2)):
        weight = graph.constant(f"encoder.{name}.weight", _array(conv.weight))
        bias = graph.constant(f"encoder.{name}.bias", _array(cast(torch.Tensor, conv.bias)))
        x = graph.op("Gelu", graph.op("Conv", x, weight, bias, pads=[1, 1], strides=[stride], kernel_shape=[3]))
    x = graph.op("Transpose", x, perm=[0, 2, 1])
    x = graph.op("Add", x, _encoder_positions(graph, encoder.positions, graph.op("Shape", x, start=1, end=2)))
    for i, layer in enumerate(encoder.layers):
        name = f"encoder.layers.{i}"
        q, k, v = _self_qkv(graph, _norm(graph, x, f"{name}.attn_ln", layer.attn_ln), f"{name}.attn", layer.attn)
        q, v = (graph.heads(part, dims.n_audio_head) for part in (q, v))
        k = graph.heads(k, dims.n_audio_head, (0, 2, 3, 1))
        x = graph.op("Add", x, _attend(graph, q, k, v, f"{name}.attn", layer.attn)[0])
        y = _norm(graph, x, f"{name}.ffn_ln", layer.ffn_ln)
        x = graph.op("Add", x, _feed_forward(graph, y, f"{name}.ffn", layer.ffn))
    encoded = _norm(graph, x, "encoder.ln", encoder.ln)
    projections = [part for layer in model.decoder.layers for part in (layer.cross.k, layer.cross.v)]
    stacked = np.concatenate([_array(part.weight).T for part in projections], axis=1)
    sizes = graph.ints(*(part.out_features for part in projections))
    joined = graph.linear(encoded, "decoder.cross_kv", stacked)
    parts = graph.op("Split", joined, sizes, n_out=len(projections), axis=-1)
    for i, d in enumerate(model.widths.decoder):
        k = graph.heads(parts[2 * i], dims.n_text_head, (0, 2, 3, 1))
        v = graph.heads(parts[2 * i + 1], dims.n_text_head)
        graph.output(k, f"cross_k_{i}", ("batch", dims.n_text_head, d.cross_qk, "T"))
        graph.output(v, f"cross_v_{i}", ("batch", dims.n_text_head, "T", d.cross_vo))
    return graph.model()


def decoder_graph(model: Whisper, alignment_heads: list[list[int]]) -> onnx.ModelProto:
    """Return the decoder step: first and later steps are the same graph, with a past of length 0 or more."""
    dims, decoder, heads = model.dims, model.decoder, model.dims.n_text_head
    graph = Graph("decoder")
    tokens = graph.input("tokens", "int64", ("batch", "n"))
    logit_positions = graph.input("logit_positions", "int64", ("m",))
    past, cross = [], []
    for i, w in enumerate(model.widths.decoder):
        past.append(
            (
                graph.input(f"past_k_{i}", "float32", ("batch", heads, "P", w.self_qk)),
                graph.input(f"past_v_{i}", "float32", ("batch", heads, "P", w.self_vo)),
            )
        )
        cross.append(
            (
                graph.input(f"cross_k_{i}", "float32", ("batch", heads, w.cross_qk, "T")),
                graph.input(f"cross_v_{i}", "float32", ("batch", heads, "T", w.cross_vo)),
            )
        )
    embedding = graph.constant("decoder.token_embedding", _array(decoder.token_embedding.weight).T)
    columns = graph.op("Gather", embedding, tokens, axis=1)
    x = graph.op("Transpose", columns, perm=[1, 2, 0])
    n_past = graph.op("Shape", past[0][0], start=2, end=3)
    n_total = graph.op("Add", n_past, graph.op("Shape", tokens, start=1, end=2))
    x = graph.op("Add", x, _first_positions(graph, "decoder.positions", decoder.positions, n_past, n_total))
    mask = _causal_mask(graph, n_past, n_total)
    aligned = []
    for i, layer in enumerate(decoder.layers):
        name, w = f"decoder.layers.{i}", model.widths.decoder[i]
        q, k, v = _self_qkv(graph, _norm(graph, x, f"{name}.attn_ln", layer.attn_ln), f"{name}.attn", layer.attn)
        q, k, v = (graph.heads(part, heads) for part in (q, k, v))
        k, v = (graph.op("Concat", old, new, axis=2) for old, new in zip(past[i], (k, v), strict=True))
        graph.output(k, f"present_k_{i}", ("batch", heads, "P_n", w.self_qk))
        graph.output(v, f"present_v_{i}", ("batch", heads, "P_n", w.self_vo))
        k = graph.op("Transpose", k, perm=[0, 1, 3, 2])
        x = graph.op("Add", x, _attend(graph, q, k, v, f"{name}.attn", layer.attn, mask)[0])
        y = _norm(graph, x, f"{name}.cross_ln", layer.cross_ln)
        weight, bias = _array(layer.cross.q.weight).T * layer.cross.scale, _array(layer.cross.q.bias)
        q = graph.heads(graph.linear(y, f"{name}.cross.q", weight, bias * layer.cross.scale), heads)
        y, weights = _attend(graph, q, *cross[i], f"{name}.cross", layer.cross)
        chosen = [head for at, head in alignment_heads if at == i]
        if chosen:
            aligned.append(graph.op("Gather", weights, graph.ints(*chosen), axis=1))
        x = graph.op("Add", x, y)
        y = _norm(graph, x, f"{name}.ffn_ln", layer.ffn_ln)
        x = graph.op("Add", x, _feed_forward(graph, y, f"{name}.ffn", layer.ffn))
    x = _norm(graph, graph.op("Gather", x, logit_positions, axis=1), "decoder.ln", decoder.ln)
    graph.output(graph.op("MatMul", x, embedding), "logits", ("batch", "m", dims.n_vocab))
    attention = graph.op("Concat", *aligned, axis=1) if len(aligned) > 1 else aligned[0]
    graph.output(attention, "cross_attention", ("batch", len(alignment_heads), "n", "T"))
    return graph.model()


def _causal_mask(graph: Graph, n_past: str, n_total: str) -> str:
    """Return the additive mask (n, P + n): token P + i sees keys 0 .. P + i."""
    start, stop, one = (graph.op("Squeeze", value) for value in (n_past, n_total, graph.ints(1)))
    rows = graph.op("Unsqueeze", graph.op("Range", start, stop, one), graph.ints(1))
    zero = graph.op("Squeeze", graph.ints(0))
    seen = graph.op("LessOrEqual", graph.op("Range", zero, stop, one), rows)
    return str(
        graph.op(
            "Where",
            seen,
            graph.constant("zero", np.array(0, np.float32)),
            graph.constant("negative", NEGATIVE),
        )
    )
