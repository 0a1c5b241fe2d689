"""Twins: full width is the identity, the error of a cut is the tail it drops, the refit helps."""

from __future__ import annotations

import pytest
import torch

from whisperfold.compiler.budget import Probe, with_widths
from whisperfold.compiler.calibrate import Moments
from whisperfold.compiler.factorize import (
    RANDOMISED_ABOVE,
    cut_attention,
    cut_ffn,
    cut_model,
    matrix_roots,
    product_svd,
    spectra,
    truncated_svd,
)
from whisperfold.compiler.teacher import Lesson
from whisperfold.models.whisper import Attention, FeedForward, Whisper

NAME = "encoder.layers.0.attn"


def _product(attn: Attention, head: int, kind: str) -> torch.Tensor:
    """The (d + 1, d) score product or the (d, d) value product of one head."""
    if kind == "qk":
        query = torch.cat([attn.q.weight, attn.q.bias[:, None]], 1).unflatten(0, (attn.n_head, -1))[head]
        return (query.T @ attn.k.weight.unflatten(0, (attn.n_head, -1))[head]).detach().double()
    value = attn.v.weight.unflatten(0, (attn.n_head, -1))[head]
    return (value.T @ attn.out.weight.unflatten(1, (attn.n_head, -1))[:, head].T).detach().double()


def test_full_widths_change_nothing(tiny_model: Whisper, moments: Moments) -> None:
    cut = cut_model(tiny_model, moments, tiny_model.widths)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(cut.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", ["qk", "vo"])
def test_error_is_the_tail_of_the_spectrum(tiny_model: Whisper, moments: Moments, kind: str) -> None:
    attn = tiny_model.encoder.layers[0].attn
    cut = cut_attention(attn, moments, NAME, *((8, 32) if kind == "qk" else (32, 8)))
    for head in range(attn.n_head):
        if kind == "qk":
            left, right = matrix_roots(moments[f"{NAME}.query"])[0], matrix_roots(moments[f"{NAME}.key"])[0]
        else:
            left, right = matrix_roots(moments[f"{NAME}.value"][head])[0], torch.eye(64, dtype=torch.float64)
        whole = left @ _product(attn, head, kind) @ right
        error = left @ (_product(cut, head, kind) - _product(attn, head, kind)) @ right
        tail = torch.linalg.svdvals(whole)[8:].norm()
        torch.testing.assert_close(error.norm(), tail, rtol=1e-3, atol=1e-6)


def test_keys_may_shift_together(tiny_model: Whisper) -> None:
    """Why the key's moment is centred: one vector added to all keys changes no attention weight."""
    attn, x = tiny_model.encoder.layers[0].attn, torch.randn(1, 20, 64)
    with torch.no_grad():
        k = attn.kv(x)[0]
        torch.testing.assert_close(attn.weights(x, k + torch.randn(32)), attn.weights(x, k), atol=1e-5, rtol=0)


def test_activation_aware_beats_plain_svd(tiny_model: Whisper, moments: Moments, lessons: list[Lesson]) -> None:
    identity = {name: torch.eye(t.shape[-1]).expand_as(t).contiguous() for name, t in moments.items()}
    widths = with_widths(tiny_model.widths, {f"encoder.{i}.{kind}": 8 for i in range(2) for kind in ("qk", "vo")})
    probe = Probe(tiny_model, lessons[6:10], "short", 0.5)
    aware, plain = (probe.divergence(cut_model(tiny_model, m, widths)) for m in (moments, identity))
    assert 0 < aware < plain


def test_refit_beats_dropping_neurons(rng: object) -> None:
    torch.manual_seed(0)
    ffn, x = FeedForward(16, 64), torch.randn(400, 16)
    with torch.no_grad():
        hidden = torch.nn.functional.gelu(ffn.fc1(x))
        moment = hidden.T @ hidden / 400
        cut = cut_ffn(ffn, moment, 40)
        assert cut.fc1.out_features == 40
        kept = [int((ffn.fc1.weight == row).all(1).nonzero()) for row in cut.fc1.weight]
        dropped = hidden[:, kept] @ ffn.fc2.weight[:, kept].T + ffn.fc2.bias
        assert (cut(x) - ffn(x)).norm() < 0.6 * (dropped - ffn(x)).norm()


def test_cut_model_has_its_widths(tiny_model: Whisper, moments: Moments) -> None:
    widths = with_widths(tiny_model.widths, {"encoder.1.ffn": 128, "decoder.0.cross_qk": 16, "decoder.0.self_vo": 24})
    cut = cut_model(tiny_model, moments, widths)
    assert cut.encoder.layers[1].ffn.fc1.weight.shape == (128, 64)
    assert cut.decoder.layers[0].cross.k.weight.shape == (2 * 16, 64)
    assert cut.decoder.layers[0].attn.out.weight.shape == (64, 2 * 24)
    assert tiny_model.encoder.layers[1].ffn.fc1.out_features == 256


def test_spectra_have_a_value_per_unit_of_width(tiny_model: Whisper, moments: Moments) -> None:
    found = spectra(tiny_model, moments)
    assert set(found) == {f"encoder.{i}.{k}" for i in (0, 1) for k in ("qk", "vo")} | {
        f"decoder.0.{part}_{k}" for part in ("self", "cross") for k in ("qk", "vo")
    }
    assert all(len(values) == 32 and values == sorted(values, reverse=True) for values in found.values())


def test_svd_of_a_product_is_exact_without_the_product() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(90, 12, dtype=torch.float64), torch.randn(12, 70, dtype=torch.float64)
    u, s, vh = product_svd(left, right)
    torch.testing.assert_close(u * s @ vh, left @ right)
    torch.testing.assert_close(s, torch.linalg.svdvals(left @ right)[:12])


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_randomised_svd_is_nearly_the_best(decay: float) -> None:
    """The error of the cut against the best possible one, which is the known tail of the spectrum."""
    torch.manual_seed(0)
    n_rows, n_columns, rank = RANDOMISED_ABOVE + 256, RANDOMISED_ABOVE + 64, 128
    u, v = (torch.linalg.qr(torch.randn(n, n_columns, dtype=torch.float64))[0] for n in (n_rows, n_columns))
    spectrum = torch.arange(1, n_columns + 1, dtype=torch.float64) ** -decay
    matrix = u * spectrum @ v.T
    left, s, right = truncated_svd(matrix, rank)
    assert left.shape == (n_rows, rank) and right.shape == (rank, n_columns)
    assert 1 <= torch.dist(matrix, left * s @ right) / spectrum[rank:].norm() < 1.01
    torch.testing.assert_close(s[:32], spectrum[:32], rtol=1e-2, atol=0)


def test_small_matrices_are_cut_exactly() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(40, 30, dtype=torch.float64)
    u, s, vh = truncated_svd(matrix, 10)
    torch.testing.assert_close(torch.dist(matrix, u * s @ vh), torch.linalg.svdvals(matrix)[10:].norm())
