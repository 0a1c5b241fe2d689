"""Smoothing: the same function in float32, a nearer one in 8 bits; adapters and factored matrices go along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from reference_adapter import onnx_gradients, random_adapter

from whisperfold.compiler.adapt_graph import EMBEDDING, add_adapt_graph
from whisperfold.compiler.export import decoder_graph, encoder_graph
from whisperfold.compiler.parity import compare
from whisperfold.compiler.projections import matrix_parts
from whisperfold.compiler.quantize import quantize
from whisperfold.compiler.smooth import Peaks, loudness, measure_peaks, smooth
from whisperfold.compiler.teacher import Lesson
from whisperfold.models.dims import Widths
from whisperfold.models.low_rank import LowRankWidths, from_state, replace_matrices
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.bundle import Bundle, write_bundle

Graphs = Sequence[onnx.ModelProto]
LOUD_FC2 = "encoder.layers.1.ffn.fc2.weight"


def make_loud(model: Whisper) -> Whisper:
    """Give every feed-forward a neuron, and every norm a channel, of many times the others' magnitude, in place."""
    with torch.no_grad():
        for layer in [*model.encoder.layers, *model.decoder.layers]:
            layer.ffn_ln.weight[5] *= 30.0
            layer.ffn.fc1.weight[:, 5] /= 30.0
            layer.ffn.fc1.weight[3] *= 100.0
            layer.ffn.fc1.bias[3] = 100.0
            layer.ffn.fc2.weight[:, 3] /= 100.0
    return model


@pytest.fixture(scope="module")
def loud(tiny: Checkpoint) -> Whisper:
    """The tiny model with outliers; tests must not change it."""
    return make_loud(Whisper.from_state(tiny.dims, tiny.state))


@pytest.fixture(scope="module")
def graphs(loud: Whisper, tiny: Checkpoint) -> Graphs:
    """Its fp32 graphs."""
    return encoder_graph(loud), decoder_graph(loud, tiny.alignment_heads)


@pytest.fixture(scope="module")
def peaks(graphs: Graphs, lessons: list[Lesson]) -> Peaks:
    """Its peaks on other speech than the tests'."""
    return measure_peaks(graphs[0], graphs[1], lessons[4:8], "short", 0.5)


def files(graphs: Graphs) -> dict[str, bytes]:
    """As in a bundle."""
    return {f"{graph.graph.name}.onnx": graph.SerializeToString() for graph in graphs}


def stored(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The stored tensors of a graph."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def n_muls(graph: onnx.ModelProto) -> int:
    """How many Mul nodes a graph has."""
    return sum(node.op_type == "Mul" for node in graph.graph.node)


def test_peaks_are_those_of_torch(loud: Whisper, peaks: Peaks, lessons: list[Lesson]) -> None:
    from whisperfold.compiler.calibrate import window_of
    from whisperfold.compiler.teacher import mel_window

    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach().abs().amax((0, 1))))
        for layer in (loud.encoder.layers[1].ffn.fc2, loud.decoder.layers[0].cross.q)
    ]
    for lesson in lessons[4:8]:
        mel = mel_window(lesson.samples, window_of(lesson, "short", 0.5), 80)[None]
        loud(mel, lesson.sequences[0][0][None, :-1])
    for hook in hooks:
        hook.remove()
    for i, name in enumerate((LOUD_FC2, "decoder.layers.0.cross.q.weight")):
        expected = torch.stack(found[i::2]).amax(0).numpy()
        np.testing.assert_allclose(peaks[name], expected, rtol=1e-3, atol=1e-4)


def test_only_loud_channels_are_made_quieter() -> None:
    peaks = np.array([0.0, 0.5, *[1.0] * 17, 16.0], np.float32)
    assert loudness(peaks).tolist() == [1.0] * 19 + [4.0]
    assert loudness(np.zeros(8, np.float32)).tolist() == [1.0] * 8


def test_logits_stay_the_same(loud: Whisper, graphs: Graphs, peaks: Peaks, lessons: list[Lesson]) -> None:
    before = stored(graphs[0])
    smoothed = [smooth(graph, peaks) for graph in graphs]
    assert compare(loud, files(smoothed), lessons[:3], "short", 0.5).max_difference < 1e-4
    assert [n_muls(new) - n_muls(old) for new, old in zip(smoothed, graphs, strict=True)] == [2, 1]
    fc1 = "encoder.layers.1.ffn.fc1.weight"
    assert stored(smoothed[0])[fc1][5, 0] / before[fc1][5, 0] == pytest.approx(loudness(peaks[fc1])[5])
    assert all(np.array_equal(array, before[name]) for name, array in stored(graphs[0]).items())


def test_8_bits_lose_less(loud: Whisper, graphs: Graphs, peaks: Peaks, lessons: list[Lesson]) -> None:
    plain = compare(loud, files([quantize(graph)[0] for graph in graphs]), lessons[:3], "short", 0.5)
    smoothed = [quantize(smooth(graph, peaks))[0] for graph in graphs]
    assert compare(loud, files(smoothed), lessons[:3], "short", 0.5).kl < 0.5 * plain.kl


def test_what_is_kept_or_looked_up_stays(graphs: Graphs, peaks: Peaks) -> None:
    assert EMBEDDING not in peaks
    unchanged = smooth(graphs[0], peaks, kept=peaks)
    assert unchanged == graphs[0] == smooth(graphs[0], {})
    kept = stored(smooth(graphs[0], peaks, kept=[LOUD_FC2]))
    assert np.array_equal(kept[LOUD_FC2], stored(graphs[0])[LOUD_FC2])
    assert not np.array_equal(
        kept["encoder.layers.0.ffn.fc2.weight"], stored(graphs[0])["encoder.layers.0.ffn.fc2.weight"]
    )


def test_factored_matrices(tiny: Checkpoint, lessons: list[Lesson]) -> None:
    full = Widths.full(tiny.dims)
    widths = LowRankWidths(**asdict(full.encoder[0]), q=16, k=0, v=24, out=16, fc1=24, fc2=0)
    torch.manual_seed(2)
    made = make_loud(Whisper.from_state(tiny.dims, tiny.state))
    for layer in made.encoder.layers:
        replace_matrices(layer, widths)
    with torch.no_grad():
        for layer in made.encoder.layers:
            for parameter in layer.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15)
            layer.ffn.fc1.down.weight[:, 5] /= 30.0  # type: ignore[union-attr]
            layer.ffn.fc1.up.weight[3] *= 100.0  # type: ignore[union-attr]
            layer.ffn.fc1.up.bias.zero_()  # type: ignore[union-attr]
            for bias in (layer.attn.q.up.bias, layer.attn.v.up.bias, layer.attn.out.up.bias):  # type: ignore[union-attr]
                bias.zero_()
    model = from_state(tiny.dims, made.state_dict(), Widths((widths,) * 2, full.decoder))
    graphs = encoder_graph(model), decoder_graph(model, tiny.alignment_heads)
    peaks = measure_peaks(*graphs, lessons[:2], "short", 0.5)
    assert {"encoder.layers.0.attn.qkv.down.weight", "encoder.layers.0.attn.k.weight"} < set(peaks)
    smoothed = [smooth(graph, peaks) for graph in graphs]
    norm = "encoder.layers.0.ffn_ln.weight"
    assert stored(smoothed[0])[norm][5] < 0.5 * stored(graphs[0])[norm][5]
    assert compare(model, files(smoothed), lessons[:3], "short", 0.5).max_difference < 1e-4


def test_adapters_learn_the_same(loud: Whisper, graphs: Graphs, peaks: Peaks, tiny: Checkpoint, tmp_path: Path) -> None:
    """The adapter that a smoothed bundle learns is the plain one's with lora_A times s: loss and gradients agree."""

    def bundle(name: str, graphs: Graphs) -> Bundle:
        manifest = {
            "name": name,
            "dims": asdict(loud.dims),
            "widths": loud.widths.to_json(),
            "window": {"kind": "short", "tail_s": 0.5, "min_s": 1.0, "max_s": 20.0},
            "precision": "fp32",
            "tokens": tiny.tokens,
            "alignment_heads": tiny.alignment_heads,
        }
        write_bundle(tmp_path / name, {**files(graphs), "tokenizer.json": tiny.tokenizer}, manifest)
        return add_adapt_graph(tmp_path / name)

    plain = bundle("plain", graphs)
    new = [smooth(graph, peaks) for graph in graphs]
    smoothed = bundle("smoothed", new)
    changed = {
        name.removesuffix(".weight"): np.abs(array).max(1) / np.abs(stored(old)[name]).max(1)
        for graph, old in zip(new, graphs, strict=True)
        for name, array in stored(graph).items()
        if name in peaks
    }
    s = {f"{part.module}.lora_A": changed[name] for name, parts in matrix_parts(plain).items() for part in parts}
    assert max(factor.max() for factor in s.values()) > 4
    rng = np.random.default_rng(0)
    feed = {
        "mel": rng.normal(size=(1, 80, 60)).astype(np.float32),
        "tokens": rng.integers(0, 5000, (1, 5)),
        "labels": rng.integers(0, 5000, (1, 5)),
        "label_weights": np.ones((1, 5), np.float32),
    }
    adapter = random_adapter(plain, rank=2)
    scaled = {name: (array * s[name]).astype(np.float32) if name in s else array for name, array in adapter.items()}
    loss, gradients = onnx_gradients(plain, feed, adapter)
    found_loss, found = onnx_gradients(smoothed, feed, scaled)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        expected = gradient / s[name] if name in s else gradient
        np.testing.assert_allclose(found[name], expected, atol=1e-3 * np.abs(expected).max(), err_msg=name)
