"""The model of a bundle in torch, with adapters: what adapt.onnx is compared with. float64, because torch's float32
gradients are themselves up to 1e-3 off."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel

from whisperfold.compiler.adapt_graph import EMBEDDING, GRAPH_NAME, add_adapt_graph
from whisperfold.compiler.blocks import Blocks, quantize_blocks, stored_rows
from whisperfold.compiler.bundling import build_graphs
from whisperfold.compiler.projections import matrix_parts
from whisperfold.models.dims import DecoderWidths, EncoderWidths, ModelDimensions, Widths
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.bundle import GRAPHS, Bundle, write_bundle

SCALING = 2.0
Feed = dict[str, np.ndarray]


def trainable_bundle(folder: Path, checkpoint: Checkpoint, model: Whisper, precision: str) -> Bundle:
    """A bundle of a model, with its training graph."""
    weight = model.decoder.token_embedding.weight
    blocks = {EMBEDDING: quantize_blocks(weight, torch.eye(weight.shape[1]))} if precision == "mixed" else {}
    files = build_graphs(model, checkpoint.alignment_heads, precision, blocks).files
    manifest = {
        "name": "trainable",
        "dims": asdict(model.dims),
        "widths": model.widths.to_json(),
        "window": {"kind": "short", "tail_s": 0.5, "min_s": 1.0, "max_s": 20.0},
        "precision": precision,
        "tokens": checkpoint.tokens,
        "alignment_heads": checkpoint.alignment_heads,
    }
    write_bundle(folder, {**files, "tokenizer.json": checkpoint.tokenizer}, manifest)
    return add_adapt_graph(folder)


def trainable_copy(folder: Path, source: Path) -> Bundle:
    """A copy of a bundle with a training graph made now."""
    shutil.copytree(source, folder)
    return add_adapt_graph(folder)


def torch_model(bundle: Bundle) -> Whisper:
    """The Whisper that the bundle's (de-quantised) weights are."""
    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for name in GRAPHS
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
        if name in stored and stored[name].shape == tuple(state[name].shape):
            state[name] = torch.tensor(stored[name])
        elif f"{name}.rows" in stored:
            rows = stored[f"{name}.rows"].astype(np.float32) - 128
            state[name] = torch.tensor(rows * stored[f"{name}.rows.scale"])
        elif f"{name}.half" in stored:  # bundles of format 1
            state[name] = torch.tensor(stored[f"{name}.half"].astype(np.float32))
    for name, parts in matrix_parts(bundle).items():
        weight, bias, first = matrix(f"{name}.weight"), stored.get(f"{name}.bias"), 0
        for part in parts:
            columns = slice(first, first + part.n_out)
            state[f"{part.module}.weight"] = torch.tensor(weight[:, columns].T / part.factor)
            if bias is not None and f"{part.module}.bias" in state:
                state[f"{part.module}.bias"] = torch.tensor(bias[columns] / part.factor)
            first += part.n_out
    embedding = "decoder.token_embedding"
    if f"{embedding}.columns" in stored:
        coarse, fine = (
            Blocks(stored[name], stored[f"{name}.scale.half"], stored[f"{embedding}.columns"])
            for name in (embedding, f"{embedding}.fine")
        )
        rows = stored_rows(coarse, fine)
    else:
        rows = matrix(embedding).T.copy()
    state[f"{embedding}.weight"] = torch.tensor(rows)
    model.load_state_dict(state)
    for name, parts in matrix_parts(bundle).items():
        if f"{name}.smooth" in stored:
            quiet = torch.tensor(stored[f"{name}.smooth"])
            projection = model.get_submodule(parts[0].module)
            projection.register_forward_pre_hook(lambda _, inputs, quiet=quiet: (inputs[0] * quiet.to(inputs[0]),))
    return model


def random_adapter(bundle: Bundle, rank: int, seed: int = 0) -> Feed:
    """Small non-zero A, B and gains for every module."""
    rng, arrays = np.random.default_rng(seed), Feed()
    for part in (part for parts in matrix_parts(bundle).values() for part in parts):
        shapes = {"lora_A": (rank, part.n_in), "lora_B": (part.n_out, rank)}
        if part.has_gain:
            shapes["gain"] = (part.n_out,)
        for kind, shape in shapes.items():
            arrays[f"{part.module}.{kind}"] = rng.normal(scale=0.02, size=shape).astype(np.float32)
    return arrays


def onnx_gradients(bundle: Bundle, feed: Feed, adapter: Feed) -> tuple[float, Feed]:
    """Loss and gradients by adapt.onnx, session options as on the device."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle.path))
    session = ort.InferenceSession(bundle.read(GRAPH_NAME), options, providers=["CPUExecutionProvider"])
    names = ["loss", *(f"grad.{name}" for name in adapter)]
    loss, *gradients = session.run(names, {"scaling": np.array(SCALING, np.float32), **feed, **adapter})
    return float(loss), dict(zip(adapter, gradients, strict=True))


def torch_gradients(
    bundle: Bundle, feed: Feed, adapter: Feed, dtype: torch.dtype = torch.float64
) -> tuple[float, Feed]:
    """The same by torch autograd."""
    model = torch_model(bundle).to(dtype)
    tensors = _attach(model, {name: torch.tensor(array).to(dtype) for name, array in adapter.items()})
    loss = _loss(model, feed)
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    return loss.item(), {name: gradient.numpy() for name, gradient in zip(tensors, gradients, strict=True)}


def adapted_logits(bundle: Bundle, feed: Feed, adapter: Feed) -> np.ndarray:
    """Logits (batch, n, n_vocab) of torch with the adapter beside the weights."""
    model = torch_model(bundle)
    _attach(model, {name: torch.tensor(array) for name, array in adapter.items()})
    with torch.no_grad():
        return np.asarray(model(torch.tensor(feed["mel"]), torch.tensor(feed["tokens"])).numpy())


def largest_error(found: Feed, expected: Feed) -> tuple[float, str]:
    """The largest difference of a tensor, relative to its largest value, and the tensor's name."""
    assert found.keys() == expected.keys()
    return max(
        (float(np.abs(found[name] - array).max() / np.abs(array).max()), name) for name, array in expected.items()
    )


def _attach(model: Whisper, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put the adapter into the model's projections."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue

        def forward(x: Any, module: torch.nn.Linear = module, name: str = name) -> Any:
            delta = (x @ tensors[f"{name}.lora_A"].T) @ tensors[f"{name}.lora_B"].T
            y = torch.nn.functional.linear(x, module.weight, module.bias) + SCALING * delta
            return y * (1 + tensors[f"{name}.gain"]) if f"{name}.gain" in tensors else y

        module.forward = forward  # type: ignore[method-assign]
    for tensor in tensors.values():
        tensor.requires_grad_()
    return tensors


def _loss(model: Whisper, feed: Feed) -> torch.Tensor:
    """Weighted mean of the label-smoothed cross-entropy."""
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel reads a float32 mask beside float64 queries as float64
        cross = model.decoder.cross_kv(model.encoder(torch.tensor(feed["mel"]).to(model.decoder.positions)))
        hidden, _ = model.decoder(torch.tensor(feed["tokens"]), cross)
    losses = torch.nn.functional.cross_entropy(
        model.decoder.logits(hidden).flatten(0, 1),
        torch.tensor(feed["labels"]).flatten(),
        reduction="none",
        label_smoothing=float(feed.get("label_smoothing", 0.0)),
    )
    weights = torch.tensor(feed["label_weights"]).flatten().to(losses)
    return (losses * weights).sum() / weights.sum()
