"""adapt.onnx in onnxruntime: a recording and its text -> loss and the gradient of every factor.

    samples -> mel (1, n_mels, frames) -+
    sot sequence + text                 +-> loss, gradients
    the same, one further, and eot     -+

One recording a run: the encoder has no padding mask, so a batch would show shorter ones silence that is not theirs,
and costs as much per recording (210 ms alone, 783 ms four of them). Weights are those of the bundle's graphs, mapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from whisperfold.runtime.adapter import Adapter, matrices
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BundleError, EnrollmentError
from whisperfold.runtime.mel import log_mel
from whisperfold.runtime.tokenizer import Tokenizer
from whisperfold.runtime.windows import pad

GRAPH = "adapt.onnx"


@dataclass(frozen=True)
class Lesson:
    """A recording with its text."""

    name: str
    samples: np.ndarray
    """float32 (n,), mono, 16 kHz."""
    text: str


class TrainingGraph:
    """The session of adapt.onnx and what its inputs are made of."""

    def __init__(self, bundle: Bundle, threads: int = 2, language: str | None = None) -> None:
        """Load the graph.

        Args:
            bundle: with an "adapt" section.
            threads: of one run.
            language: of the recordings; needed by multilingual bundles.

        Raises:
            EnrollmentError: the bundle has no training graph.
            ConfigError: the bundle does not know the language.
            BundleError: the graph is missing, damaged, or onnxruntime cannot load it.
        """
        matrices(bundle)
        self.bundle = bundle
        self._tokenizer = Tokenizer(bundle)
        self.start = tuple(self._tokenizer.sot_sequence(language))
        """The sot sequence, with the language."""
        graph = bundle.read(GRAPH)
        try:
            self._session = ort.InferenceSession(
                graph, _options(threads, bundle.path), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no public base class
            path = bundle.file(bundle.stored(GRAPH))
            raise BundleError(f"{path}: onnxruntime cannot load it ({error}); compile again") from error

    def run(
        self, samples: np.ndarray, text: str, adapter: Adapter, trained: Sequence[str]
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Return the mean negative log-likelihood of the text's tokens (nats), and its gradients.

        Args:
            samples: float32 (n,), mono, 16 kHz; at most the bundle's window.
            text: what is said.
            adapter: where the gradients are taken.
            trained: names of the adapter's tensors whose gradients are wanted; none: only the loss (it takes as long).

        Raises:
            EnrollmentError: the text has more tokens than the model's context.
        """
        names = ["loss", *(f"grad.{name}" for name in trained)]
        loss, *gradients = self._session.run(names, self._feed(samples, text, adapter))
        return float(loss), dict(zip(trained, gradients, strict=True))

    def _feed(self, samples: np.ndarray, text: str, adapter: Adapter) -> Mapping[str, Any]:
        """Inputs of the graph, batch of one; the sot sequence itself is not learned."""
        ids = self._tokenizer.encode(" " + text.strip())
        tokens = [*self.start, *ids]
        if len(tokens) > self.bundle.dims.n_text_ctx:
            raise EnrollmentError(
                f"a text of {len(ids)} tokens, the model holds {self.bundle.dims.n_text_ctx}; cut the recording"
            )
        weights = np.ones((1, len(tokens)), np.float32)
        weights[:, : len(self.start) - 1] = 0.0
        return {
            "mel": log_mel(pad(samples, self.bundle.window), self.bundle.dims.n_mels)[None],
            "tokens": np.array([tokens], np.int64),
            "labels": np.array([[*tokens[1:], self.bundle.tokens.eot]], np.int64),
            "label_weights": weights,
            "scaling": np.array(adapter.scaling, np.float32),
            **adapter.tensors,
        }


def _options(threads: int, weights: Path) -> ort.SessionOptions:
    """Weights stay mapped in the files of that folder, and no plan is made for a length that never comes again."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Else DequantizeLinear + MatMul becomes an integer product, and the gradients are wrong.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options
