"""Speech -> second moments of the inputs of every matrix of the encoder's layers.

"encoder.layers.0.attn.q" (n_in + 1, n_in + 1) = E[x~ x~^T], x~ = [x, 1]: the last column is the mean
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from whisperfold.compiler.calibrate import Moments, window_of
from whisperfold.compiler.teacher import Lesson, mel_window
from whisperfold.models.whisper import Whisper


@torch.no_grad()
def measure_inputs(
    model: Whisper, lessons: list[Lesson], kind: str, tail_s: float, advance: Callable[[], None] = lambda: None
) -> Moments:
    """Return the mean second moments over the lessons, each at its window (calibrate.window_of)."""
    sums: Moments = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("encoder.layers."):
            sums[name] = torch.zeros(module.in_features + 1, module.in_features + 1, dtype=torch.float64)
            hooks.append(module.register_forward_pre_hook(_adder(sums[name])))
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
