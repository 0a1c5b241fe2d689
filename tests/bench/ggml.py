"""Our checkpoint -> whisper.cpp's ggml file, so that both run the same weights.

Run: python ggml.py SOURCE FILE:KIND...   with KIND f16 or q8_0

    magic, 11 hyperparameters, mel filters, vocabulary, then per tensor: n_dims, name length, type, shape
    (innermost first), name, data.   All integers int32, little-endian.

f16 is what whisper.cpp's own converter writes; q8_0, matrices as blocks of 32 int8 with an f16 scale, what
its `quantize` tool writes. Layout: whisper.cpp models/convert-h5-to-ggml.py and examples/quantize.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

MAGIC = 0x67676D6C
F32, F16, Q8_0 = 0, 1, 8
FILE_TYPES = {"f16": 1, "q8_0": 2007}
"""q8_0 = ggml's file type 7 + 1000 * quantisation version 2."""
ALWAYS_F32 = (
    "encoder.conv1.bias",
    "encoder.conv2.bias",
    "encoder.positional_embedding",
    "decoder.positional_embedding",
)
_RENAMED = (
    (".layers.", ".blocks."),
    (".attn.q.", ".attn.query."),
    (".attn.k.", ".attn.key."),
    (".attn.v.", ".attn.value."),
    (".cross.q.", ".cross_attn.query."),
    (".cross.k.", ".cross_attn.key."),
    (".cross.v.", ".cross_attn.value."),
    (".cross.out.", ".cross_attn.out."),
    (".cross_ln.", ".cross_attn_ln."),
    (".ffn.fc1.", ".mlp.0."),
    (".ffn.fc2.", ".mlp.2."),
    (".ffn_ln.", ".mlp_ln."),
    ("encoder.ln.", "encoder.ln_post."),
    ("coder.positions", "coder.positional_embedding"),
)


def ggml_name(name: str) -> str:
    """Our tensor name -> whisper.cpp's."""
    for ours, theirs in _RENAMED:
        name = name.replace(ours, theirs)
    return name


def ggml_tensors(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename a full-width state; the value's bias, which we fold into the output bias, becomes zeros."""
    tensors = {ggml_name(name): np.asarray(array, dtype=np.float32) for name, array in state.items()}
    for name in [n for n in tensors if n.endswith(".value.weight")]:
        tensors[name.replace(".weight", ".bias")] = np.zeros(len(tensors[name]), dtype=np.float32)
    for name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        tensors[name] = tensors[name].reshape(-1, 1)
    return tensors


def vocabulary(tokenizer_json: Path, eot: int) -> list[bytes]:
    """Return the bytes of the text tokens 0..eot-1; whisper.cpp adds the special ones itself."""
    ids = json.loads(tokenizer_json.read_text(encoding="utf-8"))["model"]["vocab"]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # GPT-2's byte alphabet: printable bytes stand for themselves, the n-th other byte is code point 256 + n.
    rest = [b for b in range(256) if b not in set(printable)]
    to_byte = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}
    words = sorted((index, word) for word, index in ids.items() if index < eot)
    if [index for index, _ in words] != list(range(eot)):
        raise ValueError(f"{tokenizer_json}: {len(words)} text tokens, expected ids 0..{eot - 1}")
    return [bytes(to_byte[c] for c in word) for _, word in words]


def q8_0(array: np.ndarray) -> bytes:
    """Quantise float32 (..., multiple of 32) to blocks of an f16 scale and 32 int8."""
    blocks = array.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    safe = np.where(scale > 0, scale, 1)
    packed = np.empty(len(blocks), dtype=[("d", "<f2"), ("q", "i1", 32)])
    packed["d"] = scale[:, 0]
    packed["q"] = np.round(blocks / safe).astype(np.int8)
    return packed.tobytes()


def write_ggml(
    path: Path,
    dims: dict[str, int],
    filters: np.ndarray,
    words: list[bytes],
    state: dict[str, np.ndarray],
    kind: str,
) -> None:
    """Write one ggml file.

    Args:
        path: file to write.
        dims: our ModelDimensions as a dict.
        filters: float32 (n_mels, 201).
        words: bytes of each text token.
        state: full-width weights in our names.
        kind: "f16" or "q8_0".
    """
    keys = ("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer",
            "n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels")  # fmt: skip
    with path.open("wb") as file:
        file.write(struct.pack("<12i", MAGIC, *(dims[k] for k in keys), FILE_TYPES[kind]))
        file.write(struct.pack("<2i", *filters.shape))
        file.write(filters.astype("<f4").tobytes())
        file.write(struct.pack("<i", len(words)))
        for word in words:
            file.write(struct.pack("<i", len(word)) + word)
        for name, array in ggml_tensors(state).items():
            _write_tensor(file, name, array, kind)


def _write_tensor(file: BinaryIO, name: str, array: np.ndarray, kind: str) -> None:
    """Write one tensor: vectors and positions stay float32, convolutions float16, matrices as `kind` says."""
    if array.ndim < 2 or name in ALWAYS_F32:
        dtype, data = F32, array.astype("<f4").tobytes()
    elif kind == "q8_0" and array.ndim == 2:
        dtype, data = Q8_0, q8_0(array)
    else:
        dtype, data = F16, array.astype("<f2").tobytes()
    encoded = name.encode()
    file.write(struct.pack("<3i", array.ndim, len(encoded), dtype))
    file.write(struct.pack(f"<{array.ndim}i", *reversed(array.shape)) + encoded + data)


def main(source: str, *outputs: str) -> None:
    """Convert a source; `outputs` are FILE:KIND. Prints the checkpoint as one JSON line."""
    from whisperfold.models.sources import load_source
    from whisperfold.runtime.mel import mel_filters

    checkpoint = load_source(source)
    dims = {k: int(v) for k, v in vars(checkpoint.dims).items()}
    words = vocabulary(checkpoint.tokenizer, checkpoint.tokens["eot"])
    state = {name: tensor.numpy() for name, tensor in checkpoint.state.items()}
    for output in outputs:
        file, kind = output.rsplit(":", 1)
        write_ggml(Path(file), dims, mel_filters(dims["n_mels"]), words, state, kind)
    print(json.dumps({"path": str(checkpoint.path), "provenance": checkpoint.provenance}))


if __name__ == "__main__":
    main(*sys.argv[1:])
