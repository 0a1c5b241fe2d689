"""What a compile costs: seconds and peak memory of every stage, for real checkpoints and a random `small`-shaped one.

    python tests/bench/compile_cost.py [--only tiny.en,base,small-shaped] [--budget 55%] [--heal]

small-shaped has 12 + 12 layers of width 768 and random weights: nothing to learn, everything to compute. Speech is the
few minutes that ship in the package, eight utterances of them taught, as many batches for the refit. With --heal the
stages that train take the few steps which so little speech gives, else none. Each model is compiled in a process of its
own, whose peak is reset before every stage. Writes results/compile_cost.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import DEFAULT_BUNDLE, RESULTS, describe_machine, save_result

from whisperfold.runtime.bundle import Bundle

MODELS = ("tiny.en", "base", "small-shaped")
SMALL = {"n_audio_state": 768, "n_audio_head": 12, "n_audio_layer": 12, "n_vocab": 51864}
SMALL |= {"n_text_state": 768, "n_text_head": 12, "n_text_layer": 12}
N_UTTERANCES = 8
N_BATCHES = 8
"""Of 48 s, for the refit."""


def compile_one(name: str, budget: str, heal: bool) -> list[dict[str, Any]]:
    """Compile one model in this process; return the cost of its stages."""
    import torch
    from rich.console import Console

    from whisperfold.compiler import pipeline
    from whisperfold.compiler.config import load_config
    from whisperfold.compiler.refit import RefitConfig
    from whisperfold.compiler.stages import SHIPPED_SPEECH
    from whisperfold.compiler.work import Work
    from whisperfold.models.sources import Checkpoint, load_source
    from whisperfold.models.tiny import DIMS, tiny_checkpoint

    stages: list[dict[str, Any]] = []

    class MeasuredWork(Work):
        """Notes the time and the peak memory of every stage."""

        def stage(self, name: str, *args: Any, **options: Any) -> Any:
            Path("/proc/self/clear_refs").write_text("5")
            done = super().stage(name, *args, **options)
            steps = next((row["steps"] for row in done.facts.get("curve", [])), None)
            stages.append({"stage": name, "seconds": done.seconds, "steps": steps, "peak_rss_bytes": peak_bytes()})
            return done

    def load(source: str, **options: Any) -> Checkpoint:
        if source != "small-shaped":
            return load_source(source, **options)
        folder = Path(tempfile.mkdtemp(dir=scratch))
        (folder / "tokenizer.json").write_bytes(Bundle.open(DEFAULT_BUNDLE).read("tokenizer.json"))
        made = tiny_checkpoint(folder, dims=replace(DIMS, **SMALL))
        for tensor in made.state.values():  # as large as a trained model's, so that nothing overflows in twelve layers
            if tensor.ndim > 1:
                tensor.mul_(0.2)
        return made

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        lines = SHIPPED_SPEECH.read_text("utf-8").splitlines()[:N_UTTERANCES]
        shutil.copytree(SHIPPED_SPEECH.parent / "calibration", scratch / "calibration")
        (scratch / "speech.jsonl").write_text("\n".join(lines), "utf-8")
        epochs = None if heal else 0
        settings: dict[str, Any] = {"source": name, "budget": budget, "audio": [str(scratch / "speech.jsonl")]}
        config = load_config(
            None, **settings, calibration_utterances=N_UTTERANCES, probe_utterances=2, heal_epochs=epochs
        )
        config = replace(config, refit=RefitConfig(batches=N_BATCHES))
        pipeline.Work = MeasuredWork  # type: ignore[misc]
        pipeline.load_source = load
        torch.manual_seed(0)
        pipeline.compile_bundle(config, scratch / "bundle", scratch / "work", Console(stderr=True))
        stages.append({"stage": "all, with export", "seconds": None, "steps": None, "peak_rss_bytes": peak_bytes()})
    return stages


def peak_bytes() -> int:
    """Return the peak memory since the last reset."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Compile every model in a process of its own, print a table and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--budget", default="55%")
    parser.add_argument("--heal", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(compile_one(options.one, options.budget, options.heal)))
        return
    rows: list[dict[str, Any]] = []
    for name in options.only.split(","):
        command = [sys.executable, __file__, "--one", name, "--budget", options.budget]
        command += ["--heal"] if options.heal else []
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        rows += [{"model": name, **stage} for stage in json.loads(output.splitlines()[-1])]
    result = {"machine": describe_machine(), "budget": options.budget, "rows": rows}
    print(markdown(result))
    save_result("compile_cost", result, RESULTS)


def markdown(result: dict[str, Any]) -> str:
    """Return the table of all stages."""
    lines = ["| model | stage | seconds | steps | peak RSS, MB |", "|---|---|---:|---:|---:|"]
    for row in result["rows"]:
        seconds, steps = ("" if row[key] is None else f"{row[key]:g}" for key in ("seconds", "steps"))
        lines.append(f"| {row['model']} | {row['stage']} | {seconds} | {steps} | {row['peak_rss_bytes'] / 1e6:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
