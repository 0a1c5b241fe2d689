"""BasisAdam: Adam where every direction is equally loud, and better than it where one drowns the others."""

from __future__ import annotations

import torch
from torch import Tensor

from whisperfold.compiler.basis_adam import BasisAdam


def fit(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, inputs: Tensor, wanted: Tensor) -> float:
    """Take sixty steps of a regression on random rows and return the relative squared error on all."""
    draws = torch.Generator().manual_seed(1)
    for _ in range(60):
        rows = torch.randint(len(inputs), (32,), generator=draws)
        optimizer.zero_grad()
        (inputs[rows] @ weight.T - wanted[rows]).square().sum().backward()
        optimizer.step()
    return float(((inputs @ weight.T - wanted).square().sum() / wanted.square().sum()).detach())


def test_equally_loud_inputs_get_adams_steps() -> None:
    torch.manual_seed(0)
    inputs, wanted = torch.randn(256, 8), torch.randn(256, 4)
    ours, adams = (torch.nn.Parameter(torch.ones(4, 8)) for _ in range(2))
    fit(BasisAdam([ours], {ours: torch.eye(8)}, lr=1e-2), ours, inputs, wanted)
    fit(torch.optim.Adam([adams], lr=1e-2, betas=(0.9, 0.99)), adams, inputs, wanted)
    torch.testing.assert_close(ours, adams, atol=1e-4, rtol=1e-3)


def test_a_loud_direction_does_not_drown_the_others() -> None:
    torch.manual_seed(0)
    loud, _ = torch.linalg.qr(torch.randn(16, 16))
    inputs = torch.randn(512, 16) * torch.tensor([30.0, *[1.0] * 15]) @ loud.T
    start, solution = torch.randn(4, 16), torch.randn(4, 16)
    start += (solution - start) @ loud[:, :1] @ loud[:, :1].T  # the loud direction is solved already, as by refit.py
    errors = []
    for kind in ("basis", "adam"):
        weight = torch.nn.Parameter(start.clone())
        moments = {weight: inputs.T @ inputs / len(inputs)}
        basis = kind == "basis"
        optimizer = BasisAdam([weight], moments, 0.02) if basis else torch.optim.Adam([weight], 0.02, (0.9, 0.99))
        errors.append(fit(optimizer, weight, inputs, inputs @ solution.T))
    assert errors[0] < 0.3 * errors[1]


def test_what_has_no_moment_and_what_has_no_gradient() -> None:
    bias, unused = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = BasisAdam([bias, unused], {}, lr=0.1)
    (bias - 1).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(bias.detach(), torch.full((3,), 0.1))
    assert not unused.any()
