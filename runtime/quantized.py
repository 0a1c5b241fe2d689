"""8-bit columns, and single tensors of a bundle's graphs by their place in the file: no ONNX parser on the device.

    weight (n_in, n_out) float32  <->  uint8 with zero point 128, one float32 scale per column
    manifest["adapt"]: {"file", "offset", "shape", "dtype"} -> array

A column's largest value is always 127 steps, so quantising what was just dequantised changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whisperfold.runtime.errors import BundleError

ZERO_POINT = 128


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 (n_in, n_out) with zero point 128, and float32 scales (n_out,), of weight (n_in, n_out)."""
    scale = np.maximum(np.abs(weight).max(axis=0) / 127, 1e-12).astype(np.float32)
    return (np.clip(np.round(weight / scale), -127, 127) + ZERO_POINT).astype(np.uint8), scale


def dequantize_columns(quantized: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return float32 (n_in, n_out), the inverse of `quantize_columns`."""
    return (quantized.astype(np.float32) - ZERO_POINT) * scale


def read_tensor(folder: Path, place: Mapping[str, Any]) -> np.ndarray:
    """Read one stored tensor.

    Args:
        folder: the bundle's directory.
        place: "file", "offset" (bytes), "shape", "dtype", from the manifest.

    Raises:
        BundleError: the file is shorter than that.
    """
    path, shape, dtype = folder / place["file"], tuple(place["shape"]), np.dtype(place["dtype"])
    n_values = int(np.prod(shape, dtype=np.int64))
    values = np.fromfile(path, dtype, n_values, offset=int(place["offset"]))
    if values.size != n_values:
        raise BundleError(f"{path}: {values.size} of {n_values} values at {place['offset']}; compile the bundle again")
    return values.reshape(shape)
