"""Adam whose steps are taken in the eigenbasis of every matrix's inputs.

    E[x x^T] = U diag(l) U^T        of the inputs x of a matrix W (n_out, n_in), l relative to its mean
    G' = G U                        m, v of G' as Adam has them
    W -= rate * (m / sqrt(v) * l^-1/4) U^T

One-sided SOAP (Vyas et al. 2024, arXiv 2409.11321) with a basis that stays, and a step that is shorter where the inputs
are loud: a step of Adam is equally long for every weight, so at a rate from which quiet directions learn, one loud
neuron of an encoder undoes what a closed form had solved (docs/decisions/0018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

QUIETEST = 1e-4
"""Directions quieter than this share of the mean are stepped in as if they had it."""


class BasisAdam(torch.optim.Optimizer):
    """Adam; a matrix whose inputs' second moment is known takes its steps in their eigenbasis."""

    def __init__(
        self,
        trainable: Iterable[torch.nn.Parameter],
        second_moments: Mapping[torch.nn.Parameter, Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        """Decompose the second moments, float (n_in, n_in), of the inputs of some matrices (n_out, n_in)."""
        super().__init__(trainable, {"lr": lr, "betas": betas})
        self._bases = {matrix: _basis(moment) for matrix, moment in second_moments.items()}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no caller has a closure
        """Take one step along the gradients that are there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                basis = self._bases.get(parameter)
                if basis is None:
                    parameter -= group["lr"] * self._direction(parameter, gradient, group["betas"])
                else:
                    vectors, lengths = basis
                    direction = self._direction(parameter, gradient @ vectors, group["betas"])
                    parameter -= group["lr"] * (direction * lengths) @ vectors.T

    def _direction(self, parameter: torch.nn.Parameter, gradient: Tensor, betas: tuple[float, float]) -> Tensor:
        """Return Adam's step at rate 1, in the basis of the gradient."""
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
        state["step"] += 1
        mean = state["mean"].lerp_(gradient, 1 - betas[0]) / (1 - betas[0] ** state["step"])
        square = state["square"].lerp_(gradient.square(), 1 - betas[1]) / (1 - betas[1] ** state["step"])
        return mean / (square.sqrt() + 1e-8)


def _basis(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors (n_in, n_in) of a second moment and the length of a step along each (n_in,)."""
    loudness, vectors = torch.linalg.eigh(moment.double())
    lengths = (loudness / loudness.mean()).clamp_min(QUIETEST) ** -0.25
    return vectors.float(), lengths.float()
