"""AdamW in numpy: decoupled weight decay, clipping by the global norm, linear warm-up and cosine.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  p -= rate (m^ / (sqrt(v^) + eps) + decay p)

Source: Loshchilov and Hutter, arXiv 1711.05101; equals torch.optim.AdamW to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def schedule(step: int, n_steps: int, warm_up_share: float) -> float:
    """Return the factor of the learning rate at a step from 0: rises linearly, then falls as a cosine to 0."""
    n_warm_up = max(1, round(warm_up_share * n_steps))
    if step < n_warm_up:
        return (step + 1) / n_warm_up
    return 0.5 * (1.0 + math.cos(math.pi * (step - n_warm_up) / max(1, n_steps - n_warm_up)))


class AdamW:
    """Moments of some named tensors, which are changed in place.

    Args:
        tensors: name -> float32 array.
        weight_decay: per step and unit of rate.
        clip_norm: gradients are scaled down to this global norm.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], weight_decay: float, clip_norm: float) -> None:
        self._tensors = dict(tensors)
        self._weight_decay, self._clip_norm = weight_decay, clip_norm
        self._m = {name: np.zeros_like(array) for name, array in tensors.items()}
        self._v = {name: np.zeros_like(array) for name, array in tensors.items()}
        self.n_steps = 0

    def step(self, gradients: Mapping[str, np.ndarray], rate: float) -> float:
        """Take one step; return the global norm of the gradients before clipping."""
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
        scale = np.float32(min(1.0, self._clip_norm / (norm + 1e-6)))
        self.n_steps += 1
        correction_m, correction_v = (1.0 - beta**self.n_steps for beta in BETAS)
        for name, tensor in self._tensors.items():
            g, m, v = gradients[name] * scale, self._m[name], self._v[name]
            m += (1.0 - BETAS[0]) * (g - m)
            v += (1.0 - BETAS[1]) * (g * g - v)
            tensor *= 1.0 - rate * self._weight_decay
            tensor -= (rate / correction_m) * m / (np.sqrt(v / correction_v) + EPSILON)
        return norm

    def state(self) -> dict[str, np.ndarray]:
        """Return all that `restore` needs but n_steps, for a checkpoint."""
        parts = {"": self._tensors, "m/": self._m, "v/": self._v}
        return {prefix + name: array for prefix, part in parts.items() for name, array in part.items()}

    def restore(self, state: Mapping[str, np.ndarray], n_steps: int) -> None:
        """Go on from a checkpoint; the tensors are overwritten in place."""
        for name, array in self.state().items():
            array[...] = state[name]
        self.n_steps = n_steps
