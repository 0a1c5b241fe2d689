"""Baselines: within the budget, counted honestly, the exported graph is the model, and they heal like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from whisperfold.compiler.baselines import METHODS, Material, encoder_parameters, teacher_of
from whisperfold.compiler.budget import Probe, measure_sensitivity
from whisperfold.compiler.bundling import build_graphs
from whisperfold.compiler.calibrate import Moments
from whisperfold.compiler.fold import fold
from whisperfold.compiler.frames import FramesConfig, learn_frames
from whisperfold.compiler.heal import HealConfig, attach_adapters, heal
from whisperfold.compiler.input_moments import measure_inputs
from whisperfold.compiler.parity import check, compare
from whisperfold.compiler.ranks import Matrix, ranks_by_energy, ranks_by_share
from whisperfold.compiler.teacher import Lesson
from whisperfold.models.low_rank import MATRICES, LowRankLinear, from_state, widths_from_json
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper

CUTTING = [name for name in METHODS if name != "original"]
HEADS = [[0, 0], [0, 1]]


@pytest.fixture(scope="module")
def material(tiny_model: Whisper, moments: Moments, lessons: list[Lesson]) -> Material:
    """The tiny model with everything that the methods need."""
    inputs = measure_inputs(tiny_model, lessons[:6], "short", 0.5)
    probe = Probe(tiny_model, lessons[:1], "short", 0.5)
    return Material(tiny_model, moments, inputs, measure_sensitivity(tiny_model, moments, probe, ("encoder",)))


@pytest.mark.parametrize("share", [0.9, 0.55])
@pytest.mark.parametrize("method", CUTTING)
def test_budget_is_met_and_graphs_are_the_model(
    material: Material, lessons: list[Lesson], method: str, share: float
) -> None:
    before = {name: tensor.clone() for name, tensor in material.model.state_dict().items()}
    cut = METHODS[method](material, share)
    kept = encoder_parameters(cut) / material.parameters
    assert kept <= share and (kept > share - 0.05 or method == "layer-drop")
    graphs = build_graphs(cut, HEADS, "fp32")
    check(compare(cut, graphs.files, lessons[:1], "short", 0.5))
    stored = 4 * sum(p.numel() for name, p in cut.named_parameters() if name.startswith("encoder.layers"))
    norms = sum(
        4 * p.numel() for m in cut.encoder.layers.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()
    )
    assert abs(graphs.bytes["encoder layers"] - stored) <= max(norms, 4 * 2 * 2 * 64)  # k and v share q's bias vector
    for name, tensor in before.items():
        assert torch.equal(material.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("method", ["svd", "lite-asr", "layer-drop", "magnitude"])
def test_state_and_widths_give_the_model_back(material: Material, method: str) -> None:
    cut = METHODS[method](material, 0.55)
    again = from_state(material.model.dims, cut.state_dict(), widths_from_json(cut.widths.to_json()))
    mel, tokens = torch.randn(1, 80, 101), torch.randint(0, 50000, (1, 3))
    with torch.no_grad():
        assert torch.equal(again(mel, tokens), cut(mel, tokens))
    assert again.widths == cut.widths and again.dims == cut.dims


def test_data_helps_factors_as_it_helps_twins(material: Material, lessons: list[Lesson]) -> None:
    probe = Probe(material.model, lessons[6:10], "short", 0.5)
    lost = {
        name: probe.divergence(METHODS[name](material, 0.55)) for name in ("ours", "product-svd", "svd", "lite-asr")
    }
    assert lost["ours"] < lost["product-svd"] and lost["lite-asr"] < lost["svd"]


def test_principal_components_keep_the_mean_output(material: Material) -> None:
    cut = METHODS["lite-asr"](material, 0.55)
    for i, layer in enumerate(cut.encoder.layers):
        for name in MATRICES.values():
            factors = layer.get_submodule(name)
            mean = material.inputs[f"encoder.layers.{i}.{name}"][:-1, -1]
            with torch.no_grad():
                expected = material.model.encoder.layers[i].get_submodule(name)(mean)
                assert isinstance(factors, LowRankLinear)
                torch.testing.assert_close(factors(mean), expected, atol=2e-4, rtol=1e-3)


def test_all_of_the_spectrum_is_the_matrix(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    full = {"encoder.layers.0.attn.k": 64}
    ranks = {f"encoder.layers.{i}.{name}": 0 for i in range(2) for name in MATRICES.values()} | full
    for method in ("svd", "lite-asr"):
        for rule in ("share", "energy"):
            monkeypatch.setattr(f"whisperfold.compiler.baselines.ranks_by_{rule}", lambda *args: ranks)
        factors = METHODS[method](material, 0.9).encoder.layers[0].attn.k
        assert isinstance(factors, LowRankLinear)
        product = factors.up.weight @ factors.down.weight
        torch.testing.assert_close(product, material.model.encoder.layers[0].attn.k.weight, atol=1e-4, rtol=1e-3)


def test_dropped_layers_leave_the_first_and_the_last(material: Material) -> None:
    cut = METHODS["layer-drop"](material, 0.9)
    assert len(cut.encoder.layers) == cut.dims.n_audio_layer == 1
    assert torch.equal(cut.encoder.layers[0].ffn.fc1.weight, material.model.encoder.layers[0].ffn.fc1.weight)


def test_magnitude_keeps_the_strongest_neurons(material: Material) -> None:
    cut, whole = METHODS["magnitude"](material, 0.55).encoder.layers[0].ffn, material.model.encoder.layers[0].ffn
    norms = whole.fc1.weight.norm(dim=1) * whole.fc2.weight.norm(dim=0)
    kept = [int((whole.fc1.weight == weight).all(1).nonzero()) for weight in cut.fc1.weight]
    assert kept == sorted(kept) and norms[kept].min() >= norms.topk(len(kept)).values.min()


@pytest.mark.parametrize("method", ["svd", "layer-drop"])
def test_every_kind_heals(
    material: Material, lessons: list[Lesson], tiny: Checkpoint, tmp_path: Path, method: str
) -> None:
    cut, losses = METHODS[method](material, 0.55), list[dict[str, float]]()
    names = set(cut.state_dict())
    teacher, once = teacher_of(material.model, cut), FramesConfig(epochs=1, batch_s=12.0, learning_rate=1e-3)
    learn_frames(teacher, cut, lessons, tiny.tokens, once, tmp_path / "frames.ckpt", report=losses.append)
    assert losses[-1]["loss_layers"] < 0.9 * losses[0]["loss_layers"]
    config = HealConfig(epochs=1, batch_s=40, rank=2)
    healed = fold(heal(cut, lessons[:4], tiny.tokens, config, tmp_path / "heal.ckpt"))
    assert set(healed.state_dict()) == names


def test_both_factors_are_adapted(material: Material) -> None:
    assert len(attach_adapters(METHODS["svd"](material, 0.55), 2)) == 2 * (2 * 12 + 10)


def test_teacher_of_fewer_layers_computes_the_same(material: Material) -> None:
    teacher = teacher_of(material.model, METHODS["layer-drop"](material, 0.55))
    mel = torch.randn(1, 80, 101)
    with torch.no_grad():
        assert len(teacher.encoder.layers) == 1
        assert torch.equal(teacher.encoder(mel), material.model.encoder(mel))
    assert teacher_of(material.model, material.model) is material.model


def test_ranks_fill_the_budget() -> None:
    shapes = {"a": Matrix(64, 64, True), "b": Matrix(256, 64, False)}
    whole = sum(m.parameters(0) for m in shapes.values())
    assert whole == 64 * 64 + 64 + 256 * 64
    even = ranks_by_share(shapes, 100, 100 + 0.5 * whole)
    used = sum(shapes[name].parameters(rank) for name, rank in even.items())
    assert 0.44 * whole < used <= 0.5 * whole and even["b"] > even["a"]
    spectra = {"a": 0.01 ** torch.arange(64.0).double(), "b": torch.ones(64).double()}
    steep = ranks_by_energy(shapes, spectra, 100, 100 + 0.5 * whole)
    assert steep["a"] == 4 < even["a"] and steep["b"] > even["b"]
