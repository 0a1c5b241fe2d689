"""What onnxruntime makes of a bundle's graphs, and what a decoder step costs as the KV cache grows and is cut.

    python tests/bench/graphs.py [BUNDLE ...] [--random] [--threads 2] [--repeats 50] [--json] [--output DIR]

Ops are those of the graphs as exported and as optimised at load, under the runtime's own session options; then what is
still apart (chains.py) though a fused kernel exists, with the nodes of one place. fused_kernels.py measures whether
fusing would pay. A step is one token of batch 1, medians over --repeats rounds that go through all models, so that
other work slows every one alike.

--random adds models of the shapes of tiny.en and base with random weights, whose head widths in the decoder (self and
cross, QK and VO) are 100, 75, 50 and 25 % of the original's; everything else is whole. Their vocabulary is tiny.en's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from chains import count_ops, find_chains
from machine import DEFAULT_BUNDLE, describe_bundle, describe_machine, save_result

from whisperfold.runtime.bundle import GRAPHS, Bundle, write_bundle
from whisperfold.runtime.session import Engine, KVCache

POSITIONS_PER_S = 50
FLOAT_BYTES = 4
SHARES = (100, 75, 50, 25)
"""Head widths of the random models, percent of the original's."""
SHAPES = {
    "tiny.en-shaped": {"state": 384, "head": 6, "layer": 4},
    "base-shaped": {"state": 512, "head": 8, "layer": 6},
}
PAST_TOKENS = (8, 64, 200)
AUDIO_S = (2, 5, 10, 20)


def optimised(engine: Engine) -> dict[str, tuple[onnx.GraphProto, onnx.GraphProto]]:
    """Return each graph of an engine as exported and as onnxruntime runs it."""
    graphs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, session in zip(GRAPHS, (engine._encoder, engine._decoder), strict=True):
            source, target = engine.bundle.file(name), Path(folder) / name
            options = session.get_session_options()
            options.optimized_model_filepath = str(target)
            ort.InferenceSession(str(source), options, providers=session.get_providers())
            graphs[name] = (onnx.load(str(source)).graph, onnx.load(str(target)).graph)
    return graphs


def inspect(engine: Engine) -> dict[str, Any]:
    """Return the ops of both graphs before and after, and the chains that lie apart after."""
    report = {}
    for name, (before, after) in optimised(engine).items():
        chains: dict[str, dict[str, Any]] = {}
        for place in find_chains(after):
            entry = {"chain": " > ".join(place.chain.steps), "count": 0, "note": place.chain.note, "nodes": place.nodes}
            chains.setdefault(f"{place.chain.fused}: {entry['chain']}", entry | {"fused": place.chain.fused})[
                "count"
            ] += 1
        report[name] = {
            "before": count_ops(before),
            "after": count_ops(after),
            "apart": list(chains.values()),
        }
    return report


def cache_bytes(bundle: Bundle) -> dict[str, int]:
    """Return the bytes of float32 KV: self-attention's per token, cross-attention's per second of audio."""
    layers, heads = bundle.manifest["widths"]["decoder"], bundle.dims.n_text_head
    per_token = sum(heads * (layer["self_qk"] + layer["self_vo"]) for layer in layers)
    per_position = sum(heads * (layer["cross_qk"] + layer["cross_vo"]) for layer in layers)
    return {
        "self_bytes_per_token": FLOAT_BYTES * per_token,
        "cross_bytes_per_s": FLOAT_BYTES * POSITIONS_PER_S * per_position,
    }


def make_cache(engine: Engine, n_past: int, audio_s: float) -> KVCache:
    """Return the cache of a window of audio_s seconds after n_past tokens, filled with noise."""
    rng = np.random.default_rng(0)
    frames = round(2 * POSITIONS_PER_S * audio_s)
    cross = engine.encode(rng.standard_normal((engine.dims.n_mels, frames)).astype(np.float32))
    past = []
    for value in engine.new_cache(cross).past:
        batch, heads, _, width = value.shape()
        filled = rng.standard_normal((batch, heads, n_past, width)).astype(np.float32)
        past.append(ort.OrtValue.ortvalue_from_numpy(filled))
    return KVCache(cross, past, n_past)


def time_steps(
    engines: dict[str, Engine], past_tokens: Sequence[int], audio_s: Sequence[float], repeats: int
) -> list[dict[str, Any]]:
    """Return the time of one step per model, past and audio length."""
    rows = []
    tokens = np.zeros((1, 1), np.int64)
    for n_past in past_tokens:
        for length_s in audio_s:
            caches = {label: make_cache(engine, n_past, length_s) for label, engine in engines.items()}
            times_ms: dict[str, list[float]] = {label: [] for label in engines}
            for round_ in range(-2, repeats):  # two to warm up
                for label, engine in engines.items():
                    cache = replace(caches[label])
                    started = time.perf_counter()
                    engine.step(tokens, cache)
                    if round_ >= 0:
                        times_ms[label].append(1e3 * (time.perf_counter() - started))
            for label, times in times_ms.items():
                row = {"model": label, "past_tokens": n_past, "audio_s": length_s}
                rows.append(row | {"median_ms": statistics.median(times), "min_ms": min(times)})
    return rows


def random_bundles(folder: Path, precision: str) -> dict[str, Bundle]:
    """Write a bundle of random weights for every shape and share of the head widths."""
    return {
        f"{shape}, {share} %": random_bundle(folder / f"{shape}-{share}", SHAPES[shape], share, precision)
        for shape in SHAPES
        for share in SHARES
    }


def random_bundle(path: Path, shape: dict[str, int], share: int, precision: str) -> Bundle:
    """Write one; tokens and tokenizer are the packaged bundle's."""
    import torch

    from whisperfold.compiler.bundling import build_graphs
    from whisperfold.models.dims import ModelDimensions, Widths
    from whisperfold.models.whisper import Whisper

    packaged = Bundle.open(DEFAULT_BUNDLE, check=False)
    state, head, layer = shape["state"], shape["head"], shape["layer"]
    vocab, ctx = packaged.dims.n_vocab, packaged.dims.n_text_ctx
    dims = ModelDimensions(80, 1500, state, head, layer, vocab, ctx, state, head, layer)
    full = Widths.full(dims)
    width = state // head * share // 100
    cut = replace(full.decoder[0], self_qk=width, self_vo=width, cross_qk=width, cross_vo=width)
    torch.manual_seed(0)
    model = Whisper(dims, replace(full, decoder=(cut,) * layer)).eval()
    torch.nn.init.normal_(model.decoder.positions, std=0.02)
    alignment_heads = [[layer - 1, 0]]
    graphs = build_graphs(model, alignment_heads, precision)
    facts = {key: packaged.manifest[key] for key in ("tokens", "window")}
    facts |= {
        "name": path.name,
        "dims": asdict(dims),
        "widths": model.widths.to_json(),
        "precision": precision,
        "alignment_heads": alignment_heads,
    }
    tokenizer = packaged.read("tokenizer.json")
    return write_bundle(path, {**graphs.files, "tokenizer.json": tokenizer}, facts)


def ops_table(before: Counter[str], after: Counter[str]) -> list[str]:
    """One line per op, the most frequent first."""
    names = sorted(before | after, key=lambda name: (-after[name], -before[name], name))
    lines = ["| op | exported | optimised |", "|---|---:|---:|"]
    lines += [f"| {name} | {before[name] or ''} | {after[name] or ''} |" for name in names]
    return [*lines, f"| **all** | **{before.total()}** | **{after.total()}** |"]


def graph_section(label: str, report: dict[str, Any]) -> list[str]:
    """Ops and chains of one bundle."""
    lines = []
    for name, found in report.items():
        lines += [
            "",
            f"### {label}: {name}",
            "",
            *ops_table(Counter(found["before"]), Counter(found["after"])),
            "",
            "Chains still apart:",
            "",
        ]
        lines += [
            f"- {entry['count']} x **{entry['fused']}**: {entry['chain']}, e.g. {', '.join(entry['nodes'])}"
            + (f" ({entry['note']})" if entry["note"] else "")
            for entry in found["apart"]
        ] or ["- none"]
    return lines


def step_table(rows: list[dict[str, Any]], cache: dict[str, dict[str, int]]) -> list[str]:
    """One line per model and past; columns are the lengths of audio."""
    lengths = list(dict.fromkeys(row["audio_s"] for row in rows))
    lines = [
        f"| model | self KV, B/token | cross KV, B/s | past, tokens | {' | '.join(f'{s} s, ms' for s in lengths)} |",
        f"|---|---:|---:|---:|{'---:|' * len(lengths)}",
    ]
    medians = {(row["model"], row["past_tokens"], row["audio_s"]): row["median_ms"] for row in rows}
    for label, n_past in sorted({key[:2] for key in medians}, key=lambda key: (list(cache).index(key[0]), key[1])):
        sizes = f"{cache[label]['self_bytes_per_token']} | {cache[label]['cross_bytes_per_s']}"
        figures = " | ".join(f"{medians[label, n_past, length_s]:.2f}" for length_s in lengths)
        lines.append(f"| {label} | {sizes} | {n_past} | {figures} |")
    return lines


def markdown(result: dict[str, Any]) -> str:
    """All tables of a result, as it is or read from its JSON."""
    sections = [graph_section(label, bundle["graphs"]) for label, bundle in result["bundles"].items()]
    lines = [line for section in sections for line in section]
    return "\n".join([*lines, "", "### one decoder step, median", "", *step_table(result["steps"], result["cache"])])


def main(arguments: list[str] | None = None) -> int:
    """Inspect and time every bundle, then the random models."""
    parser = argparse.ArgumentParser(description="ops of the optimised graphs, time of a decoder step")
    parser.add_argument("bundles", nargs="*", type=Path, default=[DEFAULT_BUNDLE], metavar="BUNDLE")
    parser.add_argument("--random", action="store_true", help="also time random models of cut head widths")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8", help="of the random models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--past", type=int, nargs="+", default=PAST_TOKENS, metavar="TOKENS")
    parser.add_argument("--audio", type=float, nargs="+", default=AUDIO_S, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    parser.add_argument("--output", type=Path, help="folder that gets graphs.json, for page.py")
    args = parser.parse_args(arguments)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        bundles = {os.path.relpath(path): Bundle.open(path) for path in args.bundles}
        inspected = {label: Engine(bundle, args.threads) for label, bundle in bundles.items()}
        reports = {label: inspect(engine) for label, engine in inspected.items()}
        made = random_bundles(Path(folder), args.precision) if args.random else {}
        engines = inspected | {label: Engine(bundle, args.threads) for label, bundle in made.items()}
        steps = time_steps(engines, args.past, args.audio, args.repeats)
    cache = {label: cache_bytes(engine.bundle) for label, engine in engines.items()}
    result = {
        "machine": machine,
        "onnxruntime": ort.__version__,
        "threads": args.threads,
        "repeats": args.repeats,
        "bundles": {
            label: describe_bundle(bundle.path) | {"graphs": reports[label]} for label, bundle in bundles.items()
        },
        "cache": cache,
        "steps": steps,
    }
    if args.output:
        save_result("graphs", result, args.output)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
        return 0
    print(
        f"onnxruntime {ort.__version__}, {machine['cpu']}, {args.threads} threads, load {machine['load_average_1_min']}"
    )
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
