"""study.jsonl's rows -> what they say: how far the joint twins may be cut, and where another method is better.

Nothing here is judged by hand: limits are points of WER above the original at 30 s, on every set that was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whisperfold.compiler.study_config import REFERENCE

LIMITS = (0.5, 1.0)
"""Points of WER above the original."""
OURS = "ours"
UNCUT = (REFERENCE, "original")

Row = dict[str, Any]
"""A line of study.jsonl."""


def smallest_within(rows: Sequence[Row], limit: float, names: Sequence[str]) -> Row | None:
    """Return the row of ours that keeps least of the encoder and is within a limit of the original on every set.

    Args:
        rows: of one checkpoint.
        limit: points of WER.
        names: the sets.
    """
    reference = next((row for row in rows if row["method"] == REFERENCE), None)
    if reference is None or not reference["wer"].keys() >= set(names):
        return None

    def holds(row: Row) -> bool:
        return all(row["wer"].get(name, float("inf")) <= reference["wer"][name] + limit + 1e-9 for name in names)

    within = [row for row in rows if row["method"] == OURS and holds(row)]
    return min(within, key=lambda row: row["parameters_percent"], default=None)


def limits(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Return a line per limit: the smallest encoder that holds it."""
    lines = []
    for limit in LIMITS:
        row = smallest_within(rows, limit, names)
        text = "nothing that was measured"
        if row is not None:
            state = "healed" if row["healed"] else "cut, not healed"
            figures = ", ".join(f"{name} {row['wer'][name]:.2f}" for name in names)
            text = f"{row['parameters_percent']:.1f} % of the encoder ({state}; {figures})"
        lines.append(f"- Smallest joint twins within +{limit} of the original at 30 s on every set: {text}.")
    return lines


def duels(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[int, bool, str, float, float, str]]:
    """Return (budget, healed, set, WER of ours, WER of the best other method, its name), widest encoder first."""
    found = []
    budgets = sorted({row["budget"] for row in rows if row["method"] not in UNCUT}, reverse=True)
    for healed in (False, True):
        for budget in budgets:
            level = [row for row in rows if (row["budget"], row["healed"]) == (budget, healed)]
            own = next((row for row in level if row["method"] == OURS), None)
            others = [row for row in level if row["method"] not in (OURS, *UNCUT)]
            for name in names:
                measured = [row for row in others if name in row["wer"]]
                if own is not None and name in own["wer"] and measured:
                    best = min(measured, key=lambda row: float(row["wer"][name]))
                    found.append((budget, healed, name, own["wer"][name], best["wer"][name], best["method"]))
    return found
