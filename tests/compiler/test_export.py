"""Graphs: ONNX = torch in fp32, any shape, first and later steps; each weight stored once; int8 close and counted."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from whisperfold.compiler.budget import with_widths
from whisperfold.compiler.bundling import build_graphs
from whisperfold.compiler.calibrate import Moments
from whisperfold.compiler.factorize import cut_model
from whisperfold.compiler.parity import check, compare
from whisperfold.compiler.quantize import quantize, quantize_columns, relative_error
from whisperfold.compiler.teacher import Lesson
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import CompileError

HEADS = [[0, 0], [0, 1]]


@pytest.fixture(scope="module")
def cut(tiny_model: Whisper, moments: Moments) -> Whisper:
    """A model whose widths differ everywhere."""
    chosen = {"encoder.0.qk": 16, "encoder.0.vo": 24, "encoder.1.ffn": 128, "decoder.0.self_qk": 8}
    chosen |= {
        "decoder.0.self_vo": 16,
        "decoder.0.cross_qk": 24,
        "decoder.0.cross_vo": 8,
        "decoder.0.ffn": 64,
    }
    return cut_model(tiny_model, moments, with_widths(tiny_model.widths, chosen))


class Graphs:
    """Both graphs in onnxruntime, fed by name."""

    def __init__(self, files: dict[str, bytes], n_layer: int) -> None:
        self.encoder, self.decoder = (ort.InferenceSession(files[f"{n}.onnx"]) for n in ("encoder", "decoder"))
        self.n_layer = n_layer

    def run(self, session: ort.InferenceSession, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))

    def logits(self, mel: np.ndarray, tokens: np.ndarray, cuts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Decode tokens in steps that end at cuts; return all logits and the last step's attention."""
        cross = self.run(self.encoder, {"mel": mel})
        shapes = {i.name: i.shape for i in self.decoder.get_inputs()}
        past = {
            name: np.zeros((len(mel), shape[1], 0, shape[3]), np.float32)
            for name, shape in shapes.items()
            if name.startswith("past")
        }
        found = []
        for begin, end in zip((0, *cuts), (*cuts, tokens.shape[1]), strict=True):
            feed = {"tokens": tokens[:, begin:end], "logit_positions": np.arange(end - begin)}
            out = self.run(self.decoder, {**cross, **past, **feed})
            past = {k.replace("present", "past"): v for k, v in out.items() if k.startswith("present")}
            found.append(out["logits"])
        return np.concatenate(found, 1), out["cross_attention"]


@pytest.mark.parametrize(("batch", "frames", "n", "cuts"), [(1, 3000, 4, ()), (2, 601, 7, (4, 5)), (3, 50, 3, (1, 2))])
def test_onnx_equals_torch(cut: Whisper, batch: int, frames: int, n: int, cuts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mel, tokens = torch.randn(batch, 80, frames), torch.randint(0, 50000, (batch, n))
    with torch.no_grad():
        expected = cut(mel, tokens).numpy()
    graphs = Graphs(build_graphs(cut, HEADS, "fp32").files, 1)
    found, attention = graphs.logits(mel.numpy(), tokens.numpy(), cuts)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert attention.shape == (batch, 2, n - (cuts[-1] if cuts else 0), (frames + 1) // 2)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)


def test_trained_positions_are_stored(cut: Whisper) -> None:
    """A checkpoint whose encoder positions are not Whisper's sinusoids keeps its own."""
    torch.manual_seed(0)
    moved = Whisper.from_state(cut.dims, cut.state_dict(), cut.widths).eval()
    moved.encoder.positions.add_(0.1 * torch.randn_like(moved.encoder.positions))
    mel, tokens = torch.randn(1, 80, 61), torch.randint(0, cut.dims.n_vocab, (1, 5))
    with torch.no_grad():
        expected = moved(mel, tokens).numpy()
        assert np.abs(expected - cut(mel, tokens).numpy()).max() > 1e-2
    found, _ = Graphs(build_graphs(moved, HEADS, "fp32").files, 1).logits(mel.numpy(), tokens.numpy(), ())
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_each_weight_is_stored_once(cut: Whisper) -> None:
    files = build_graphs(cut, HEADS, "fp32").files
    weights = 4 * sum(t.numel() for name, t in cut.state_dict().items() if name != "encoder.positions")
    assert weights < sum(map(len, files.values())) < weights + 60_000


def test_integer_graphs_are_near_and_small(cut: Whisper) -> None:
    torch.manual_seed(0)
    mel, tokens = torch.randn(1, 80, 400), torch.randint(0, 50000, (1, 6))
    with torch.no_grad():
        expected = cut(mel, tokens).log_softmax(-1)
    built = build_graphs(cut, HEADS, "int8")
    found, _ = Graphs(built.files, 1).logits(mel.numpy(), tokens.numpy(), (3,))
    kl = (expected.exp() * (expected - torch.from_numpy(found).log_softmax(-1))).sum(-1).mean()
    assert 0 <= kl < 0.02
    size = sum(map(len, built.files.values()))
    assert size < 0.35 * sum(map(len, build_graphs(cut, HEADS, "fp32").files.values()))
    assert sum(built.bytes.values()) == size
    assert {e.bits for e in built.errors} == {8} and max(e.relative_error for e in built.errors) < 0.05


def test_columns_round_trip() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    weight[:, 3] = 0
    quantized, scale = quantize_columns(weight)
    assert quantized.dtype == np.uint8 and quantized.min() >= 1
    assert relative_error(weight, quantized, scale) < 0.01
    assert (quantized[:, 3] == 128).all()


def test_a_matrix_that_would_lose_too_much_stays_float(cut: Whisper) -> None:
    graph = onnx.load_from_string(build_graphs(cut, HEADS, "fp32").files["encoder.onnx"])
    limit = sorted(e.relative_error for e in quantize(graph)[1])[3]
    quantized, errors = quantize(graph, max_error=limit)
    kept = {f"{e.matrix}.weight" for e in errors if e.bits == 32}
    floats = {t.name for t in quantized.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert len(kept) == len(errors) - 4 and kept <= floats
    ort.InferenceSession(quantized.SerializeToString())


def test_a_wrong_graph_is_refused(cut: Whisper, tiny_model: Whisper, lessons: list[Lesson]) -> None:
    files = build_graphs(cut, HEADS, "fp32").files
    good = compare(cut, files, lessons[:2], "short", 0.5)
    check(good)
    assert good.kl == pytest.approx(0, abs=1e-5)
    with pytest.raises(CompileError, match="logits differ by .* from torch, expected at most 0.001"):
        check(compare(tiny_model, build_graphs(tiny_model, HEADS, "int8").files, lessons[:2], "short", 0.5))
