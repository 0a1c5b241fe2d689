"""Adapters (peft) into the factors they adapt: LoRA's weight + scaling * B A, and its relatives; exact, never twice."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import CompileError


@torch.no_grad()
def fold(model: Whisper) -> Whisper:
    """Merge every adapter of the model into its base weights, in place, and remove the adapters.

    Raises:
        CompileError: there is no adapter: it was folded before, or never attached.
    """
    adapted: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    if not adapted:
        raise CompileError("fold: no adapter to fold; the model is folded already")
    for name, module in adapted:
        module.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module.get_base_layer())
    del model.peft_config  # peft's record of what it attached; without it the model is as new
    return model.eval()
