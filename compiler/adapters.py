"""A model and a kind of adapter -> the same model with a trainable adapter on each of the named linear layers (peft).

    lora  W + (alpha / r) B A                                Hu et al. 2021
    dora  m (W + (alpha / r) B A) / |W + (alpha / r) B A|    Liu et al. 2024; m (n_out,) is trained too
    vera  W + diag(b) B diag(d) A                            Kopiczko et al. 2023; b and d are trained, A and B are
                                                             random and the same for all layers; wants r = 256

All three merge exactly (fold.py).
"""

from __future__ import annotations

from peft import LoraConfig, VeraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from whisperfold.runtime.errors import ConfigError

ADAPTERS = ("lora", "dora", "vera")


def add_adapters(model: nn.Module, kind: str, rank: int, modules: list[str]) -> None:
    """Put an adapter of the kind on each of the named linear layers, in place; alpha is twice the rank.

    Raises:
        ConfigError: no such kind.
    """
    if kind not in ADAPTERS:
        raise ConfigError(f"heal.adapter = {kind!r}: expected one of {', '.join(ADAPTERS)}")
    if kind == "vera":  # what its layers share is kept by peft's wrapper, which is not needed afterwards
        get_peft_model(model, VeraConfig(r=rank, target_modules=modules))
    else:
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, use_dora=kind == "dora")
        inject_adapter_in_model(config, model)
