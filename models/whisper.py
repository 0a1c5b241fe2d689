"""Whisper's encoder and decoder in torch, with one head width per layer and twin kind.

    mel (batch, n_mels, frames) -> Encoder -> encoded (batch, T, n_audio_state)        T = ceil(frames / 2)
    encoded -> Decoder.cross_kv -> [(k, v)] per layer                                  once per window
    tokens, cross_kv, past -> Decoder -> hidden (batch, n, n_text_state), present
    hidden -> Decoder.logits -> (batch, n, n_vocab)

Differs from openai/whisper in two exact ways: the value's bias has moved into the output bias (rows of the
attention sum to 1), and q/k and v/out may be narrower than n_state // n_head, one width for all heads of a layer.
At full width the numbers are the original's (tests/models/test_whisper.py). The encoder takes any number of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisperfold.models.dims import ModelDimensions, Widths

KV = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention whose products are twins: scores Q_h K_h^T of width qk, values V_h O_h of width vo."""

    def __init__(self, n_state: int, n_head: int, qk: int, vo: int) -> None:
        """Make uninitialised projections; the scale stays that of the original head width."""
        super().__init__()
        self.n_head = n_head
        self.scale = (n_state // n_head) ** -0.5
        self.q = nn.Linear(n_state, n_head * qk)
        self.k = nn.Linear(n_state, n_head * qk, bias=False)
        self.v = nn.Linear(n_state, n_head * vo, bias=False)
        self.out = nn.Linear(n_head * vo, n_state)

    def heads(self, x: Tensor) -> Tensor:
        """Split (batch, n, n_head * width) into (batch, n_head, n, width)."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def kv(self, y: Tensor) -> KV:
        """Return keys and values (batch, n_head, n, width) of y (batch, n, n_state)."""
        return self.heads(self.k(y)), self.heads(self.v(y))

    def forward(self, x: Tensor, kv: KV, mask: Tensor | None = None) -> Tensor:
        """Attend from x (batch, n, n_state) over kv; mask is additive, (n, n_keys)."""
        return self.out(self.attend(x, kv, mask))

    def attend(self, x: Tensor, kv: KV, mask: Tensor | None = None) -> Tensor:
        """Return the attended values (batch, n, n_head * vo), which the output projection reads."""
        attended = F.scaled_dot_product_attention(self.heads(self.q(x)), *kv, attn_mask=mask, scale=self.scale)
        return attended.transpose(1, 2).flatten(2)

    def weights(self, x: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the attention weights (batch, n_head, n, n_keys)."""
        scores = self.heads(self.q(x)) * self.scale @ k.transpose(-1, -2)
        return (scores if mask is None else scores + mask).softmax(-1)


class FeedForward(nn.Module):
    """fc2(gelu(fc1(x))); neuron i is the twin (row i of fc1, column i of fc2)."""

    def __init__(self, n_state: int, n_neurons: int) -> None:
        """Make uninitialised projections."""
        super().__init__()
        self.fc1 = nn.Linear(n_state, n_neurons)
        self.fc2 = nn.Linear(n_neurons, n_state)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_state) to (..., n_state)."""
        return self.fc2(F.gelu(self.fc1(x)))


def sinusoids(length: int, channels: int, max_timescale: float = 10000.0) -> Tensor:
    """Return Whisper's fixed encoder positions (length, channels). Source: openai/whisper model.py."""
    times = torch.arange(length)[:, None] * frequencies(channels, max_timescale)
    return torch.cat([times.sin(), times.cos()], dim=1)


def frequencies(channels: int, max_timescale: float = 10000.0) -> Tensor:
    """Return the radians per position of each pair of channels (channels / 2,)."""
    steps = torch.log(torch.tensor(max_timescale)) / (channels // 2 - 1)
    return torch.exp(-steps * torch.arange(channels // 2))


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, n_state: int, n_head: int, qk: int, vo: int, ffn: int) -> None:
        """Make one layer of the given widths."""
        super().__init__()
        self.attn_ln = nn.LayerNorm(n_state)
        self.attn = Attention(n_state, n_head, qk, vo)
        self.ffn_ln = nn.LayerNorm(n_state)
        self.ffn = FeedForward(n_state, ffn)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, T, n_state) to the same shape."""
        y = self.attn_ln(x)
        x = x + self.attn(y, self.attn.kv(y))
        return x + self.ffn(self.ffn_ln(x))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normed and residual."""

    def __init__(self, n_state: int, n_head: int, widths: tuple[int, int, int, int, int]) -> None:
        """Make one layer; widths are (self_qk, self_vo, cross_qk, cross_vo, ffn)."""
        super().__init__()
        self.attn_ln = nn.LayerNorm(n_state)
        self.attn = Attention(n_state, n_head, *widths[:2])
        self.cross_ln = nn.LayerNorm(n_state)
        self.cross = Attention(n_state, n_head, *widths[2:4])
        self.ffn_ln = nn.LayerNorm(n_state)
        self.ffn = FeedForward(n_state, widths[4])

    def forward(self, x: Tensor, cross: KV, past: KV | None, mask: Tensor | None) -> tuple[Tensor, KV]:
        """Return the layer's output (batch, n, n_state) and the self-attention's keys and values so far."""
        y = self.attn_ln(x)
        k, v = self.attn.kv(y)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = x + self.attn(y, (k, v), mask)
        x = x + self.cross(self.cross_ln(x), cross)
        return x + self.ffn(self.ffn_ln(x)), (k, v)


class Encoder(nn.Module):
    """Two convolutions (the second halves the frame rate), fixed positions, layers, norm."""

    def __init__(self, dims: ModelDimensions, widths: Widths) -> None:
        """Make an encoder of the given widths."""
        super().__init__()
        n_state = dims.n_audio_state
        self.conv1 = nn.Conv1d(dims.n_mels, n_state, 3, padding=1)
        self.conv2 = nn.Conv1d(n_state, n_state, 3, stride=2, padding=1)
        self.positions: Tensor
        self.register_buffer("positions", sinusoids(dims.n_audio_ctx, n_state))
        layers = [EncoderLayer(n_state, dims.n_audio_head, w.qk, w.vo, w.ffn) for w in widths.encoder]
        self.layers = cast(Sequence[EncoderLayer], nn.ModuleList(layers))
        self.ln = nn.LayerNorm(n_state)

    def embed(self, mel: Tensor) -> Tensor:
        """Return the first layer's input (batch, T, n_state) for mel (batch, n_mels, frames <= 2 * n_audio_ctx)."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        return x + self.positions[: x.shape[1]]

    def forward(self, mel: Tensor) -> Tensor:
        """Return encoded frames (batch, T, n_state), one per 20 ms."""
        x = self.embed(mel)
        for layer in self.layers:
            x = layer(x)
        return self.ln(x)


class Decoder(nn.Module):
    """Token and position embedding, layers, norm; the logits share the token embedding."""

    def __init__(self, dims: ModelDimensions, widths: Widths) -> None:
        """Make a decoder of the given widths."""
        super().__init__()
        n_state = dims.n_text_state
        self.token_embedding = nn.Embedding(dims.n_vocab, n_state)
        self.positions = nn.Parameter(torch.empty(dims.n_text_ctx, n_state))
        layers = [
            DecoderLayer(n_state, dims.n_text_head, (w.self_qk, w.self_vo, w.cross_qk, w.cross_vo, w.ffn))
            for w in widths.decoder
        ]
        self.layers = cast(Sequence[DecoderLayer], nn.ModuleList(layers))
        self.ln = nn.LayerNorm(n_state)

    def cross_kv(self, encoded: Tensor) -> list[KV]:
        """Return each layer's cross-attention keys and values (batch, n_head, T, width)."""
        return [layer.cross.kv(encoded) for layer in self.layers]

    def forward(self, tokens: Tensor, cross_kv: list[KV], past: list[KV] | None = None) -> tuple[Tensor, list[KV]]:
        """Return the normed hidden states (batch, n, n_state) of tokens (batch, n) and the grown cache."""
        n_past = past[0][0].shape[2] if past else 0
        n = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positions[n_past : n_past + n]
        mask = causal_mask(n, n_past).to(x) if n > 1 else None  # another dtype is misread by torch 2.13's attention
        present = []
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, cross_kv[i], past[i] if past else None, mask)
            present.append(kv)
        return self.ln(x), present

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (batch, n, n_vocab) scores of hidden (batch, n, n_state)."""
        return hidden @ self.token_embedding.weight.T


def causal_mask(n: int, n_past: int = 0) -> Tensor:
    """Return the additive mask (n, n_past + n) under which token i sees keys 0 .. n_past + i."""
    return torch.full((n, n_past + n), float("-inf")).triu(n_past + 1)


class Whisper(nn.Module):
    """Encoder and decoder of one checkpoint, at the given widths (default: the original's)."""

    def __init__(self, dims: ModelDimensions, widths: Widths | None = None) -> None:
        """Make an uninitialised model."""
        super().__init__()
        self.dims = dims
        self.widths = widths or Widths.full(dims)
        self.encoder = Encoder(dims, self.widths)
        self.decoder = Decoder(dims, self.widths)

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (batch, n, n_vocab) of tokens (batch, n) given mel (batch, n_mels, frames)."""
        hidden, _ = self.decoder(tokens, self.decoder.cross_kv(self.encoder(mel)))
        return self.decoder.logits(hidden)

    @classmethod
    def from_state(cls, dims: ModelDimensions, state: dict[str, Tensor], widths: Widths | None = None) -> Whisper:
        """Return an evaluation-mode model holding copies of the weights in state (see convert.py)."""
        model = cls(dims, widths)
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        return model.eval()
