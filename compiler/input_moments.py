"""Speech -> second moments of the inputs of every encoder matrix, for methods that factor each on its own.

"encoder.layers.0.attn.q" (n_in + 1, n_in + 1) = E[x~ x~^T], x~ = [x, 1]: the last column is the mean
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from whisperfold.compiler.calibrate import Moments, window_of
from whisperfold.compiler.teacher import Lesson, mel_window
from whisperfold.models.low_rank import MATRICES
from whisperfold.models.whisper import Whisper


@torch.no_grad()
def measure_inputs(
    model: Whisper, lessons: list[Lesson], kind: str, tail_s: float, advance: Callable[[], None] = lambda: None
) -> Moments:
    """Return the mean second moments over the lessons, each at its window (calibrate.window_of)."""
    sums: Moments = {}
    hooks = []
    for i, layer in enumerate(model.encoder.layers):
        for name in MATRICES.values():
            linear = cast(nn.Linear, layer.get_submodule(name))
            key = f"encoder.layers.{i}.{name}"
            sums[key] = torch.zeros(linear.in_features + 1, linear.in_features + 1, dtype=torch.float64)
            hooks.append(linear.register_forward_pre_hook(_adder(sums[key])))
    try:
        for lesson in lessons:
            model.encoder(mel_window(lesson.samples, window_of(lesson, kind, tail_s), model.dims.n_mels)[None])
            advance()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / total[-1, -1]).float() for name, total in sums.items()}


def _adder(total: Tensor) -> Callable[[nn.Module, tuple[Tensor]], None]:
    """Return a hook that adds the second moment of a module's input rows to total."""

    def add(module: nn.Module, inputs: tuple[Tensor]) -> None:
        rows = inputs[0].flatten(0, -2).double()
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
        total.addmm_(rows.T, rows)

    return add
