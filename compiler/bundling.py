"""A torch model at any stage -> a bundle, its WER and its size; and the final bundle with manifest and report."""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisperfold.compiler.adapt_graph import add_adapt_graph
from whisperfold.compiler.blocks import Blocks
from whisperfold.compiler.export import decoder_graph, encoder_graph
from whisperfold.compiler.manifests import read_items
from whisperfold.compiler.parity import check, compare
from whisperfold.compiler.quantize import MatrixError, as_facts, count_bytes, quantize
from whisperfold.compiler.report import write_report
from whisperfold.compiler.smooth import measure_peaks, smooth
from whisperfold.compiler.wer import evaluate
from whisperfold.models.dims import Widths
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.bundle import Bundle, write_bundle
from whisperfold.runtime.decoding_options import PLAIN_GREEDY
from whisperfold.runtime.transcribe import Transcriber

if TYPE_CHECKING:
    from whisperfold.compiler.stages import Compile
    from whisperfold.compiler.teacher import Lesson

PARITY_LESSONS = 4
LAYER_BYTES, REPORT_BYTES = 40_000, 250_000
"""What a bundle holds beside graphs and tokenizer, rounded up: the training graph per layer, report and manifest."""
TOOLS = ("whisperfold", "torch", "peft", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Stage:
    """What a stage did to accuracy and size."""

    stage: str
    bytes: int
    wer: dict[str, float]
    """Percent, by the name of the set."""
    seconds: float


@dataclass(frozen=True)
class Graphs:
    """The two graphs of a model, ready to be written."""

    files: dict[str, bytes]
    errors: list[MatrixError]
    bytes: dict[str, int]


def build_graphs(
    model: Whisper,
    alignment_heads: list[list[int]],
    precision: str,
    blocks: Mapping[str, Blocks] | None = None,
    heard: Sequence[Lesson] = (),
    window: str = "full",
    tail_s: float = 0.0,
) -> Graphs:
    """Export a model.

    Args:
        model: at any stage.
        alignment_heads: of the checkpoint.
        precision: "fp32"; else 8 bits, and 4 for what is in blocks.
        blocks: matrices in 4 bits, by the names of the graphs' initializers.
        heard: what tells loud channels, which are smoothed before 8 bits; none: nothing is smoothed.
        window: "short" or "full", at which heard is heard.
        tail_s: silence after it in a short window, seconds.
    """
    graphs = [encoder_graph(model), decoder_graph(model, alignment_heads)]
    errors: list[MatrixError] = []
    if precision != "fp32":
        if heard:
            peaks = measure_peaks(graphs[0], graphs[1], list(heard), window, tail_s)
            graphs = [smooth(graph, peaks, blocks or ()) for graph in graphs]
        quantized = [quantize(graph, blocks=blocks) for graph in graphs]
        graphs = [graph for graph, _ in quantized]
        errors = [error for _, found in quantized for error in found]
    files = {f"{graph.graph.name}.onnx": graph.SerializeToString() for graph in graphs}
    return Graphs(files, errors, count_bytes(graphs))


def estimate_bytes(model: Whisper, run: Compile) -> float:
    """Return the size in bytes of the bundle that the uncut model would give."""
    run, model = run.with_vocabulary(model)
    graphs = build_graphs(model, run.checkpoint.alignment_heads, run.config.precision, run.blocks)
    beside = LAYER_BYTES * (len(model.encoder.layers) + len(model.decoder.layers)) + REPORT_BYTES
    return sum(map(len, graphs.files.values())) + len(packed_json(run.checkpoint.tokenizer)) + beside


def packed_json(path: Path) -> bytes:
    """Return a JSON file without its white space, as gzip."""
    text = json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def manifest(model: Whisper, run: Compile, graphs: Graphs, window: str, precision: str) -> dict[str, Any]:
    """Return everything that the device needs to know, and where it came from."""
    config, checkpoint = run.config, run.checkpoint
    max_s = config.max_s if window == "short" else 29.0
    return {
        "name": checkpoint.name.rsplit("/", 1)[-1],
        "source": checkpoint.provenance,
        "dims": asdict(checkpoint.dims),
        "widths": model.widths.to_json(),
        "window": {"kind": window, "tail_s": config.tail_s, "min_s": 1.0, "max_s": max_s},
        "precision": precision,
        "tokens": checkpoint.tokens,
        "alignment_heads": checkpoint.alignment_heads,
        "quantization": {
            "scheme": "uint8 per output channel, or 4 bits in blocks of 128; dynamic activations",
            "matrices": as_facts(graphs.errors),
        }
        if graphs.errors
        else {},
        "tools": {"python": platform.python_version(), **{name: version(name) for name in TOOLS}},
        "config": json.loads(json.dumps(asdict(config))),
        "bytes": dict(graphs.bytes),
    }


def write_model(
    path: Path,
    model: Whisper,
    run: Compile,
    window: str,
    precision: str,
    extra: dict[str, Any],
) -> Bundle:
    """Export a model and write it as a bundle."""
    return write_graphs(path, bundle_graphs(model, run, window, precision), model, run, window, precision, extra)


def bundle_graphs(model: Whisper, run: Compile, window: str, precision: str) -> Graphs:
    """Export a model as its bundle stores it."""
    heads, tail_s = run.checkpoint.alignment_heads, run.config.tail_s
    return build_graphs(model, heads, precision, run.blocks, run.heard, window, tail_s)


def write_graphs(
    path: Path,
    graphs: Graphs,
    model: Whisper,
    run: Compile,
    window: str,
    precision: str,
    extra: dict[str, Any],
    report: bytes | None = None,
) -> Bundle:
    """Write a model's graphs as a bundle."""
    files: dict[str, Path | bytes] = {
        **graphs.files,
        "tokenizer.json.gz": packed_json(run.checkpoint.tokenizer),
    }
    if report is not None:
        files["report.html"] = report
    facts = manifest(model, run, graphs, window, precision)
    facts["bytes"]["tokenizer"] = len(files["tokenizer.json.gz"])  # type: ignore[arg-type]
    return write_bundle(path, files, facts | extra)


def measure_stage(
    stages: list[Stage],
    label: str,
    model: Whisper,
    run: Compile,
    *,
    precision: str,
    window: str | None = None,
) -> None:
    """Append the WER on every --verify set and the size of a model, unless nothing is to be measured."""
    if not run.config.verify:
        return
    window = window or run.config.window
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().data)

    def work(key: str) -> dict[str, Any]:
        bundle = write_model(run.work.file("stage-bundle"), model, run, window, precision, {"results": {}})
        return asdict(measure(label, bundle, run.config.verify, run.work.bar))

    slug = label.split(",")[0].replace(" ", "-")
    inputs = [digest.hexdigest(), window, precision, run.config.verify, run.config.tail_s, run.config.max_s]
    done = run.work.stage(f"verify-{slug}", inputs, work)
    stage = Stage(**done.facts)
    run.work.console.print(f"  {label}: {stage.bytes / 1e6:.1f} MB, WER {_shown(stage.wer)}")
    stages.append(stage)


def measure(label: str, bundle: Bundle, sets: tuple[str, ...], bar: Callable[[str, int], Any]) -> Stage:
    """Return the WER of a bundle on every set, greedy as the original: with the detector, or at 30 s without."""
    transcriber = Transcriber.open(bundle.path)
    short = bundle.window.kind == "short"

    def text(samples: Any) -> str:
        if short:
            return transcriber.transcribe(samples, beam_size=1).text
        return transcriber.transcribe_window(samples, PLAIN_GREEDY).text

    wer, seconds = {}, 0.0
    for path in sets:
        items = read_items(path)
        with bar(f"  {label} on {Path(path).stem}", len(items)) as advance:
            evaluation = evaluate(text, items, lambda n, advance=advance: advance(done=n))  # type: ignore[misc]
        wer[Path(path).stem] = round(float(evaluation.wer or 0.0), 2)
        seconds += sum(u.latency_s for u in evaluation.utterances)
    return Stage(label, bundle.size_bytes, wer, round(seconds, 1))


def check_parity(model: Whisper, graphs: Graphs, run: Compile, lessons: list[Lesson]) -> dict[str, float]:
    """Compare fp32 graphs (which must be equal) and those of the bundle with torch; return what was found.

    Raises:
        CompileError: the fp32 graphs are not the model.
    """
    config, heads = run.config, run.checkpoint.alignment_heads
    exact = compare(model, build_graphs(model, heads, "fp32").files, lessons, config.window, config.tail_s)
    check(exact)
    found = {"fp32_max_logit_difference": round(exact.max_difference, 7)}
    if config.precision != "fp32":
        near = compare(model, graphs.files, lessons, config.window, config.tail_s)
        found[f"{config.precision}_kl_nats_per_token"] = round(near.kl, 6)
    return found


def export_bundle(output: Path, model: Whisper, run: Compile, lessons: list[Lesson], facts: dict[str, Any]) -> Bundle:
    """Check the graphs, write the final bundle, measure it, and leave its report in it."""
    config, vocabulary = run.config, run.vocabulary
    run, model = run.with_vocabulary(model)
    checked = vocabulary.lessons(lessons[:PARITY_LESSONS]) if vocabulary else lessons[:PARITY_LESSONS]
    graphs = bundle_graphs(model, run, config.window, config.precision)
    parity = check_parity(model, graphs, run, checked)
    run.work.console.print("  graphs against torch: " + ", ".join(f"{k} {v:.2g}" for k, v in parity.items()))
    label = f"bundle, {config.precision}"
    scratch, kind = run.work.file("stage-bundle"), (config.window, config.precision)
    bundle = write_graphs(scratch, graphs, model, run, *kind, {"results": {}})
    if config.verify:
        run.stages.append(measure(label, bundle, config.verify, run.work.bar))
        run.work.console.print(f"  {label}: {bundle.size_bytes / 1e6:.1f} MB, WER {_shown(run.stages[-1].wer)}")
    stages = [asdict(stage) for stage in run.stages]
    results = {
        "wer": {stage["stage"]: stage["wer"] for stage in stages},
        "parity": parity,
        "lessons": facts.pop("lessons"),
    }
    page = facts | {
        "name": bundle.name,
        "source": run.checkpoint.provenance,
        "widths": model.widths.to_json(),
        "full_widths": Widths.full(run.checkpoint.dims).to_json(),
        "stages": stages,
        "bytes": bundle.manifest["bytes"],
        "quantization": bundle.manifest["quantization"].get("matrices", []),
        "config": bundle.manifest["config"],
        "results": results,
        "hardware": {"machine": platform.machine(), "system": platform.platform(), "threads": config.threads},
    }
    report = write_report(run.work.file("report.html"), page).read_bytes()
    written = write_graphs(output, graphs, model, run, *kind, {"results": results}, report)
    return add_adapt_graph(written.path)


def _shown(wer: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} %" for name, value in wer.items())
