"""Ways to make the encoder smaller, one function each: uncut model + share of parameters -> a cut model.

    original       nothing is cut
    ours           joint twins, activation-aware, widths by measured sensitivity         budget.py, factorize.py
    product-svd    the same twins without data: plain SVD of the products, neurons by the norm of their fc2 column
    svd            every matrix on its own, truncated SVD, one share of its parameters for all
    svd-energy     the same, but one share of the spectrum's energy for all
    lite-asr       every matrix on its own, principal components of its outputs, one share of the energy for all
    magnitude      inner dimensions of every twin (head dimensions, neurons) with the smallest weights leave
    layer-drop     evenly spaced encoder layers stay

The share is of the encoder layers' parameters, norms and biases included; every method stays below it by as little as
its steps allow (widths and neurons 8, ranks 4, whole layers). Every result trains, exports and counts like any model.

lite-asr after K. Kamoda et al., "LiteASR: Efficient Automatic Speech Recognition with Low-Rank Approximation" (2025,
arXiv 2502.20583), written anew: y = W x + b is near its mean in the leading principal components V_r of the outputs, so
W -> V_r (V_r^T W). V_r are the left singular vectors of W C^1/2 with C the covariance of x: it is also the best rank-r
matrix for these inputs. layer-drop as Distil-Whisper starts its decoder (S. Gandhi et al. 2023, arXiv 2311.00430).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from whisperfold.compiler.budget import MULTIPLE, Cut, params_per_width, sites, spend, with_widths
from whisperfold.compiler.calibrate import Moments
from whisperfold.compiler.factorize import cut_model, matrix_roots, truncated_svd
from whisperfold.compiler.ranks import Matrix, ranks_by_energy, ranks_by_share
from whisperfold.models.dims import EncoderWidths, Widths
from whisperfold.models.low_rank import MATRICES, LowRankLinear, LowRankWidths, from_state, replace_matrices
from whisperfold.models.whisper import Attention, EncoderLayer, FeedForward, Whisper


@dataclass(frozen=True)
class Material:
    """What the methods cut, and what was measured on it."""

    model: Whisper
    """Uncut; never changed."""
    moments: Moments
    """Of the twins (calibrate.py)."""
    inputs: Moments
    """Of each encoder matrix's inputs (input_moments.py)."""
    cuts: list[Cut]
    """Measured sensitivity of the encoder's twins (budget.py)."""

    @cached_property
    def parameters(self) -> int:
        """Parameters of the uncut encoder layers."""
        return encoder_parameters(self.model)


def encoder_parameters(model: Whisper) -> int:
    """Return the number of parameters of the encoder's layers."""
    return sum(p.numel() for layer in model.encoder.layers for p in layer.parameters())


def original(material: Material, share: float) -> Whisper:
    """Return a copy of the uncut model, whatever the share."""
    return _copy(material.model)


def ours(material: Material, share: float) -> Whisper:
    """Return the model of joint, activation-aware twins whose widths the measured sensitivity chose."""
    full = material.model.widths
    to_save = (1 - share) * material.parameters
    chosen = spend(material.cuts, sites(full, ("encoder",)), to_save)
    return cut_model(material.model, material.moments, with_widths(full, chosen))


def product_svd(material: Material, share: float) -> Whisper:
    """Return the model of joint twins as if all directions were used alike: every second moment is the identity."""
    eye = {n: torch.eye(n) for n in {moment.shape[-1] for moment in material.moments.values()}}
    plain = {name: eye[moment.shape[-1]].expand_as(moment) for name, moment in material.moments.items()}
    return cut_model(material.model, plain, _even_widths(material, share))


@torch.no_grad()
def magnitude(material: Material, share: float) -> Whisper:
    """Return the model without the inner dimensions whose |left row| |right column| is smallest, head by head."""
    widths = _even_widths(material, share)
    cut = _copy(material.model)
    cut.widths = widths
    for layer, w in zip(cut.encoder.layers, widths.encoder, strict=True):
        layer.attn = _strongest_dimensions(layer.attn, w)
        kept = _strongest(layer.ffn.fc1.weight, layer.ffn.fc2.weight.T, w.ffn)
        ffn = FeedForward(layer.ffn.fc1.in_features, w.ffn)
        bias = cast(Tensor, layer.ffn.fc1.bias)
        ffn.fc1.load_state_dict({"weight": layer.ffn.fc1.weight[kept], "bias": bias[kept]})
        ffn.fc2.load_state_dict({"weight": layer.ffn.fc2.weight[:, kept], "bias": layer.ffn.fc2.bias})
        layer.ffn = ffn
    return cut.eval()


def svd(material: Material, share: float) -> Whisper:
    """Return the model whose matrices are truncated one by one, each to the same share of its parameters."""
    plain = _matrices(material)
    ranks = ranks_by_share(plain, material.parameters - _whole(plain), share * material.parameters)
    return _factored(material, ranks, _truncated)


def svd_energy(material: Material, share: float) -> Whisper:
    """Return the model whose matrices are truncated one by one, each to the same share of its squared norm."""
    plain = _matrices(material)
    spectra = {name: torch.linalg.svdvals(_weight(material, name)).square() for name in plain}
    ranks = ranks_by_energy(plain, spectra, material.parameters - _whole(plain), share * material.parameters)
    return _factored(material, ranks, _truncated)


def lite_asr(material: Material, share: float) -> Whisper:
    """Return the model whose matrices keep the same share of their outputs' variance, one by one."""
    plain = _matrices(material)
    spectra = {name: torch.linalg.svdvals(_weighted(material, name)[0]).square() for name in plain}
    ranks = ranks_by_energy(plain, spectra, material.parameters - _whole(plain), share * material.parameters)
    return _factored(material, ranks, _principal)


def layer_drop(material: Material, share: float) -> Whisper:
    """Return the model with as many encoder layers as the share pays for, the first and the last among them."""
    model = material.model
    kept = kept_layers(len(model.encoder.layers), share)
    widths = Widths(tuple(model.widths.encoder[i] for i in kept), model.widths.decoder)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.layers.")}
    for to, at in enumerate(kept):
        layer = model.encoder.layers[at].state_dict()
        state |= {f"encoder.layers.{to}.{name}": tensor for name, tensor in layer.items()}
    return from_state(model.dims, state, widths)


def kept_layers(n: int, share: float) -> list[int]:
    """Return which of n encoder layers stay: as many as a share of their parameters pays for, evenly spaced."""
    return list(torch.linspace(0, n - 1, max(1, int(share * n + 1e-9))).round().int().tolist())


def teacher_of(model: Whisper, cut: Whisper) -> Whisper:
    """Return the uncut model with as many encoder layers as the cut one: those that left join the next that stayed."""
    n, n_cut = len(model.encoder.layers), len(cut.encoder.layers)
    if n == n_cut:
        return model
    ends = [*kept_layers(n, n_cut / n)[:-1], n - 1]
    teacher, layers = _copy(model), list(model.encoder.layers)
    groups = [nn.Sequential(*layers[begin + 1 : end + 1]) for begin, end in pairwise([-1, *ends])]
    teacher.encoder.layers = cast(Sequence[EncoderLayer], nn.ModuleList(groups))
    return teacher


METHODS: dict[str, Callable[[Material, float], Whisper]] = {
    "original": original,
    "ours": ours,
    "product-svd": product_svd,
    "svd": svd,
    "svd-energy": svd_energy,
    "lite-asr": lite_asr,
    "magnitude": magnitude,
    "layer-drop": layer_drop,
}


def _copy(model: Whisper) -> Whisper:
    return Whisper.from_state(model.dims, model.state_dict(), model.widths)


def _even_widths(material: Material, share: float) -> Widths:
    """Every head keeps the share of its width, rounded to 8; the neurons get what is left, the same in all layers."""
    dims, full = material.model.dims, material.model.widths.encoder[0]
    prices = {kind: params_per_width(f"encoder.0.{kind}", dims) for kind in ("qk", "vo", "ffn")}
    rest = material.parameters / dims.n_audio_layer - sum(getattr(full, kind) * price for kind, price in prices.items())
    width = min(full.qk, max(MULTIPLE, round(share * full.qk / MULTIPLE) * MULTIPLE))
    left = share * material.parameters / dims.n_audio_layer - rest - width * (prices["qk"] + prices["vo"])
    neurons = min(full.ffn, max(MULTIPLE, int(left / prices["ffn"]) // MULTIPLE * MULTIPLE))
    return replace(material.model.widths, encoder=(EncoderWidths(width, width, neurons),) * dims.n_audio_layer)


def _strongest(left: Tensor, right: Tensor, n: int) -> Tensor:
    """Return the indices, in order, of the n rows for which |left row| |right row| is largest."""
    return (left.norm(dim=1) * right.norm(dim=1)).topk(n).indices.sort().values


def _strongest_dimensions(attn: Attention, w: EncoderWidths) -> Attention:
    """Return the attention with the strongest qk and vo dimensions of every head."""

    def rows(left: Tensor, right: Tensor, width: int) -> Tensor:
        heads = zip(left.chunk(attn.n_head), right.chunk(attn.n_head), strict=True)
        full = len(left) // attn.n_head
        return torch.cat([_strongest(*head, width) + i * full for i, head in enumerate(heads)])

    cut = Attention(attn.q.in_features, attn.n_head, w.qk, w.vo)
    qk = rows(attn.q.weight, attn.k.weight, w.qk)
    vo = rows(attn.v.weight, attn.out.weight.T, w.vo)
    cut.scale = attn.scale
    cut.q.load_state_dict({"weight": attn.q.weight[qk], "bias": cast(Tensor, attn.q.bias)[qk]})
    cut.k.load_state_dict({"weight": attn.k.weight[qk]})
    cut.v.load_state_dict({"weight": attn.v.weight[vo]})
    cut.out.load_state_dict({"weight": attn.out.weight[:, vo], "bias": attn.out.bias})
    return cut


def _matrices(material: Material) -> dict[str, Matrix]:
    """Return the shapes of all encoder matrices, by the module's name."""
    found = {}
    for i, layer in enumerate(material.model.encoder.layers):
        for name in MATRICES.values():
            linear = cast(nn.Linear, layer.get_submodule(name))
            shape = linear.out_features, linear.in_features
            found[f"encoder.layers.{i}.{name}"] = Matrix(*shape, linear.bias is not None)
    return found


def _whole(matrices: dict[str, Matrix]) -> int:
    """Return the parameters of uncut matrices."""
    return sum(matrix.parameters(0) for matrix in matrices.values())


def _weight(material: Material, name: str) -> Tensor:
    return cast(nn.Linear, material.model.get_submodule(name)).weight.detach().double()


def _weighted(material: Material, name: str) -> tuple[Tensor, Tensor]:
    """Return W C^1/2 (n_out, n_in) and the mean input (n_in,), C the covariance of the inputs."""
    moment = material.inputs[name].double()
    mean = moment[:-1, -1]
    return _weight(material, name) @ matrix_roots(moment[:-1, :-1] - mean.outer(mean))[0], mean


def _truncated(material: Material, name: str, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return up, down and what is to be added to the bias: truncated SVD, half of the values on each side."""
    u, s, vh = truncated_svd(_weight(material, name), rank)
    return u * s.sqrt(), s.sqrt()[:, None] * vh, torch.zeros(len(u), dtype=u.dtype)


def _principal(material: Material, name: str, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return up, down and what is to be added to the bias: principal components of the outputs around their mean.

    The components are scaled by the root of their deviation, up by its inverse: alike for integer activations.
    """
    weight, (weighted, mean) = _weight(material, name), _weighted(material, name)
    u, s, _ = truncated_svd(weighted, rank)
    root = s.clamp_min(1e-6 * float(s[0])).sqrt()
    up, down = u * root, u.T @ weight / root[:, None]
    return up, down, (weight - up @ down) @ mean


@torch.no_grad()
def _factored(
    material: Material,
    ranks: dict[str, int],
    factor: Callable[[Material, str, int], tuple[Tensor, Tensor, Tensor]],
) -> Whisper:
    """Return the model with factors of the given ranks; rank 0 keeps a matrix."""
    cut = _copy(material.model)
    widths = []
    for i, (layer, w) in enumerate(zip(cut.encoder.layers, cut.widths.encoder, strict=True)):
        own = {field: ranks[f"encoder.layers.{i}.{name}"] for field, name in MATRICES.items()}
        widths.append(LowRankWidths(w.qk, w.vo, w.ffn, **own))
        _replace(material, layer, f"encoder.layers.{i}", widths[-1], factor)
    cut.widths = Widths(tuple(widths), cut.widths.decoder)
    return cut.eval()


def _replace(
    material: Material,
    layer: EncoderLayer,
    prefix: str,
    widths: LowRankWidths,
    factor: Callable[[Material, str, int], tuple[Tensor, Tensor, Tensor]],
) -> None:
    """Factor the matrices of one layer in place."""
    biases = {name: cast(nn.Linear, layer.get_submodule(name)).bias for name in MATRICES.values()}
    replace_matrices(layer, widths)
    for field, name in MATRICES.items():
        if rank := getattr(widths, field):
            up, down, shift = factor(material, f"{prefix}.{name}", rank)
            linear = cast(LowRankLinear, layer.get_submodule(name))
            bias = shift if biases[name] is None else biases[name] + shift
            linear.load_state_dict({"down.weight": down, "up.weight": up, "up.bias": bias})
