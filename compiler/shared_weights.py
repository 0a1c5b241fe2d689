"""Where a bundle's tensors lie in its files: adapt.onnx points there, and the device reads and replaces them there.

    initializer -> (encoder.onnx | decoder.onnx, offset of its bytes inside the protobuf)

A tensor is found by its bytes. Whoever writes encoder.onnx or decoder.onnx anew makes adapt.onnx anew.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import onnx
from onnx import TensorProto, helper

from whisperfold.compiler.projections import matrix_parts
from whisperfold.runtime.bundle import GRAPHS, Bundle
from whisperfold.runtime.errors import CompileError

INLINE_BYTES, INLINE_OWN_BYTES = 4096, 1 << 18
"""Smaller tensors are stored in adapt.onnx itself; those that other files do not have, up to 256 kB."""
_OWN_TYPES = (TensorProto.FLOAT, TensorProto.UINT4)


def share_weights(model: onnx.ModelProto, bundle: Bundle) -> None:
    """Turn large initializers into external data that points into the bundle's graphs, in place.

    Raises:
        CompileError: a tensor is not in the bundle.
    """
    contents = _contents(bundle)
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        if size < (INLINE_OWN_BYTES if tensor.data_type in _OWN_TYPES else INLINE_BYTES):
            continue
        place = zip(("location", "offset", "length"), (*_find(tensor, contents), size), strict=True)
        tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")


def folding_facts(bundle: Bundle) -> list[dict[str, Any]]:
    """Return where each adapted matrix lies, and which projections it holds: what the device needs for folding.

    Raises:
        CompileError: a matrix is not stored as raw data.
    """
    contents = _contents(bundle)
    tensors = {tensor.name: tensor for name in GRAPHS for tensor in onnx.load(str(bundle.file(name))).graph.initializer}
    matrices = []
    for matrix, parts in matrix_parts(bundle).items():
        weight, bias = f"{matrix}.weight", f"{matrix}.bias"
        names = [name for name in (weight, f"{weight}.scale", f"{weight}.zero_point", bias) if name in tensors]
        spans = [
            {
                "module": part.module,
                "n_in": part.n_in,
                "columns": [stop - part.n_out, stop],
                "factor": part.factor,
                "gain": part.has_gain,
            }
            for part, stop in zip(parts, accumulate(part.n_out for part in parts), strict=True)
        ]
        stored = {name: _place(tensors[name], contents) for name in names}
        matrices.append(
            {"matrix": weight, "bias": bias if bias in tensors else None, "tensors": stored, "parts": spans}
        )
    return matrices


def _contents(bundle: Bundle) -> dict[str, bytes]:
    """The bytes of the bundle's graphs."""
    return {name: bundle.file(name).read_bytes() for name in GRAPHS}


def _place(tensor: TensorProto, contents: dict[str, bytes]) -> dict[str, Any]:
    """File, offset, shape and dtype of a stored tensor."""
    name, offset = _find(tensor, contents)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
    return {"file": name, "offset": offset, "shape": list(tensor.dims), "dtype": dtype}


def _find(tensor: TensorProto, contents: dict[str, bytes]) -> tuple[str, int]:
    """(file, offset) of a tensor's bytes; where they occur twice, the first will do."""
    if tensor.raw_data:
        for name, content in contents.items():
            offset = content.find(tensor.raw_data)
            if offset >= 0:
                return name, offset
    raise CompileError(f"adapt: {tensor.name} is not stored in {' or '.join(GRAPHS)}; compile the bundle again")
