"""The benchmark scripts' own arithmetic: clip choice, ggml file, page; and a worker that dies."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import ggml  # noqa: E402
import healing  # noqa: E402
import page  # noqa: E402
import speed  # noqa: E402
from machine import ROOT  # noqa: E402

from whisperfold.compiler.config import load_config  # noqa: E402

DIMS = {
    "n_mels": 4, "n_audio_ctx": 6, "n_audio_state": 32, "n_audio_head": 2, "n_audio_layer": 1,
    "n_vocab": 5, "n_text_ctx": 7, "n_text_state": 32, "n_text_head": 2, "n_text_layer": 1,
}  # fmt: skip


def read_ggml(
    data: bytes,
) -> tuple[tuple[int, ...], list[bytes], dict[str, tuple[int, tuple[int, ...], bytes]]]:
    """Read what whisper.cpp reads: hyperparameters, words, name -> (type, shape innermost first, data)."""
    at = 0

    def numbers(n: int) -> tuple[int, ...]:
        nonlocal at
        at += 4 * n
        return struct.unpack_from(f"<{n}i", data, at - 4 * n)

    def take(n: int) -> bytes:
        nonlocal at
        at += n
        return data[at - n : at]

    head = numbers(12)
    rows, columns = numbers(2)
    take(4 * rows * columns)
    words = [take(numbers(1)[0]) for _ in range(numbers(1)[0])]
    tensors = {}
    while at < len(data):
        n_dims, length, kind = numbers(3)
        shape = numbers(n_dims)
        name = take(length).decode()
        n = int(np.prod(shape))
        tensors[name] = (kind, shape, take({ggml.F32: 4 * n, ggml.F16: 2 * n, ggml.Q8_0: n * 34 // 32}[kind]))
    return head, words, tensors


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_ggml_file(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {
        "encoder.conv1.weight": (32, 4, 3), "encoder.conv1.bias": (32,), "encoder.conv2.weight": (32, 32, 3),
        "encoder.conv2.bias": (32,), "encoder.positions": (6, 32), "encoder.ln.weight": (32,),
        "decoder.ln.weight": (32,), "decoder.positions": (7, 32), "decoder.token_embedding.weight": (5, 32),
        "encoder.layers.0.attn.v.weight": (32, 32), "decoder.layers.0.cross.k.weight": (32, 32),
        "decoder.layers.0.cross_ln.bias": (32,), "decoder.layers.0.ffn.fc2.weight": (32, 128),
    }  # fmt: skip
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    path = tmp_path / "model.bin"
    ggml.write_ggml(path, DIMS, np.zeros((4, 201), np.float32), [b"a", b"\xff"], state, kind)
    head, words, tensors = read_ggml(path.read_bytes())
    assert head == (0x67676D6C, 5, 6, 32, 2, 1, 7, 32, 2, 1, 4, 1 if kind == "f16" else 2007)
    assert words == [b"a", b"\xff"]
    assert set(tensors) == {
        "encoder.conv1.weight", "encoder.conv1.bias", "encoder.conv2.weight", "encoder.conv2.bias",
        "encoder.positional_embedding", "encoder.ln_post.weight", "decoder.ln.weight",
        "decoder.positional_embedding",
        "decoder.token_embedding.weight", "encoder.blocks.0.attn.value.weight",
        "encoder.blocks.0.attn.value.bias", "decoder.blocks.0.cross_attn.key.weight",
        "decoder.blocks.0.cross_attn_ln.bias", "decoder.blocks.0.mlp.2.weight",
    }  # fmt: skip
    assert tensors["encoder.conv1.bias"][:2] == (ggml.F32, (1, 32))
    assert tensors["encoder.conv1.weight"][:2] == (ggml.F16, (3, 4, 32))
    matrix, shape, data = tensors["decoder.blocks.0.mlp.2.weight"]
    assert (matrix, shape) == (ggml.F16 if kind == "f16" else ggml.Q8_0, (128, 32))
    if kind == "f16":
        values = np.frombuffer(data, "<f2").astype(np.float32)
    else:
        blocks = np.frombuffer(data, [("d", "<f2"), ("q", "i1", 32)])
        values = (blocks["d"].astype(np.float32)[:, None] * blocks["q"]).ravel()
    original = state["decoder.layers.0.ffn.fc2.weight"].ravel()
    assert np.abs(values - original).max() < (0.002 if kind == "f16" else 0.02)


def test_vocabulary_is_bytes(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"\u0120a": 1, "!": 0, "\u00c3\u00a9": 2, "<|x|>": 3}}}))
    assert ggml.vocabulary(path, 3) == [b"!", b" a", "é".encode()]
    with pytest.raises(ValueError, match=r"4 text tokens, expected ids 0\.\.4"):
        ggml.vocabulary(path, 5)


def test_clips_are_spread_and_of_the_length(tmp_path: Path) -> None:
    manifest = tmp_path / "set.jsonl"
    lines = [{"audio": f"{i}.flac", "duration_s": i, "text": "a"} for i in range(1, 13)]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    clips = speed.choose_clips(manifest, 3, 3.0, 8.0)
    assert [clip["name"] for clip in clips] == ["3", "5", "7"]
    assert clips[0]["audio"] == str(tmp_path / "3.flac")
    with pytest.raises(SystemExit, match="6 clips of 3.0-8.0 s, expected at least 7; lower --clips"):
        speed.choose_clips(manifest, 7, 3.0, 8.0)


def test_dead_worker_shows_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="(?s)ours: the worker ended with status 1.*BundleError"):
        speed.Worker.start(
            "ours", sys.executable, {"system": "whisperfold", "model": str(tmp_path), "threads": 1}, tmp_path
        )


def test_page_of_nothing_and_of_a_speed_result(tmp_path: Path) -> None:
    assert "##" not in page.render(tmp_path)
    row: dict[str, Any] = {
        "system": "whisperfold", "median_s": 0.05, "median_of_minima_s": 0.04, "times_slower": 1.0,
        "cpu_median_s": 0.09, "rtf": 0.01, "peak_rss_bytes": 150e6, "wer": 10.5,
        "versions": {"onnxruntime": "1.0"},
    }  # fmt: skip
    result = {
        "machine": {"cpu": "C", "cpu_features": ["asimd", "asimddp"], "cores": 2, "memory_bytes": 2**33,
                    "system": "Linux", "python": "3.11", "load_average_1_min": 3.0, "date": "2026-01-02"},
        "bundle": {"name": "tiny.en", "precision": "int8", "window": "short", "bytes": 4e7,
                   "manifest_sha256": "ab" * 32},
        "clips": 20, "clip_seconds": [3.1, 7.9], "set": "s.jsonl", "threads": 2, "repeats": 5,
        "source": {"name": "tiny.en", "origin": "PyPI"}, "decoding": "greedy", "systems": [row],
    }  # fmt: skip
    (tmp_path / "speed.json").write_text(json.dumps(result))
    text = page.render(tmp_path)
    assert "| whisperfold | 50 | 40 | 1.0 | 90 | 0.010 | 150 | 10.50 |" in text
    assert "the machine was busy" in text and "C (asimd, asimddp), 2 cores, 8 GiB" in text
    assert "## Speed and memory\n" in text and "without" not in text
    result["machine"] |= {"cpu_features": ["asimd"]}
    (tmp_path / "speed_without_dot_product.json").write_text(json.dumps(result))
    assert "## Speed and memory without an 8-bit dot product\n\nC (asimd), 2 cores" in page.render(tmp_path)


def test_page_says_what_every_stage_of_a_compile_costs(tmp_path: Path) -> None:
    machine = {"cpu": "C", "cores": 2, "memory_bytes": 0, "system": "Linux", "python": "3.11"}
    machine |= {"load_average_1_min": 0.1, "date": "2026-01-02"}
    rows = [
        {"model": "base", "stage": "frames", "seconds": 17.9, "steps": 16, "peak_rss_bytes": 2691e6},
        {"model": "base", "stage": "all, with export", "seconds": None, "steps": None, "peak_rss_bytes": 3e9},
    ]
    (tmp_path / "compile_cost.json").write_text(json.dumps({"machine": machine, "budget": "55%", "rows": rows}))
    text = page.render(tmp_path)
    assert "| base | frames | 17.9 | 16 | 2691 |\n| base | all, with export |  |  | 3000 |" in text
    assert "C, 2 cores, Linux, Python 3.11, 2026-01-02.\n\nBudget 55%" in text and "busy" not in text


def test_healings_differ_in_one_thing_and_share_all_stages_before(tmp_path: Path) -> None:
    recipe = load_config(ROOT / "compiler" / "configs" / "tiny.en.toml")
    plain, *others = (config for _, _, config in healing.plan(recipe))
    assert plain.heal.epochs == 0 and not plain.speaker and plain.budget == healing.BUDGET
    for config in others:
        assert replace(config, heal=plain.heal, speaker=None, adapt=plain.adapt) == plain != config
        assert not config.speaker or Path(config.speaker).parent == Path(recipe.verify[0]).parent
    result = {
        "machine": {"cpu": "C", "cores": 2, "memory_bytes": 0, "system": "Linux", "python": "3.11",
                    "load_average_1_min": 0.1, "date": "2026-01-02"},
        "recipe": "tiny.en.toml", "budget": "75%",
        "rows": [{"label": "DoRA", "seconds": 90, "trained": 2014752, "fp32": {"s": 13.6}, "bundle": {"s": 12.5}}],
    }  # fmt: skip
    (tmp_path / "healing.json").write_text(json.dumps(result))
    assert "| DoRA | 1.5 | 2015 | 13.60 → 12.50 |" in page.render(tmp_path)
