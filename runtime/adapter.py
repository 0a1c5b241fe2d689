"""A personal adapter: low-rank factors beside the bundle's weights; fold them into 8-bit weights of their own.

    y = (x W + b + scaling (x A^T) B^T) (1 + gain)          lora_A (rank, n_in), lora_B (n_out, rank), gain (n_out,)
    fold: W[:, columns] += factor * scaling * (B A)^T, columns *= 1 + gain (the bias too), quantised again

Which modules a stored matrix holds, in which columns and with which factor, is in the manifest's "adapt" section.
Adapter files have peft's names, so that peft reads their LoRA part. LoRA: Hu et al., arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import EnrollmentError, ProfileError
from whisperfold.runtime.quantized import dequantize_columns, quantize_columns, read_tensor

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Module:
    """One adapted projection."""

    name: str
    """As in torch and peft, e.g. encoder.layers.0.attn.q."""
    n_in: int
    n_out: int
    has_gain: bool


def matrices(bundle: Bundle) -> list[dict[str, Any]]:
    """Return what the manifest says of the adapted matrices.

    Raises:
        EnrollmentError: this bundle cannot be adapted.
    """
    section = bundle.manifest.get("adapt")
    if not isinstance(section, dict) or "matrices" not in section:
        raise EnrollmentError(
            f"{bundle.path}: this bundle has no training graph (adapt.onnx); compile it with this version"
        )
    return list(section["matrices"])


def modules(bundle: Bundle) -> Iterator[Module]:
    """Yield the adapted projections of a bundle; errors as `matrices`."""
    for matrix in matrices(bundle):
        for part in matrix["parts"]:
            first, last = part["columns"]
            yield Module(part["module"], int(part["n_in"]), last - first, bool(part["gain"]))


@dataclass
class Adapter:
    """Factors of every module.

    tensors["M.lora_A"] is float32 (rank, n_in), tensors["M.lora_B"] float32 (n_out, rank), tensors["M.gain"] float32
    (n_out,) where the module has one.
    """

    tensors: dict[str, np.ndarray]
    rank: int
    alpha: float

    @property
    def scaling(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    @classmethod
    def create(cls, bundle: Bundle, rank: int = 8, alpha: float = 16.0, seed: int = 0) -> Adapter:
        """Return an adapter that changes nothing: lora_B and the gains are zero, lora_A as peft draws it."""
        rng = np.random.default_rng(seed)
        tensors: dict[str, np.ndarray] = {}
        for module in modules(bundle):
            bound = module.n_in**-0.5
            tensors[f"{module.name}.lora_A"] = rng.uniform(-bound, bound, (rank, module.n_in)).astype(np.float32)
            tensors[f"{module.name}.lora_B"] = np.zeros((module.n_out, rank), np.float32)
            if module.has_gain:
                tensors[f"{module.name}.gain"] = np.zeros(module.n_out, np.float32)
        return cls(tensors, rank, alpha)

    def to_bytes(self) -> bytes:
        """Return the contents of adapter.safetensors."""
        facts = {"format": "whisperfold-adapter", "r": str(self.rank), "lora_alpha": str(self.alpha)}
        return bytes(save({_peft_name(name): array for name, array in self.tensors.items()}, facts))

    @classmethod
    def load(cls, path: Path) -> Adapter:
        """Read adapter.safetensors.

        Raises:
            ProfileError: missing, damaged, or not an adapter.
        """
        try:
            with safe_open(str(path), framework="numpy") as file:
                facts = file.metadata() or {}
                tensors = {_own_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no dict
            return cls(tensors, int(facts["r"]), float(facts["lora_alpha"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ProfileError(f"{path}: not an adapter ({error}); roll back, or enroll again") from error

    def fold(self, bundle: Bundle) -> dict[str, np.ndarray]:
        """Return the weights of the bundle with the adapter in them: name of the initializer -> array.

        Raises:
            EnrollmentError: the adapter was made for a bundle of other sizes.
        """
        folded: dict[str, np.ndarray] = {}
        for matrix in matrices(bundle):
            folded |= self._fold_matrix(bundle, matrix)
        return folded

    def _fold_matrix(self, bundle: Bundle, matrix: dict[str, Any]) -> dict[str, np.ndarray]:
        """Fold the modules of one stored matrix, quantised or not."""
        name, bias_name, places = matrix["matrix"], matrix["bias"], matrix["tensors"]
        stored = {key: read_tensor(bundle.path, place) for key, place in places.items()}
        is_quantized = f"{name}.scale" in stored
        weight = dequantize_columns(stored[name], stored[f"{name}.scale"]) if is_quantized else stored[name]
        bias = stored[bias_name] if bias_name else None
        for part in matrix["parts"]:
            columns = slice(*part["columns"])
            a, b = (self.tensors[f"{part['module']}.{factor}"] for factor in ("lora_A", "lora_B"))
            if (b.shape[0], a.shape[1]) != (weight[:, columns].shape[1], weight.shape[0]):
                raise EnrollmentError(f"{part['module']}: the adapter is for another bundle; enroll again for this")
            weight[:, columns] += part["factor"] * self.scaling * (b @ a).T
            gain = self.tensors.get(f"{part['module']}.gain")
            if gain is not None:
                weight[:, columns] *= 1.0 + gain
                if bias is not None:
                    bias[columns] *= 1.0 + gain
        folded = {bias_name: bias} if bias is not None else {}
        if not is_quantized:
            return {**folded, name: weight}
        quantized, scale = quantize_columns(weight)
        return {**folded, name: quantized, f"{name}.scale": scale}

    def weakened(self, strength: float) -> Adapter:
        """Return the adapter that changes the bundle by a share of what this one does; 1 is this one."""
        gains = {name: np.float32(strength) * array for name, array in self.tensors.items() if name.endswith(".gain")}
        return Adapter({**self.tensors, **gains}, self.rank, self.alpha * strength)

    def norms(self) -> dict[str, float]:
        """Return how large the change of each module is: the Frobenius norm of scaling * B A."""
        names = [name.removesuffix(".lora_A") for name in self.tensors if name.endswith(".lora_A")]
        return {
            name: float(np.linalg.norm(self.tensors[f"{name}.lora_B"] @ self.tensors[f"{name}.lora_A"])) * self.scaling
            for name in names
        }


def _peft_name(name: str) -> str:
    """M.lora_A -> base_model.model.M.lora_A.weight; gains, which peft does not know, keep their names."""
    return name if name.endswith(".gain") else f"{_PEFT_PREFIX}{name}.weight"


def _own_name(name: str) -> str:
    """The inverse of `_peft_name`."""
    return name.removeprefix(_PEFT_PREFIX).removesuffix(".weight")
