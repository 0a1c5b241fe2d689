"""A matrix -> 4 bits a weight, in blocks along its inputs, each rounding error made good by the weights that follow.

    W (n_out, n_in) ~ (q - 8) * scale of the block * column factor        q 0 to 15, block of 128

Columns are divided by the square root of their size first: a few columns of Whisper's token embedding are thirty times
larger than the others and would take all 16 levels for themselves. The rounding is GPTQ's (Frantar et al., arXiv
2210.17323): a column's error is spread over the later ones as the second moment of the inputs wants it. On tiny.en's
embedding the KL of the next-token distribution falls from 0.070 (plain rounding) to 0.008 nats (docs/decisions/0010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from whisperfold.runtime.errors import CompileError

BLOCK = 128
FINE_ROWS = 4096
"""The first rows of a vocabulary are its most frequent tokens: what 4 bits lose of them is stored in 4 bits again."""
DAMP = 0.3
"""Added to the diagonal of the second moment, relative to its mean: else errors go where few hidden states were."""
SHRINK = (1.0, 0.9, 0.8, 0.7)
"""Factors tried for a block's scale: a smaller one cuts its largest weight and rounds the others finer."""
_MIDDLE = 8
ROUNDING = (FINE_ROWS, DAMP, SHRINK)
"""What 4 bits depend on beside the weights and their inputs: part of the key of every stage that writes them."""


@dataclass(frozen=True)
class Blocks:
    """A matrix in 4 bits, as MatMulNBits reads it."""

    packed: np.ndarray
    """uint8 (n_out, n_blocks, BLOCK / 2): inputs 2i and 2i + 1 in the low and the high half."""
    scale: np.ndarray
    """float16 (n_out, n_blocks)."""
    columns: np.ndarray
    """float32 (n_in,): what inputs are multiplied by before the product."""

    def dequantized(self) -> np.ndarray:
        """Return float32 (n_out, n_in)."""
        halves = np.stack([self.packed & 15, self.packed >> 4], axis=-1).reshape(*self.packed.shape[:2], -1)
        weights = (halves.astype(np.float32) - _MIDDLE) * self.scale.astype(np.float32)[..., None]
        return np.asarray(weights.reshape(len(weights), -1) * self.columns)


def fine_rows(weight: np.ndarray, coarse: Blocks) -> Blocks:
    """Return what 4 bits have lost of the first rows of weight (n_out, n_in), in blocks with the same columns."""
    lost = torch.from_numpy(weight[:FINE_ROWS] - coarse.dequantized()[:FINE_ROWS]).double()
    rest = lost / torch.from_numpy(coarse.columns)
    parts = rest.split(BLOCK, 1)
    scales = [_best_scale(part) for part in parts]
    levels = [_levels(part, scale[:, None]) for part, scale in zip(parts, scales, strict=True)]
    return Blocks(_packed(torch.cat(levels, 1)), torch.stack(scales, 1).numpy().astype(np.float16), coarse.columns)


def stored_rows(coarse: Blocks, fine: Blocks) -> np.ndarray:
    """Return float32 (n_out, n_in), what a bundle stores: coarse rows, and what the first of them had lost."""
    rows = coarse.dequantized()
    rows[: len(fine.packed)] += fine.dequantized()
    return rows


def second_moment(rows: Sequence[Tensor]) -> Tensor:
    """Return (n_in, n_in), the mean of x x^T over all rows x of (n, n_in) each."""
    stacked = torch.cat(list(rows)).float()
    return stacked.T @ stacked / len(stacked)


@torch.no_grad()
def quantize_blocks(weight: Tensor, moment: Tensor) -> Blocks:
    """Return a matrix in 4 bits.

    Args:
        weight: float32 (n_out, n_in), n_in a multiple of 128.
        moment: (n_in, n_in), the second moment of its inputs.

    Raises:
        CompileError: n_in is no multiple of 128.
    """
    if weight.shape[1] % BLOCK:
        raise CompileError(f"4 bits: a width of {weight.shape[1]} is no multiple of {BLOCK}; use precision int8")
    columns = weight.double().square().mean(0).clamp_min(1e-12).sqrt().sqrt()
    rest = weight.double() / columns
    inputs = moment.double() * columns[:, None] * columns
    inputs += DAMP * inputs.diag().mean() * torch.eye(len(inputs), dtype=torch.float64)
    spread = torch.linalg.cholesky(torch.linalg.inv(inputs), upper=True)
    levels = torch.empty(weight.shape, dtype=torch.uint8)
    scales = []
    for begin in range(0, weight.shape[1], BLOCK):
        block = slice(begin, begin + BLOCK)
        scale = _best_scale(rest[:, block])
        errors = torch.empty_like(rest[:, block])
        for at in range(begin, begin + BLOCK):
            levels[:, at] = _levels(rest[:, at], scale)
            rounded = (levels[:, at].double() - _MIDDLE) * scale
            errors[:, at - begin] = (rest[:, at] - rounded) / spread[at, at]
            rest[:, at : block.stop] -= errors[:, at - begin, None] * spread[at, at : block.stop]
        rest[:, block.stop :] -= errors @ spread[block, block.stop :]
        scales.append(scale)
    return Blocks(_packed(levels), torch.stack(scales, 1).numpy().astype(np.float16), columns.float().numpy())


def _levels(values: Tensor, scale: Tensor) -> Tensor:
    """Return the nearest levels, uint8 0 to 15, of values that are multiples of scale."""
    return ((values / scale).round().clamp(-_MIDDLE, _MIDDLE - 1) + _MIDDLE).to(torch.uint8)


def _packed(levels: Tensor) -> np.ndarray:
    """Pack levels (n_out, n_in) as in Blocks.packed."""
    halves = levels.numpy().reshape(len(levels), -1, BLOCK // 2, 2)
    return np.asarray(halves[..., 0] | halves[..., 1] << 4)


def _best_scale(block: Tensor) -> Tensor:
    """Return float16-exact scales (n_out,) of (n_out, BLOCK): signed, so that the largest weight is level -8."""
    largest = block.gather(1, block.abs().argmax(1, keepdim=True))[:, 0]
    tried = torch.stack([-largest * factor / _MIDDLE for factor in SHRINK])
    tried = torch.where(tried.abs() < 1e-7, 1e-7, tried).half().double()
    lost = [
        ((block / scale[:, None]).round().clamp(-_MIDDLE, _MIDDLE - 1) * scale[:, None] - block).square().sum(1)
        for scale in tried
    ]
    return tried.gather(0, torch.stack(lost).argmin(0, keepdim=True))[0]
