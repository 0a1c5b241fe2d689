"""What a cut encoder is healed with: kinds of adapters; a person's recordings while healing, or after it.

    python tests/bench/healing.py [--only adapters,speaker] [--recipe FILE] [--work DIR]

adapters  one epoch end to end with LoRA, DoRA and VeRA, after the refit
speaker   LoRA, then adaptation to accented-enroll; or adaptation to it from the cut on, with replay at every step

Every row is a compile of the recipe at BUDGET; they share what comes before healing in the work folder, and a run that
was killed goes on. The WER of a row is that of its last stage in float32 and that of its bundle. Writes
results/healing.json after every row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import RESULTS, ROOT, describe_machine, save_result
from rich.console import Console

from whisperfold.compiler.adapt import AdaptConfig
from whisperfold.compiler.config import CompileConfig, load_config
from whisperfold.compiler.heal import HealConfig, attach_adapters
from whisperfold.compiler.pipeline import compile_bundle
from whisperfold.compiler.refit import RefitConfig
from whisperfold.models.dims import ModelDimensions, Widths
from whisperfold.models.whisper import Whisper

PARTS = ("adapters", "speaker")
BUDGET = "75%"
LORA = HealConfig(epochs=1.0, learning_rate=2e-4)
PERSON = "accented-enroll.jsonl"
Variant = tuple[str, str, CompileConfig]
"""Part, label, what is compiled."""


def plan(recipe: CompileConfig) -> list[Variant]:
    """Return the compiles, in their order."""
    cut = replace(recipe, cut_short_share=0.0, budget=BUDGET, refit=RefitConfig(), heal=replace(LORA, epochs=0.0))
    person = str(Path(recipe.verify[0]).parent / PERSON)
    from_cut = AdaptConfig(epochs=9, rank=LORA.rank, replay_share=1.0)
    return [
        ("adapters", "none", cut),
        ("adapters", "LoRA, r = 32", replace(cut, heal=LORA)),
        ("adapters", "DoRA, r = 32", replace(cut, heal=replace(LORA, adapter="dora"))),
        ("adapters", "VeRA, r = 256", replace(cut, heal=replace(LORA, adapter="vera", rank=256, learning_rate=2e-3))),
        ("speaker", "healed, then adapted", replace(cut, heal=LORA, speaker=person)),
        ("speaker", "adapted while healing", replace(cut, speaker=person, adapt=from_cut)),
    ]


def run_one(label: str, config: CompileConfig, work: Path) -> dict[str, Any]:
    """Compile one variant and return its errors, what was trained and how long that took."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = compile_bundle(config, Path(folder) / "bundle", work, Console(stderr=True))
        stages = list(bundle.manifest["results"]["wer"].items())
        trained = [name for name, wanted in (("heal", config.heal.epochs), ("adapt", config.speaker)) if wanted]
        seconds = sum(json.loads((work / f"{name}.json").read_text("utf-8"))["seconds"] for name in trained)
        model = Whisper(ModelDimensions(**bundle.manifest["dims"]), Widths.from_json(bundle.manifest["widths"]))
        n_trained = sum(p.numel() for p in attach_adapters(model, config.heal.rank, config.heal.adapter))
    return {
        "label": label,
        "seconds": seconds,
        "trained": n_trained if trained else 0,
        "fp32": stages[-2][1],
        "bundle": stages[-1][1],
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the table of all rows."""
    sets = list(dict.fromkeys(name for row in result["rows"] for name in row["bundle"]))
    lines = [
        f"| healing | minutes | trained, thousands | {' | '.join(f'{name}, %' for name in sets)} |",
        f"|---|---:|---:|{'---:|' * len(sets)}",
    ]
    for row in result["rows"]:
        wer = [f"{row['fp32'][name]:.2f} → {row['bundle'][name]:.2f}" for name in sets]
        lines.append(
            f"| {row['label']} | {row['seconds'] / 60:.1f} | {row['trained'] / 1000:.0f} | {' | '.join(wer)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Compile what is wanted."""
    parser = argparse.ArgumentParser(description="healing, side by side")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--recipe", type=Path, default=ROOT / "compiler" / "configs" / "tiny.en.toml")
    parser.add_argument("--work", type=Path, default=ROOT / ".work" / "tiny.en")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    result = {"machine": describe_machine(), "budget": BUDGET, "recipe": args.recipe.name, "rows": rows}
    for part, label, config in plan(load_config(args.recipe)):
        if part in args.only.split(","):
            rows.append(run_one(label, config, args.work))
            save_result("healing", result, args.output)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
