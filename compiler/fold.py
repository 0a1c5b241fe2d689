"""LoRA adapters (peft) into the factors they adapt: weight + scaling * B A; exact, and never twice."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import CompileError


@torch.no_grad()
def fold(model: Whisper) -> Whisper:
    """Merge every adapter of the model into its base weights, in place, and remove the adapters.

    Raises:
        CompileError: there is no adapter: it was folded before, or never attached.
    """
    adapted: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    if not adapted:
        raise CompileError("fold: no adapter to fold; the model is folded already")
    for name, module in adapted:
        base = module.get_base_layer()
        for adapter in module.active_adapters:
            base.weight += module.get_delta_weight(adapter).to(base.weight.dtype)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, base)
    return model.eval()
