"""The model of a bundle in torch, with adapters: what adapt.onnx is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from whisperfold.compiler.adapt_graph import FILES, matrix_parts
from whisperfold.models.dims import DecoderWidths, EncoderWidths, ModelDimensions, Widths
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.bundle import Bundle

SCALING = 2.0


def torch_model(bundle: Bundle) -> Whisper:
    """The Whisper that the bundle's (de-quantised) weights are."""
    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for name in FILES
        for tensor in onnx.load(str(bundle.file(name))).graph.initializer
    }

    def matrix(name: str) -> np.ndarray:
        weight = stored[name].astype(np.float32)
        return (weight - 128) * stored[f"{name}.scale"] if f"{name}.scale" in stored else weight

    widths = bundle.manifest["widths"]
    model = Whisper(
        ModelDimensions(**bundle.manifest["dims"]),
        Widths(
            tuple(EncoderWidths(**w) for w in widths["encoder"]), tuple(DecoderWidths(**w) for w in widths["decoder"])
        ),
    ).eval()
    state = dict(model.state_dict())
    for name in state:
        for source in (name, f"{name}.half"):
            if source in stored and stored[source].shape == tuple(state[name].shape):
                state[name] = torch.tensor(stored[source].astype(np.float32))
    for name, parts in matrix_parts(bundle).items():
        weight, bias, first = matrix(f"{name}.weight"), stored.get(f"{name}.bias"), 0
        for part in parts:
            columns = slice(first, first + part.n_out)
            state[f"{part.module}.weight"] = torch.tensor(weight[:, columns].T / part.factor)
            if bias is not None and f"{part.module}.bias" in state:
                state[f"{part.module}.bias"] = torch.tensor(bias[columns] / part.factor)
            first += part.n_out
    state["decoder.token_embedding.weight"] = torch.tensor(matrix("decoder.token_embedding").T.copy())
    model.load_state_dict(state)
    return model


def random_adapter(bundle: Bundle, rank: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Small non-zero A, B and gains for every module."""
    rng, arrays = np.random.default_rng(seed), dict[str, np.ndarray]()
    for part in (part for parts in matrix_parts(bundle).values() for part in parts):
        shapes = {"lora_A": (rank, part.n_in), "lora_B": (part.n_out, rank)}
        if part.has_gain:
            shapes["gain"] = (part.n_out,)
        for kind, shape in shapes.items():
            arrays[f"{part.module}.{kind}"] = rng.normal(scale=0.02, size=shape).astype(np.float32)
    return arrays


def attach(model: Whisper, adapter: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Put the adapter into the model's projections; return its tensors, which require gradients."""
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in adapter.items()}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue

        def forward(x: Any, module: torch.nn.Linear = module, name: str = name) -> Any:
            delta = (x @ tensors[f"{name}.lora_A"].T) @ tensors[f"{name}.lora_B"].T
            y = torch.nn.functional.linear(x, module.weight, module.bias) + SCALING * delta
            return y * (1 + tensors[f"{name}.gain"]) if f"{name}.gain" in tensors else y

        module.forward = forward  # type: ignore[method-assign]
    return tensors


def torch_loss(model: Whisper, feed: dict[str, np.ndarray]) -> torch.Tensor:
    """Weighted cross-entropy."""
    cross = model.decoder.cross_kv(model.encoder(torch.tensor(feed["mel"])))
    hidden, _ = model.decoder(torch.tensor(feed["tokens"]), cross)
    logits, labels = model.decoder.logits(hidden), torch.tensor(feed["labels"])
    nll = torch.logsumexp(logits, -1) - logits.gather(-1, labels[..., None])[..., 0]
    weights = torch.tensor(feed["label_weights"])
    return (nll * weights).sum() / weights.sum()
