"""What every training here shares: the rate's warm-up, one step, checkpoints from which a killed run goes on."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

SAVE_EVERY = 50
"""Steps between checkpoints."""
WARM_UP_SHARE = 0.06
"""Of all steps: the rate rises so long (runtime/optimizer.py)."""


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Return what an optimizer trains."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def update(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One step at the given learning rate, gradients clipped to norm 1."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters(optimizer), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def save_checkpoint(path: Path, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
    """Write steps done, parameters and optimizer state every `SAVE_EVERY` steps and after the last one."""
    if step % SAVE_EVERY and step != total:
        return
    scratch = path.with_suffix(".tmp")
    state = {"step": step, "trainable": [p.data for p in parameters(optimizer)], "optimizer": optimizer.state_dict()}
    torch.save(state, scratch)
    os.replace(scratch, path)


def resume(path: Path, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint if there is one; return the step to go on with."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for parameter, data in zip(parameters(optimizer), state["trainable"], strict=True):
        parameter.data.copy_(data)
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
