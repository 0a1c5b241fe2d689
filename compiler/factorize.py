"""Second moments + widths -> a cut model: Q-K, V-O and FFN twins, activation-aware.

Q-K and V-O: M = A^{1/2} (left right) B^{1/2}, truncated SVD of M, un-whitened on both sides, where A and B are the
second moments on the two sides (calibrate.py) and left right is the product of one head:

    Q-K   left = [W_q, b_q]^T (d + 1, w)   right = W_k (w, d)      A = query      B = key
    V-O   left = W_v^T (d, w)              right = W_o^T (w, d)    A = value_h    B = identity

The error of the product is then the tail of M's singular values. FFN: neurons are removed as wholes, the least
costly first, and fc2 is refitted in closed form on E[h h^T] (optimal brain surgeon, Hassibi & Stork 1993).
Twins after AdaPTwin (arXiv 2406.08904); its code is not public, this is our own design (docs/decisions/0003).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from whisperfold.compiler.calibrate import Moments
from whisperfold.models.dims import Widths
from whisperfold.models.whisper import Attention, FeedForward, Whisper

RANDOMISED_ABOVE = 1024
"""Whole matrices wider and higher than this are cut by randomised SVD (torch.svd_lowrank)."""
OVERSAMPLING = 16
"""Directions that the randomised SVD looks for beside those that are kept."""
RIDGE = 1e-4
"""Added to the diagonal of E[h h^T], relative to its mean."""


@lru_cache(maxsize=4)
def matrix_roots(moment: Tensor, floor: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return the symmetric square roots of second moments ([H,] d, d) and their inverses, float64.

    Eigenvalues are floored at floor times the largest, so that directions the data never used stay finite. The last
    results are kept (by the tensor itself, which nobody changes): all widths of a site are tried with the same ones.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    values = torch.maximum(values, floor * values.amax(-1, keepdim=True).clamp_min(1e-12)).sqrt()[..., None, :]
    return vectors * values @ vectors.mT, vectors / values @ vectors.mT


def _truncate(
    left: Tensor,
    right: Tensor,
    left_roots: tuple[Tensor, Tensor],
    right_roots: tuple[Tensor, Tensor],
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return left' (n, width), right' (width, m) whose product is nearest, and all singular values."""
    u, s, vh = product_svd(left_roots[0] @ left, right @ right_roots[0])
    half = s[:width].sqrt()
    return left_roots[1] @ u[:, :width] * half, half[:, None] * vh[:width] @ right_roots[1], s


def product_svd(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the SVD of left (n, w) @ right (w, m), exact and without ever making the (n, m) product."""
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T)
    return q_left @ u, s, vh @ q_right.T


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading rank singular triplets u (n, rank), s (rank,), vh (rank, m) of a matrix that has no factors.

    Above `RANDOMISED_ABOVE` they are found by random projections with four power iterations (Halko et al. 2011): the
    error is then within 1 % of the best possible even where the spectrum decays as slowly as k^-1/2
    (tests/compiler/test_factorize.py).
    """
    if min(matrix.shape) > RANDOMISED_ABOVE:
        u, s, v = torch.svd_lowrank(matrix, q=min(rank + OVERSAMPLING, *matrix.shape), niter=4)
        return u[:, :rank], s[:rank], v[:, :rank].T
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank], vh[:rank]


def _query_key(attn: Attention, moments: Moments, name: str, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return [W_q, b_q] (H * width, d + 1), W_k (H * width, d) and singular values (H, full width)."""
    query = torch.cat([attn.q.weight, attn.q.bias[:, None]], 1).double().unflatten(0, (attn.n_head, -1))
    key = attn.k.weight.double().unflatten(0, (attn.n_head, -1))
    roots = matrix_roots(moments[f"{name}.query"]), matrix_roots(moments[f"{name}.key"])
    cuts = [_truncate(query[h].T, key[h], *roots, width) for h in range(attn.n_head)]
    return (
        torch.cat([c[0].T for c in cuts]),
        torch.cat([c[1] for c in cuts]),
        torch.stack([c[2] for c in cuts]),
    )


def _value_out(attn: Attention, moments: Moments, name: str, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return W_v (H * width, d), W_o (d, H * width) and singular values (H, full width)."""
    value = attn.v.weight.double().unflatten(0, (attn.n_head, -1))
    out = attn.out.weight.double().unflatten(1, (attn.n_head, -1))
    identity = torch.eye(out.shape[0], dtype=torch.float64)
    root, inverse = matrix_roots(moments[f"{name}.value"])
    cuts = []
    for h in range(attn.n_head):
        cuts.append(_truncate(value[h].T, out[:, h].T, (root[h], inverse[h]), (identity, identity), width))
    return (
        torch.cat([c[0].T for c in cuts]),
        torch.cat([c[1].T for c in cuts], 1),
        torch.stack([c[2] for c in cuts]),
    )


@torch.no_grad()
def cut_attention(attn: Attention, moments: Moments, name: str, qk: int, vo: int) -> Attention:
    """Return the attention with head widths qk and vo; a twin at full width keeps its weights unchanged."""
    n_state = attn.q.in_features
    cut = Attention(n_state, attn.n_head, qk, vo)
    if qk == attn.q.out_features // attn.n_head:
        cut.q.load_state_dict(attn.q.state_dict())
        cut.k.load_state_dict(attn.k.state_dict())
    else:
        query, key, _ = _query_key(attn, moments, name, qk)
        cut.q.weight.copy_(query[:, :n_state])
        cut.q.bias.copy_(query[:, n_state])
        cut.k.weight.copy_(key)
    cut.out.load_state_dict({"weight": cut.out.weight, "bias": attn.out.bias})
    if vo == attn.v.out_features // attn.n_head:
        cut.v.load_state_dict(attn.v.state_dict())
        cut.out.weight.copy_(attn.out.weight)
    else:
        value, out, _ = _value_out(attn, moments, name, vo)
        cut.v.weight.copy_(value)
        cut.out.weight.copy_(out)
    return cut


@torch.no_grad()
def cut_ffn(ffn: FeedForward, moment: Tensor, n_keep: int) -> FeedForward:
    """Return the feed-forward with n_keep neurons, fc2 refitted; a hundredth of them leave together at each step."""
    n = ffn.fc1.out_features
    batch = max(16, n // 96)
    if n_keep == n:
        return ffn
    ridge = RIDGE * moment.double().diag().mean()
    inverse = torch.linalg.inv(moment.double() + ridge * torch.eye(n, dtype=torch.float64))
    weight = ffn.fc2.weight.double().clone()
    alive = torch.ones(n, dtype=torch.bool)
    while (excess := int(alive.sum()) - n_keep) > 0:
        cost = weight.square().sum(0) / inverse.diag()
        cost[~alive] = float("inf")
        gone = cost.topk(min(batch, excess), largest=False).indices
        step = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
        weight.addmm_(weight[:, gone], step, alpha=-1)
        inverse.addmm_(inverse[:, gone], step, alpha=-1)
        alive[gone] = False
        inverse[gone], inverse[:, gone] = 0.0, 0.0
        inverse[gone, gone] = 1.0
    cut = FeedForward(ffn.fc1.in_features, n_keep)
    cut.fc1.weight.copy_(ffn.fc1.weight[alive])
    cut.fc1.bias.copy_(ffn.fc1.bias[alive])
    cut.fc2.weight.copy_(weight[:, alive])
    cut.fc2.bias.copy_(ffn.fc2.bias)
    return cut


def cut_model(model: Whisper, moments: Moments, widths: Widths) -> Whisper:
    """Return a new model of the given widths; everything at full width is the original, bit for bit."""
    cut = Whisper.from_state(model.dims, model.state_dict(), model.widths)
    cut.widths = widths
    for i, (layer, w) in enumerate(zip(cut.encoder.layers, widths.encoder, strict=True)):
        name = f"encoder.layers.{i}"
        layer.attn = cut_attention(layer.attn, moments, f"{name}.attn", w.qk, w.vo)
        layer.ffn = cut_ffn(layer.ffn, moments[f"{name}.ffn.neurons"], w.ffn)
    for i, (block, d) in enumerate(zip(cut.decoder.layers, widths.decoder, strict=True)):
        name = f"decoder.layers.{i}"
        block.attn = cut_attention(block.attn, moments, f"{name}.attn", d.self_qk, d.self_vo)
        block.cross = cut_attention(block.cross, moments, f"{name}.cross", d.cross_qk, d.cross_vo)
        block.ffn = cut_ffn(block.ffn, moments[f"{name}.ffn.neurons"], d.ffn)
    return cut.eval()


@torch.no_grad()
def spectra(model: Whisper, moments: Moments) -> dict[str, list[float]]:
    """Return each twin's singular values (of the whitened product, mean over heads), by "encoder.0.qk" names."""
    attentions = {f"encoder.{i}.": (f"encoder.layers.{i}.attn", x.attn) for i, x in enumerate(model.encoder.layers)}
    for i, layer in enumerate(model.decoder.layers):
        attentions[f"decoder.{i}.self_"] = f"decoder.layers.{i}.attn", layer.attn
        attentions[f"decoder.{i}.cross_"] = f"decoder.layers.{i}.cross", layer.cross
    found = {}
    for prefix, (name, attn) in attentions.items():
        for kind, measure in (("qk", _query_key), ("vo", _value_out)):
            found[f"{prefix}{kind}"] = measure(attn, moments, name, 1)[2].mean(0).tolist()
    return found
