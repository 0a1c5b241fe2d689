"""onnxruntime sessions: one encoder run per window, one decoder step per token.

    mel (batch, n_mels, frames) --encoder--> cross K and V of every decoder layer (kept as OrtValue)
    tokens (batch, n) + past K/V + cross K/V --decoder--> logits, present K/V, cross attention

Caches never pass through numpy: the encoder's outputs are the decoder's inputs, and the present K/V of a
step are the past of the next one. Only the asked-for logit rows come back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from whisperfold.runtime.bundle import GRAPHS, Bundle
from whisperfold.runtime.errors import AudioError, BundleError, ConfigError
from whisperfold.runtime.hotwords import HotwordBias
from whisperfold.runtime.tokenizer import Tokenizer

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class CrossCache:
    """Cross-attention K and V of one window, computed once by the encoder.

    values[2 i] is cross_k_i, float32 (batch, heads, width_qk, T); values[2 i + 1] is cross_v_i,
    float32 (batch, heads, T, width_vo); T is 20 ms per position.
    """

    values: list[ort.OrtValue]
    batch: int
    n_audio_positions: int


@dataclass
class KVCache:
    """What the decoder remembers of one window; `Engine.step` advances it.

    past[2 i] is past_k_i, float32 (batch, heads, length, width_qk); past[2 i + 1] is past_v_i.
    """

    cross: CrossCache
    past: list[ort.OrtValue]
    length: int = 0


class Engine:
    """Encoder and decoder sessions of one bundle; shared by all threads, holds no utterance's state."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 0,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
        overrides: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Load the graphs of a bundle.

        Args:
            bundle: an opened bundle.
            threads: threads per session; 0 takes the CPUs this process may use, at most 4.
            providers: onnxruntime's execution providers, the preferred one first.
            overrides: arrays in place of stored weights, by name: a profile's (adapter.py).

        Raises:
            BundleError: onnxruntime cannot load a graph, its inputs are not the manifest's, or overrides do not fit.
            ConfigError: threads is negative, or this onnxruntime has not got a provider.
        """
        if threads < 0:
            raise ConfigError(f"threads={threads}: expected 0 (automatic) or more")
        missing = [name for name in providers if name not in ort.get_available_providers()]
        if missing or not providers:
            available = ", ".join(ort.get_available_providers())
            raise ConfigError(f"providers {missing}: this onnxruntime has {available}; install another build of it")
        self.bundle = bundle
        self.dims = bundle.dims
        self.tokens = bundle.tokens
        self.threads = threads or min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
        self.tokenizer = Tokenizer(bundle)
        self._weights: list[ort.OrtValue] = []  # the sessions read overrides where they are
        parts = _by_file(bundle, overrides or {})
        self._encoder, self._decoder = (
            _load(bundle.file(name), self.threads, providers, self._keep(parts[name])) for name in GRAPHS
        )
        n_layer = self.dims.n_text_layer
        pairs = [f"{part}_{layer}" for layer in range(n_layer) for part in ("k", "v")]
        self._cross_names = [f"cross_{pair}" for pair in pairs]
        self._past_names = [f"past_{pair}" for pair in pairs]
        self._present_names = [f"present_{pair}" for pair in pairs]
        self._hotwords: tuple[tuple[tuple[str, ...], float], HotwordBias] | None = None
        self._check_graphs()
        self._empty_past = self._make_empty_past()

    @classmethod
    def open(cls, path: str | os.PathLike[str], threads: int = 0, check: bool = True) -> Engine:
        """Open the bundle at path and load it; errors as `Bundle.open` and `Engine`."""
        return cls(Bundle.open(path, check=check), threads)

    def encode(self, mel: np.ndarray) -> CrossCache:
        """Run the encoder.

        Args:
            mel: float32 (n_mels, frames) or (batch, n_mels, frames), at most 2 * n_audio_ctx frames.

        Returns:
            The cross-attention cache; T = ceil(frames / 2).

        Raises:
            AudioError: wrong number of mel rows, no frames, or a window longer than the model's 30 s.
        """
        if mel.ndim == 2:
            mel = mel[None]
        if mel.ndim != 3 or mel.shape[1] != self.dims.n_mels:
            raise AudioError(f"mel: shape {mel.shape}, expected ([batch,] {self.dims.n_mels}, frames)")
        if not 1 <= mel.shape[2] <= 2 * self.dims.n_audio_ctx:
            raise AudioError(f"mel: {mel.shape[2]} frames, expected 1 to {2 * self.dims.n_audio_ctx} (10 ms); cut it")
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(mel, np.float32))
        values = self._encoder.run_with_ort_values(self._cross_names, {"mel": value})
        return CrossCache(list(values), mel.shape[0], (mel.shape[2] + 1) // 2)

    def new_cache(self, cross: CrossCache) -> KVCache:
        """Return the empty cache with which the decoding of a window starts."""
        past = self._empty_past if cross.batch == 1 else self._make_empty_past(cross.batch)
        return KVCache(cross, list(past))

    def step(
        self,
        tokens: np.ndarray,
        cache: KVCache,
        logit_positions: np.ndarray | None = None,
        attention: bool = False,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the decoder over n new tokens and advance the cache in place.

        Args:
            tokens: int64 (batch, n), at text positions cache.length ...
            cache: of this window.
            logit_positions: int64 (m,), which of the n positions want logits; default the last.
            attention: also return the cross attention of the alignment heads.

        Returns:
            logits float32 (batch, m, n_vocab), and float32 (batch, n_alignment_heads, n, T) or None.

        Raises:
            ConfigError: more tokens than the model's text context holds.
        """
        n = tokens.shape[1]
        if cache.length + n > self.dims.n_text_ctx:
            raise ConfigError(f"{cache.length + n} tokens, the model holds {self.dims.n_text_ctx}; shorten the prompt")
        if logit_positions is None:
            logit_positions = np.array([n - 1], np.int64)
        feed: dict[str, Any] = dict(zip(self._cross_names, cache.cross.values, strict=True))
        feed.update(zip(self._past_names, cache.past, strict=True))
        feed["tokens"] = ort.OrtValue.ortvalue_from_numpy(tokens)
        feed["logit_positions"] = ort.OrtValue.ortvalue_from_numpy(logit_positions)
        names = ["logits", *self._present_names, *(["cross_attention"] if attention else [])]
        values = self._decoder.run_with_ort_values(names, feed)
        cache.past = list(values[1 : 1 + len(self._present_names)])
        cache.length += n
        return values[0].numpy(), values[-1].numpy() if attention else None

    def reorder(self, cache: KVCache, rows: np.ndarray) -> KVCache:
        """Return a cache whose row i is row rows[i] of cache (beam search); rows may grow the batch.

        Args:
            cache: with past K/V of batch b.
            rows: int64 (new_batch,), values in [0, b).
        """
        cross = cache.cross
        if cross.batch != rows.size:  # beams of one window share its cross K/V: repeat them once
            taken = [_take(value, np.zeros_like(rows)) for value in cross.values]
            cross = CrossCache(taken, rows.size, cross.n_audio_positions)
        return KVCache(cross, [_take(value, rows) for value in cache.past], cache.length)

    def hotword_bias(self, words: tuple[str, ...], boost: float) -> HotwordBias:
        """Return the bias of hot words; the last list is kept, as every window asks for it.

        Raises:
            ConfigError: impossible words or boost.
        """
        kept = self._hotwords  # read once: threads with other lists share this engine
        if kept is None or kept[0] != (words, boost):
            kept = self._hotwords = ((words, boost), HotwordBias(words, self.tokenizer, boost))
        return kept[1]

    def _keep(self, overrides: Mapping[str, np.ndarray]) -> dict[str, ort.OrtValue]:
        """Overrides for one session, held as long as this engine."""
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in overrides.items()
        }
        self._weights += values.values()
        return values

    def _make_empty_past(self, batch: int = 1) -> list[ort.OrtValue]:
        """Zero-length past K/V with the widths that the graph declares."""
        shapes = {item.name: item.shape for item in self._decoder.get_inputs()}
        return [
            ort.OrtValue.ortvalue_from_numpy(np.zeros((batch, shapes[name][1], 0, shapes[name][3]), np.float32))
            for name in self._past_names
        ]

    def _check_graphs(self) -> None:
        """The graphs' names must be those of the manifest's dimensions."""
        cases = (
            ("encoder.onnx", "input", [item.name for item in self._encoder.get_inputs()], ["mel"]),
            (
                "encoder.onnx",
                "output",
                [item.name for item in self._encoder.get_outputs()],
                self._cross_names,
            ),
            (
                "decoder.onnx",
                "input",
                [item.name for item in self._decoder.get_inputs()],
                ["tokens", "logit_positions", *self._past_names, *self._cross_names],
            ),
            (
                "decoder.onnx",
                "output",
                [item.name for item in self._decoder.get_outputs()],
                ["logits", *self._present_names],
            ),
        )
        for file, kind, found, expected in cases:
            missing = sorted(set(expected) - set(found))
            if missing:
                raise BundleError(
                    f"{self.bundle.file(file)}: no {kind} {missing[0]}, found {', '.join(found[:6])}; "
                    "compile the bundle again with this version"
                )


def _take(value: ort.OrtValue, rows: np.ndarray) -> ort.OrtValue:
    """Rows of the batch axis, as a new OrtValue."""
    return ort.OrtValue.ortvalue_from_numpy(np.take(value.numpy(), rows, axis=0))


def _by_file(bundle: Bundle, overrides: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Overrides by the graph that holds what they replace; the manifest knows which."""
    places: dict[str, dict[str, Any]] = {}
    for matrix in bundle.manifest.get("adapt", {}).get("matrices", []):
        places |= matrix["tensors"]
    parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in GRAPHS}
    for name, array in overrides.items():
        place = places.get(name)
        if place is None or list(array.shape) != place["shape"] or array.dtype != place["dtype"]:
            expected = "none" if place is None else f"{place['dtype']} {tuple(place['shape'])}"
            raise BundleError(
                f"{name}: a profile has {array.dtype} {array.shape}, {bundle.path} has {expected}; "
                "the profile is for another bundle, enroll again for this one"
            )
        parts[place["file"]][name] = array
    return parts


def _load(
    path: Path, threads: int, providers: Sequence[str], overrides: Mapping[str, ort.OrtValue]
) -> ort.InferenceSession:
    """One session with few threads and little memory beside the weights."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # shapes change with every window and step: plans would only pile up
    options.enable_cpu_mem_arena = False  # malloc is as fast (58 ms a clip both) and gives memory back
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # the other session needs the cores
    for name, value in overrides.items():
        options.add_initializer(name, value)
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise BundleError(f"{path}: onnxruntime cannot load it ({error}); compile the bundle again") from error
