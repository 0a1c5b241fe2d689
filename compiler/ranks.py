"""A parameter budget -> the rank of every matrix that is factored on its own; 0 keeps the matrix whole.

One number is bisected for all matrices, until their factors and everything else fit: a share of each matrix's
parameters, or a share of the energy of each matrix's spectrum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

MULTIPLE = 4
"""Ranks are whole numbers of these."""


@dataclass(frozen=True)
class Matrix:
    """The shape of a linear layer."""

    n_out: int
    n_in: int
    bias: bool

    def parameters(self, rank: int) -> int:
        """Return how many it has: as factors, whose second always has a bias, or whole (rank 0)."""
        if rank:
            return rank * (self.n_in + self.n_out) + self.n_out
        return self.n_in * self.n_out + self.n_out * self.bias

    def rank(self, wanted: float) -> int:
        """Return the multiple of `MULTIPLE` at or below wanted, 0 where factors would not be smaller."""
        rank = max(MULTIPLE, int(wanted) // MULTIPLE * MULTIPLE)
        return rank if self.parameters(rank) < self.parameters(0) else 0


def ranks_by_share(matrices: Mapping[str, Matrix], others: int, budget: float) -> dict[str, int]:
    """Return ranks that keep one share of every matrix's parameters.

    Args:
        matrices: by name.
        others: parameters that are not in these matrices.
        budget: all parameters together, at most.
    """

    def at(share: float) -> dict[str, int]:
        return {name: m.rank(share * m.n_in * m.n_out / (m.n_in + m.n_out)) for name, m in matrices.items()}

    return _largest(at, matrices, others, budget)


def ranks_by_energy(
    matrices: Mapping[str, Matrix], spectra: Mapping[str, Tensor], others: int, budget: float
) -> dict[str, int]:
    """Return ranks that keep one share of the energy of every spectrum.

    Args:
        matrices: by name.
        spectra: squared singular values of each, largest first.
        others: parameters that are not in these matrices.
        budget: all parameters together, at most.
    """
    tails = {name: 1 - values.cumsum(0) / values.sum() for name, values in spectra.items()}

    def at(share: float) -> dict[str, int]:
        lost = 10 ** (-12 * share)  # energy is spent on a log scale: 1 keeps all but 1e-12 of it
        return {name: m.rank(int((tails[name] > lost).sum()) + MULTIPLE) for name, m in matrices.items()}

    return _largest(at, matrices, others, budget)


def _largest(
    at: Callable[[float], dict[str, int]], matrices: Mapping[str, Matrix], others: int, budget: float
) -> dict[str, int]:
    """Bisect the share between 0 and 1 for the most parameters within the budget."""

    def total(ranks: dict[str, int]) -> int:
        return others + sum(matrices[name].parameters(rank) for name, rank in ranks.items())

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if total(at(middle)) <= budget else (low, middle)
    return at(low)
