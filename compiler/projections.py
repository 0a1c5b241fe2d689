"""A bundle's manifest -> which projections every stored matrix holds, in which columns, multiplied by what.

    encoder.layers.0.attn.qkv.weight (n_in, q | k | v)     q holds the attention scale
    decoder.cross_kv.weight (n_in, k_0 | v_0 | k_1 | ...)  of all decoder layers

The exporter joins them (export.py); adapters are of single, unscaled projections, as peft's are.
"""

from __future__ import annotations

from dataclasses import dataclass

from whisperfold.runtime.bundle import Bundle


@dataclass(frozen=True)
class Part:
    """One projection in a stored matrix, which may hold several side by side."""

    module: str
    """As in torch and peft, e.g. encoder.layers.0.attn.q."""
    n_in: int
    n_out: int
    factor: float = 1.0
    """The stored columns are this many times the projection (queries hold the attention scale)."""

    @property
    def has_gain(self) -> bool:
        """Whether its outputs have a trainable gain: the twins' singular values, and FFN neurons."""
        return self.module.endswith((".q", ".v", ".fc1"))


def matrix_parts(bundle: Bundle) -> dict[str, list[Part]]:
    """Return the projections of every adapted matrix of a bundle, in the order of its columns."""
    dims, widths = bundle.dims, bundle.manifest["widths"]
    audio, text = dims.n_audio_state, dims.n_text_state
    parts: dict[str, list[Part]] = {}
    for i, w in enumerate(widths["encoder"]):
        name, heads = f"encoder.layers.{i}", dims.n_audio_head
        parts |= _attention(f"{name}.attn", audio, heads, w["qk"], w["vo"]) | _ffn(f"{name}.ffn", audio, w["ffn"])
    cross: list[Part] = []
    for i, w in enumerate(widths["decoder"]):
        name, heads = f"decoder.layers.{i}", dims.n_text_head
        parts |= _attention(f"{name}.attn", text, heads, w["self_qk"], w["self_vo"])
        scale = (text // heads) ** -0.5
        parts[f"{name}.cross.q"] = [Part(f"{name}.cross.q", text, heads * w["cross_qk"], scale)]
        parts[f"{name}.cross.out"] = [Part(f"{name}.cross.out", heads * w["cross_vo"], text)]
        parts |= _ffn(f"{name}.ffn", text, w["ffn"])
        cross += [Part(f"{name}.cross.k", audio, heads * w["cross_qk"])]
        cross += [Part(f"{name}.cross.v", audio, heads * w["cross_vo"])]
    parts["decoder.cross_kv"] = cross
    return parts


def _attention(name: str, n_state: int, heads: int, qk: int, vo: int) -> dict[str, list[Part]]:
    """Self-attention: queries, keys and values side by side, and the output."""
    scale = (n_state // heads) ** -0.5
    qkv = [Part(f"{name}.q", n_state, heads * qk, scale), Part(f"{name}.k", n_state, heads * qk)]
    qkv += [Part(f"{name}.v", n_state, heads * vo)]
    return {f"{name}.qkv": qkv, f"{name}.out": [Part(f"{name}.out", heads * vo, n_state)]}


def _ffn(name: str, n_state: int, neurons: int) -> dict[str, list[Part]]:
    """The feed-forward layer."""
    return {
        f"{name}.fc1": [Part(f"{name}.fc1", n_state, neurons)],
        f"{name}.fc2": [Part(f"{name}.fc2", neurons, n_state)],
    }
