"""study.jsonl, one line per measured cell -> study.md, a table per checkpoint.

A cell that is measured again replaces its line. What was not measured is written as "not run".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from whisperfold.compiler.study_config import REFERENCE, Cell
from whisperfold.compiler.study_verdict import Row, duels, limits
from whisperfold.compiler.wer import NORMALIZER
from whisperfold.runtime.errors import CompileError

NOT_RUN = "not run"
LABELS = {
    REFERENCE: "original at 30 s, fp32",
    "original": "uncut",
    "ours": "**joint twins (ours)**",
    "product-svd": "plain product SVD",
    "svd": "SVD of each matrix, even",
    "svd-energy": "SVD of each matrix, by energy",
    "lite-asr": "PCA of outputs (LiteASR-like)",
    "magnitude": "magnitude pruning",
    "layer-drop": "layer dropping",
}
INTRODUCTION = """# Study: how much smaller can the encoder be?

Made by `whisperfold study` from [study.jsonl](study.jsonl); plots are in [study.html](study.html). Do not edit.

Every method of `compiler/baselines.py` cuts the same model, the original after it was healed for the bundle's window,
to at most the same share of its encoder layers' parameters ("kept" is what it came to); what is left is healed with the
same speech, steps and seed, and is exported and measured as a bundle with the same window and precision. WER is percent
over the whole set, after `{normalizer}`: cut → healed.
Size, time and memory are the healed bundle's, where there is one: time is mel, encoder and one decoder step per token
of the transcript, as a multiple of the uncut bundle's in the same run; memory is the peak of a process that does only
that. Layers leave as wholes, so layer dropping may come out far below its budget.
"""


def read_rows(path: Path) -> list[Row]:
    """Return the lines of study.jsonl; none where there is no file.

    Raises:
        CompileError: a line is not JSON.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise CompileError(f"{path}: not JSON lines ({error}); remove the line, its cell is measured again") from error


def add_row(path: Path, row: Row) -> None:
    """Put a row in place of the one of the same cell, or at the end; the file is written whole or not at all."""
    rows = {_identity(old): old for old in read_rows(path)} | {_identity(row): row}
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows.values()))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    scratch = path.with_name(f"{path.name}.tmp")
    scratch.write_text(text, "utf-8")
    os.replace(scratch, path)


def find_row(rows: Sequence[Row], source: str, cell: Cell) -> Row | None:
    """Return the row of a cell, if it was measured."""
    return next((row for row in rows if _identity(row) == (source, cell.method, cell.budget, cell.healed)), None)


def _identity(row: Row) -> tuple[Any, ...]:
    return row["source"], row["method"], row["budget"], row["healed"]


def sources(rows: Sequence[Row]) -> list[str]:
    """Return the checkpoints that were studied, in order."""
    return list(dict.fromkeys(row["source"] for row in rows))


def sets(rows: Sequence[Row]) -> list[str]:
    """Return the names of all verify sets, in order."""
    return list(dict.fromkeys(name for row in rows for name in row["wer"]))


def write_table(path: Path, rows: Sequence[Row], cells: Sequence[Cell]) -> None:
    """Write study.md: what is known of the planned cells, for every checkpoint among the rows."""
    parts = [INTRODUCTION.format(normalizer=NORMALIZER)]
    for source in sources(rows):
        own = [row for row in rows if row["source"] == source]
        done = sum(find_row(own, source, cell) is not None for cell in cells)
        lines = [f"## {source}", "", f"{done} of {len(cells)} cells. {conditions(own)}", ""]
        lines += [*limits(own, sets(own)), "", *_table(own, source, cells), *_duels(own)]
        parts.append("\n".join(lines) + "\n")
    write_text(
        path, "\n".join(parts if rows else [*parts, f"Nothing was measured yet: {len(cells)} cells {NOT_RUN}.\n"])
    )


def conditions(rows: Sequence[Row]) -> str:
    """Return in one sentence how the rows of a checkpoint were made."""
    measured = next((row for row in rows if row["method"] != REFERENCE), rows[0])
    text = (
        f"{measured['precision']}, {measured['window']} window, {measured['threads']} threads on {measured['machine']}."
    )
    healing: Row = next((row["healing"] for row in rows if row["healing"]), {})
    for name, settings in healing.items():
        shown = [f"{key} {value}" for key, value in settings.items() if not isinstance(value, dict)]
        is_done = any(settings.get(length) for length in ("batches", "steps", "epochs"))
        text += f" {name.capitalize()}: {', '.join(shown) if is_done else 'none'}."
    return text


def _table(rows: Sequence[Row], source: str, cells: Sequence[Cell]) -> list[str]:
    """Return the lines of a checkpoint's table: a line per budget and method."""
    names = sets(rows)
    head = ["encoder", "method", "kept, %", *(f"WER {name}" for name in names), "MB", "time", "peak RSS, MB"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * 2}{'---:|' * (len(head) - 2)}"]
    for method, budget in dict.fromkeys((cell.method, cell.budget) for cell in cells):
        cut, healed = (find_row(rows, source, Cell(method, budget, flag)) for flag in (False, True))
        shown = healed or cut
        pairs = [_pair(cut, healed, name, method == REFERENCE) for name in names]
        figures = [
            _figure(shown, lambda row: f"{row['bytes'] / 1e6:.1f}"),
            _figure(shown, lambda row: f"{row['relative_time']:.2f}"),
            _figure(shown, lambda row: f"{row['peak_rss_bytes'] / 1e6:.0f}"),
        ]
        kept = _figure(shown, lambda row: f"{row['parameters_percent']:.1f}")
        lines.append(f"| {' | '.join([f'{budget} %', LABELS.get(method, method), kept, *pairs, *figures])} |")
    return lines


def _duels(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a second table: ours beside the best other method, where both were measured."""
    found = duels(rows, sets(rows))
    if not found:
        return []
    wins = sum(own < best for _, healed, _, own, best, _ in found if healed)
    fights = sum(healed for _, healed, *_ in found)
    claim = "After the same healing the joint twins are better than every other method that was measured"
    lines = ["", f"{claim} in {wins} of {fights}:", ""]
    lines += ["| encoder | set | ours, % | best other, % | which | better by |", "|---|---|---:|---:|---|---:|"]
    for budget, healed, name, own, best, method in found:
        state = "healed" if healed else "cut"
        label = LABELS.get(method, method)
        lines.append(f"| {budget} %, {state} | {name} | {own:.2f} | {best:.2f} | {label} | {best - own:+.2f} |")
    return lines


def _pair(cut: Row | None, healed: Row | None, name: str, alone: bool) -> str:
    """Return "29.17 → 10.24", or the one figure of what is never healed."""
    first, second = (_figure(row if row and name in row["wer"] else None, lambda r: f"{r['wer'][name]:.2f}")
                     for row in (cut, healed))  # fmt: skip
    return first if alone else f"{first} → {second}"


def _figure(row: Row | None, form: Callable[[Row], str]) -> str:
    """Return a figure of a row, or that there is none."""
    return NOT_RUN if row is None else form(row)
