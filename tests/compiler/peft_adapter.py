"""Adapters of the compiler (peft) <-> arrays named as in adapt.onnx: what was learned there can be used here.

Only on fp32 bundles: 8-bit ones are smoothed (smooth.py), which changes what lora_A reads.

    encoder.layers.0.attn.q.lora_A.default.weight  <->  "encoder.layers.0.attn.q.lora_A"  (rank, n_in)

Gains (runtime/adapter.py) have no counterpart in peft's LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import CompileError

_SUFFIX = ".weight"


def to_arrays(model: Whisper) -> dict[str, np.ndarray]:
    """Return the factors of the adapters that heal.attach_adapters has put into a model, copied.

    Raises:
        CompileError: the model has none.
    """
    state = get_peft_model_state_dict(model) if hasattr(model, "peft_config") else {}
    if not state:
        raise CompileError("adapter: the model has no adapters; attach them first (heal.attach_adapters)")
    return {name.removesuffix(_SUFFIX): tensor.detach().numpy().copy() for name, tensor in state.items()}


def from_arrays(model: Whisper, arrays: Mapping[str, np.ndarray]) -> None:
    """Set the factors of a model's adapters, in place.

    Raises:
        CompileError: the arrays are not those of this model's adapters.
    """
    expected = {name: array.shape for name, array in to_arrays(model).items()}
    found = {name: array.shape for name, array in arrays.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CompileError(f"adapter: {name} is {found.get(name)}, the model's {expected.get(name)}; adapt again")
    set_peft_model_state_dict(model, {f"{name}{_SUFFIX}": torch.tensor(array) for name, array in arrays.items()})
