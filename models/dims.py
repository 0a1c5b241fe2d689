"""Sizes of a Whisper model: what the checkpoint fixes (`ModelDimensions`) and what the compiler cuts (`Widths`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ModelDimensions:
    """The sizes of a checkpoint, in openai/whisper's names; encoder and decoder may differ in depth."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int


@dataclass(frozen=True)
class EncoderWidths:
    """One encoder layer: head width of the Q-K and V-O twins, neurons of the FFN twin."""

    qk: int
    vo: int
    ffn: int


@dataclass(frozen=True)
class DecoderWidths:
    """One decoder layer: head widths of the self- and cross-attention twins, neurons of the FFN twin."""

    self_qk: int
    self_vo: int
    cross_qk: int
    cross_vo: int
    ffn: int


@dataclass(frozen=True)
class Widths:
    """Every width that the compiler may cut; `full` is the original Whisper."""

    encoder: tuple[EncoderWidths, ...]
    decoder: tuple[DecoderWidths, ...]

    @classmethod
    def full(cls, dims: ModelDimensions) -> Widths:
        """Return the widths of the uncut checkpoint."""
        audio, text = dims.n_audio_state // dims.n_audio_head, dims.n_text_state // dims.n_text_head
        encoder = EncoderWidths(audio, audio, 4 * dims.n_audio_state)
        decoder = DecoderWidths(text, text, text, text, 4 * dims.n_text_state)
        return cls((encoder,) * dims.n_audio_layer, (decoder,) * dims.n_text_layer)

    def to_json(self) -> dict[str, list[dict[str, int]]]:
        """Return the manifest's form: {"encoder": [{"qk", ..}, ..], "decoder": [..]}."""
        return {"encoder": [asdict(w) for w in self.encoder], "decoder": [asdict(w) for w in self.decoder]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Widths:
        """Read what `to_json` wrote."""
        encoder = tuple(EncoderWidths(**w) for w in data["encoder"])
        return cls(encoder, tuple(DecoderWidths(**w) for w in data["decoder"]))
