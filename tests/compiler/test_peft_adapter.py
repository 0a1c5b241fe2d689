"""The device's adaptation is the compiler's: same factors, same gradients, same steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft_adapter import from_arrays, to_arrays
from reference_adapter import (
    Feed,
    largest_error,
    onnx_gradients,
    torch_model,
    trainable_bundle,
)

from whisperfold.compiler.fold import fold
from whisperfold.compiler.heal import attach_adapters
from whisperfold.compiler.losses import make_batch, transcripts
from whisperfold.compiler.training import update
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.adapter import Adapter
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import CompileError
from whisperfold.runtime.optimizer import AdamW

RANK, TAIL_S, SMOOTHING, RATE = 4, 0.5, 0.1, 1e-3
EOT = 37208
START = [EOT + 1, EOT + 106]
SEQUENCES = [torch.tensor([*START, *words, EOT]) for words in ((843, 523, 616, 5891), (1265, 407))]
"""And so my fellow, ask not."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny: Checkpoint, tiny_model: Whisper) -> Bundle:
    """The tiny random model in 8 bit, not smoothed, with its training graph."""
    return trainable_bundle(tmp_path_factory.mktemp("peft") / "tiny", tiny, tiny_model, "int8")


@pytest.fixture
def model(bundle: Bundle, rng: np.random.Generator) -> Whisper:
    """The same in torch, with peft's adapters, whose second factors are not zero."""
    model = torch_model(bundle)
    attach_adapters(model, RANK)
    arrays = to_arrays(model)
    from_arrays(model, {name: array + rng.normal(scale=0.02, size=array.shape) for name, array in arrays.items()})
    return model


def compiler_loss(model: Whisper, audio: list[np.ndarray]) -> torch.Tensor:
    """What `whisperfold compile --speaker` minimises."""
    return transcripts(model, audio, SEQUENCES, len(START), EOT, TAIL_S, False, SMOOTHING)


def device_feed(bundle: Bundle, audio: list[np.ndarray]) -> Feed:
    """The same recordings for adapt.onnx; gains, which peft does not have, are off."""
    batch = make_batch(audio, SEQUENCES, bundle.dims.n_mels, EOT, TAIL_S, False)
    labels = torch.nn.utils.rnn.pad_sequence([s[1:] for s in SEQUENCES], batch_first=True, padding_value=EOT)
    weights = batch.real.float()
    weights[:, : len(START) - 1] = 0.0
    parts = [part for matrix in bundle.manifest["adapt"]["matrices"] for part in matrix["parts"] if part["gain"]]
    return {
        "mel": batch.mel.numpy(),
        "tokens": batch.tokens.numpy(),
        "labels": labels.numpy(),
        "label_weights": weights.numpy(),
        "label_smoothing": np.array(SMOOTHING, np.float32),
        **{f"{p['module']}.gain": np.zeros(p["columns"][1] - p["columns"][0], np.float32) for p in parts},
    }


def peft_gradients(model: Whisper) -> Feed:
    """Gradients by the names of the factors."""
    parameters = model.named_parameters()
    gradients = {name: p.grad.numpy() for name, p in parameters if p.requires_grad and p.grad is not None}
    return {name.removesuffix(".default.weight"): gradient for name, gradient in gradients.items()}


def distance(a: Feed, b: Feed | None = None) -> float:
    """Euclidean distance of all tensors together; without b, from zero."""
    return float(np.sqrt(sum(np.square(array - (b[name] if b else 0.0)).sum() for name, array in a.items())))


def test_gradients_are_those_of_the_compilers_training_step(bundle: Bundle, model: Whisper, jfk: np.ndarray) -> None:
    audio = [jfk[:32000], jfk[40000:64000]]
    loss, found = onnx_gradients(bundle, device_feed(bundle, audio), to_arrays(model))
    compilers = compiler_loss(model, audio)
    compilers.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(compilers.item(), rel=1e-5)
    expected = peft_gradients(model)
    error, name = largest_error(found, expected)
    assert error < 1e-2, name  # torch's are float32, and themselves this far off in the smallest tensors
    assert distance(found, expected) < 1e-3 * distance(expected)


def test_a_few_steps_lead_to_the_compilers_adapter(bundle: Bundle, model: Whisper, jfk: np.ndarray) -> None:
    audio = [jfk[:32000], jfk[40000:64000]]
    start, arrays, feed = to_arrays(model), to_arrays(model), device_feed(bundle, audio)
    ours = AdamW(arrays, weight_decay=0.01, clip_norm=1.0)
    trainable = [p for p in model.parameters() if p.requires_grad]
    theirs = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.01)
    for _ in range(4):
        ours.step(onnx_gradients(bundle, feed, arrays)[1], RATE)
        update(compiler_loss(model, audio), theirs, RATE)
    expected = to_arrays(model)
    moved, apart = distance(start, expected), distance(arrays, expected)
    assert moved > 0.1
    assert apart < 0.01 * moved


def test_factors_go_there_and_back(model: Whisper, rng: np.random.Generator) -> None:
    arrays = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in to_arrays(model).items()}
    assert len(arrays) == 2 * (2 * 6 + 1 * 10)
    from_arrays(model, arrays)
    for name, array in to_arrays(model).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_the_devices_adapter_folds_as_the_compilers_does(bundle: Bundle, model: Whisper) -> None:
    adapter = Adapter(to_arrays(model), RANK, 2.0 * RANK)
    folded = adapter.fold(bundle)
    weight = fold(model).encoder.layers[1].ffn.fc1.weight.detach().numpy().T
    name = "encoder.layers.1.ffn.fc1.weight"
    found = (folded[name].astype(np.float32) - 128) * folded[f"{name}.scale"]
    np.testing.assert_allclose(found, weight, atol=np.abs(weight).max() / 250)


def test_a_model_without_adapters_is_refused(bundle: Bundle, model: Whisper) -> None:
    for without in (torch_model(bundle), fold(model)):
        with pytest.raises(CompileError, match="attach them first"):
            to_arrays(without)


def test_factors_of_another_model_are_refused(model: Whisper) -> None:
    arrays = to_arrays(model)
    name = "encoder.layers.0.attn.q.lora_A"
    with pytest.raises(CompileError, match=rf"{name} is \(2, 64\), the model's \(4, 64\)"):
        from_arrays(model, arrays | {name: arrays[name][:2]})
