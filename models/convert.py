"""Published checkpoints -> our names: Hugging Face state dicts and CTranslate2 `model.bin` (faster-whisper).

Both become one state dict of `models.whisper.Whisper` at full width, with the value's bias moved into the
output bias: out.bias + out.weight @ v.bias, exact because rows of the attention sum to 1.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from whisperfold.models.dims import ModelDimensions
from whisperfold.runtime.errors import SourceError

_CT2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
State = dict[str, Tensor]


def _fold_value_bias(out: State, attention: str, v_bias: Tensor) -> None:
    """Move the value's bias through the output projection."""
    out[f"{attention}.out.bias"] = out[f"{attention}.out.bias"] + out[f"{attention}.out.weight"] @ v_bias


def from_hugging_face(state: State, n_audio_layer: int, n_text_layer: int) -> State:
    """Convert transformers' WhisperForConditionalGeneration names (with or without the `model.` prefix)."""
    src = {name.removeprefix("model."): tensor.float() for name, tensor in state.items()}
    out: State = {}

    def copy(to: str, name: str, bias: bool = True) -> None:
        out[f"{to}.weight"] = src[f"{name}.weight"]
        if bias:
            out[f"{to}.bias"] = src[f"{name}.bias"]

    def attention(to: str, name: str) -> None:
        copy(f"{to}.q", f"{name}.q_proj")
        copy(f"{to}.k", f"{name}.k_proj", bias=False)
        copy(f"{to}.v", f"{name}.v_proj", bias=False)
        copy(f"{to}.out", f"{name}.out_proj")
        _fold_value_bias(out, to, src[f"{name}.v_proj.bias"])

    for side, n_layer in (("encoder", n_audio_layer), ("decoder", n_text_layer)):
        for i in range(n_layer):
            layer = f"{side}.layers.{i}"
            attention(f"{layer}.attn", f"{layer}.self_attn")
            copy(f"{layer}.attn_ln", f"{layer}.self_attn_layer_norm")
            if side == "decoder":
                attention(f"{layer}.cross", f"{layer}.encoder_attn")
                copy(f"{layer}.cross_ln", f"{layer}.encoder_attn_layer_norm")
            copy(f"{layer}.ffn_ln", f"{layer}.final_layer_norm")
            copy(f"{layer}.ffn.fc1", f"{layer}.fc1")
            copy(f"{layer}.ffn.fc2", f"{layer}.fc2")
        copy(f"{side}.ln", f"{side}.layer_norm")
        out[f"{side}.positions"] = src[f"{side}.embed_positions.weight"]
    copy("encoder.conv1", "encoder.conv1")
    copy("encoder.conv2", "encoder.conv2")
    out["decoder.token_embedding.weight"] = src["decoder.embed_tokens.weight"]
    return out


def read_ctranslate2(path: Path) -> State:
    """Read the variables of a CTranslate2 model file (binary version 6, WhisperSpec), as float32.

    Raises:
        SourceError: another format or version, an integer-quantised model, or a truncated file.
    """
    try:
        with path.open("rb") as file:
            return _read_variables(file, path)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise SourceError(f"{path}: not a whole CTranslate2 Whisper model ({error}); download it again") from error


def _read_variables(file: BinaryIO, path: Path) -> State:
    def number(code: str) -> int:
        size = struct.calcsize(code)
        return int(struct.unpack("<" + code, file.read(size))[0])

    def string() -> str:
        return file.read(number("H"))[:-1].decode()

    version, spec = number("I"), string()
    number("I")  # revision of the spec
    if version < 5 or spec != "WhisperSpec":
        raise SourceError(f"{path}: format {version} {spec!r}, expected 6 'WhisperSpec'; convert it again")
    variables: State = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        dtype = _CT2_DTYPES[number("B")]
        data = file.read(number("I"))
        array = np.frombuffer(data, dtype).reshape(shape)
        if name.endswith("weight_scale"):
            raise SourceError(f"{path}: weights are quantised; expected float16 or float32 ones")
        variables[name] = torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array.copy())
    return variables


def from_ctranslate2(src: State) -> tuple[ModelDimensions, State]:
    """Convert CTranslate2's Whisper variables: `linear_0` of a self-attention stacks q, k, v; of a cross one k, v."""
    out: State = {}

    def copy(to: str, name: str) -> None:
        out[f"{to}.weight"], out[f"{to}.bias"] = src[f"{name}/weight"], src[f"{name}/bias"]

    def norm(to: str, name: str) -> None:
        out[f"{to}.weight"], out[f"{to}.bias"] = src[f"{name}/gamma"], src[f"{name}/beta"]

    def attention(to: str, q: tuple[Tensor, Tensor], kv: tuple[Tensor, Tensor], name: str) -> None:
        out[f"{to}.q.weight"], out[f"{to}.q.bias"] = q
        out[f"{to}.k.weight"], out[f"{to}.v.weight"] = kv[0].chunk(2)
        copy(f"{to}.out", name)
        _fold_value_bias(out, to, kv[1].chunk(2)[1])

    depth = {}
    for side in ("encoder", "decoder"):
        depth[side] = len(
            {
                name.split("/")[1]
                for name in src
                if name.startswith(f"{side}/layer_") and "norm" not in name.split("/")[1]
            }
        )
        for i in range(depth[side]):
            ours, theirs = f"{side}.layers.{i}", f"{side}/layer_{i}"
            weight, bias = (src[f"{theirs}/self_attention/linear_0/{part}"] for part in ("weight", "bias"))
            n_state = weight.shape[1]
            attention(
                f"{ours}.attn",
                (weight[:n_state], bias[:n_state]),
                (weight[n_state:], bias[n_state:]),
                f"{theirs}/self_attention/linear_1",
            )
            norm(f"{ours}.attn_ln", f"{theirs}/self_attention/layer_norm")
            if side == "decoder":
                q, kv = (
                    (src[f"{theirs}/attention/linear_{j}/weight"], src[f"{theirs}/attention/linear_{j}/bias"])
                    for j in (0, 1)
                )
                attention(f"{ours}.cross", q, kv, f"{theirs}/attention/linear_2")
                norm(f"{ours}.cross_ln", f"{theirs}/attention/layer_norm")
            norm(f"{ours}.ffn_ln", f"{theirs}/ffn/layer_norm")
            copy(f"{ours}.ffn.fc1", f"{theirs}/ffn/linear_0")
            copy(f"{ours}.ffn.fc2", f"{theirs}/ffn/linear_1")
        norm(f"{side}.ln", f"{side}/layer_norm")
        out[f"{side}.positions"] = src[f"{side}/position_encodings/encodings"]
    copy("encoder.conv1", "encoder/conv1")
    copy("encoder.conv2", "encoder/conv2")
    out["decoder.token_embedding.weight"] = src["decoder/embeddings/weight"]
    dims = ModelDimensions(
        n_mels=src["encoder/conv1/weight"].shape[1],
        n_audio_ctx=out["encoder.positions"].shape[0],
        n_audio_state=out["encoder.positions"].shape[1],
        n_audio_head=int(src["encoder/num_heads"]),
        n_audio_layer=depth["encoder"],
        n_vocab=out["decoder.token_embedding.weight"].shape[0],
        n_text_ctx=out["decoder.positions"].shape[0],
        n_text_state=out["decoder.positions"].shape[1],
        n_text_head=int(src["decoder/num_heads"]),
        n_text_layer=depth["decoder"],
    )
    return dims, out
