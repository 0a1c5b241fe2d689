"""A linear layer as two thin ones, for methods that factor every matrix on its own: y = up(down(x)).

    down (rank, n_in), up (n_out, rank) and a bias: rank * (n_in + n_out) + n_out parameters

Twins (factorize.py) need none of this: their factors are the layers that are there already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from whisperfold.models.dims import DecoderWidths, EncoderWidths, ModelDimensions, Widths
from whisperfold.models.whisper import EncoderLayer, Whisper

MATRICES = {"q": "attn.q", "k": "attn.k", "v": "attn.v", "out": "attn.out", "fc1": "ffn.fc1", "fc2": "ffn.fc2"}
"""The matrices of an encoder layer: field of `LowRankWidths` -> module."""


@dataclass(frozen=True)
class LowRankWidths(EncoderWidths):
    """An encoder layer with the rank of each matrix's factors; 0 keeps a matrix whole."""

    q: int
    k: int
    v: int
    out: int
    fc1: int
    fc2: int


class LowRankLinear(nn.Module):
    """Two linear layers in place of one; only the second has a bias."""

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        """Make uninitialised factors."""
        super().__init__()
        self.down = nn.Linear(n_in, rank, bias=False)
        self.up = nn.Linear(rank, n_out)

    @property
    def in_features(self) -> int:
        """Width of the input, as nn.Linear has it."""
        return self.down.in_features

    @property
    def out_features(self) -> int:
        """Width of the output, as nn.Linear has it."""
        return self.up.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        return self.up(self.down(x))


def replace_matrices(layer: EncoderLayer, widths: LowRankWidths) -> None:
    """Put uninitialised factors of the given ranks into an encoder layer, in place."""
    for field, name in MATRICES.items():
        rank = getattr(widths, field)
        if rank:
            parent, _, leaf = name.rpartition(".")
            matrix = layer.get_submodule(name)
            factors = LowRankLinear(int(matrix.in_features), int(matrix.out_features), rank)  # type: ignore[arg-type]
            setattr(layer.get_submodule(parent), leaf, factors)


def from_state(dims: ModelDimensions, state: dict[str, Tensor], widths: Widths) -> Whisper:
    """Return an evaluation-mode model of any widths, with factored matrices and fewer encoder layers than dims."""
    model = Whisper(replace(dims, n_audio_layer=len(widths.encoder)), widths)
    for layer, w in zip(model.encoder.layers, widths.encoder, strict=True):
        if isinstance(w, LowRankWidths):
            replace_matrices(layer, w)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


def widths_from_json(data: dict[str, Any]) -> Widths:
    """Read what `Widths.to_json` wrote, ranks included."""
    encoder = tuple(LowRankWidths(**w) if "fc1" in w else EncoderWidths(**w) for w in data["encoder"])
    return Widths(encoder, tuple(DecoderWidths(**w) for w in data["decoder"]))
