"""Every kind of adapter trains few numbers, starts as the identity and folds exactly."""

from __future__ import annotations

import pytest
import torch

from whisperfold.compiler.adapters import ADAPTERS
from whisperfold.compiler.fold import fold
from whisperfold.compiler.heal import attach_adapters
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import ConfigError


def _logits(model: Whisper) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(2, 80, 301), torch.randint(0, 50000, (2, 5)))


@pytest.mark.parametrize("kind", ADAPTERS)
def test_forward_is_the_same_after_folding(tiny_model: Whisper, kind: str) -> None:
    model = Whisper.from_state(tiny_model.dims, tiny_model.state_dict())
    parameters = attach_adapters(model, 4, kind)
    torch.testing.assert_close(_logits(model), _logits(tiny_model), atol=2e-5, rtol=1e-5)
    torch.manual_seed(0)
    for parameter in parameters:
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    adapted = _logits(model)
    assert (adapted - _logits(tiny_model)).abs().max() > 0.05
    torch.testing.assert_close(_logits(fold(model)), adapted, atol=2e-5, rtol=1e-5)
    assert set(model.state_dict()) == set(tiny_model.state_dict())
    assert len(attach_adapters(model, 4)) == 2 * (2 * 6 + 1 * 10), "a folded model takes adapters as a new one"


def test_each_kind_trains_what_it_says(tiny_model: Whisper) -> None:
    trained = {}
    for kind in ADAPTERS:
        model = Whisper.from_state(tiny_model.dims, tiny_model.state_dict())
        trained[kind] = sum(parameter.numel() for parameter in attach_adapters(model, 4, kind))
    outputs = 2 * (4 * 64 + 256 + 64) + (8 * 64 + 256 + 64)
    assert trained["dora"] == trained["lora"] + outputs
    assert trained["vera"] == outputs + 4 * (2 * 6 + 10)


def test_unknown_kind_is_refused(tiny_model: Whisper) -> None:
    model = Whisper.from_state(tiny_model.dims, tiny_model.state_dict())
    with pytest.raises(ConfigError, match="heal.adapter = 'svft': expected one of lora, dora, vera"):
        attach_adapters(model, 4, "svft")
