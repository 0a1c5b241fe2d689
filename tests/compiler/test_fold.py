"""Fold: forward before = forward after, a zero adapter is the identity, and never twice."""

from __future__ import annotations

import pytest
import torch

from whisperfold.compiler.fold import fold
from whisperfold.compiler.heal import attach_adapters
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import CompileError


@pytest.fixture
def model(tiny_model: Whisper) -> Whisper:
    """A copy that a test may change."""
    return Whisper.from_state(tiny_model.dims, tiny_model.state_dict())


def _logits(model: Whisper) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(2, 80, 301), torch.randint(0, 50000, (2, 5)))


def test_forward_is_the_same_after_folding(model: Whisper) -> None:
    plain = _logits(model)
    parameters = attach_adapters(model, 4)
    torch.testing.assert_close(_logits(model), plain, atol=1e-6, rtol=0)  # B starts at zero
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.05)
    adapted = _logits(model)
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(_logits(fold(model)), adapted, atol=1e-5, rtol=1e-5)


def test_every_projection_is_adapted_and_none_is_left(model: Whisper, tiny_model: Whisper) -> None:
    assert len(attach_adapters(model, 4)) == 2 * (2 * 6 + 1 * 10)
    fold(model)
    assert set(model.state_dict()) == set(tiny_model.state_dict())


def test_zero_adapter_folds_to_the_identity(model: Whisper, tiny_model: Whisper) -> None:
    attach_adapters(model, 4)
    fold(model)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_folding_twice_is_refused(model: Whisper) -> None:
    attach_adapters(model, 4)
    fold(model)
    with pytest.raises(CompileError, match="folded already"):
        fold(model)
