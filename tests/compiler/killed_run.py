"""A training run that is killed and goes on ends where a whole one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Report = Callable[[dict[str, float]], None]


def check_a_killed_run_goes_on(
    train: Callable[[Path, Report], dict[str, torch.Tensor]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    save_every: int,
    stop_at: int,
) -> None:
    """Train whole, then killed at a step and again; train takes a checkpoint and a report and returns weights."""

    def kill(facts: dict[str, float]) -> None:
        if facts["step"] == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr("whisperfold.compiler.training.SAVE_EVERY", save_every)
    whole = train(folder / "whole.ckpt", lambda facts: None)
    with pytest.raises(KeyboardInterrupt):
        train(folder / "killed.ckpt", kill)
    resumed = train(folder / "killed.ckpt", lambda facts: None)
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=1e-5)
