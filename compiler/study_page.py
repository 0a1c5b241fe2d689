"""study.jsonl's rows -> study.html: Pareto plots and tables in one file, without script or network.

A line per method over its budgets: full where healed, broken before; down and to the left is better. The look is that
of the compile report (report.py, report_svg.py).
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from whisperfold.compiler.report import STYLE, folded, section, table
from whisperfold.compiler.report_svg import FG, SERIES, SOFT, figure, to_svg
from whisperfold.compiler.study_config import REFERENCE, Cell
from whisperfold.compiler.study_results import LABELS, NOT_RUN, conditions, find_row, sets, sources, write_text
from whisperfold.compiler.study_verdict import Row

AXES = (("parameters_percent", "encoder parameters kept, %", 1.0), ("bytes", "bundle, MB", 1e-6))
"""Column of a row, label and unit of the two Pareto plots."""
LOOKS = {
    "original": (FG, "o"),
    "ours": (SERIES[0], "o"),
    "product-svd": (SERIES[0], "x"),
    "svd": (SERIES[1], "s"),
    "svd-energy": (SERIES[1], "x"),
    "lite-asr": (SERIES[2], "D"),
    "magnitude": (SERIES[3], "^"),
    "layer-drop": (SERIES[4], "v"),
}
"""Colour and marker of each method; relatives share a colour."""


def write_page(path: Path, rows: Sequence[Row], cells: Sequence[Cell]) -> None:
    """Write study.html: two plots and a table per checkpoint and set."""
    body = "".join(_source(rows, source, cells) for source in sources(rows))
    if not body:
        body = section("Nothing was measured yet", f"{len(cells)} cells {NOT_RUN}.", "")
    title = "How much smaller can the encoder be?"
    lead = "Every method at every budget, before and after the same healing; the table is also in study.md."
    write_text(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><main><header><h1>{title}</h1>"
        f'<p class="lead">{lead}</p></header>{body}</main></body></html>\n',
    )


def _source(rows: Sequence[Row], source: str, cells: Sequence[Cell]) -> str:
    """Return the sections of one checkpoint: the plots of each set, then all figures."""
    own = [row for row in rows if row["source"] == source]
    parts = []
    for name in sets(own):
        note = f"WER against what is left of the encoder and against the bundle; broken: not healed. {conditions(own)}"
        parts.append(section(f"{source}: {name}", note, pareto(own, source, name)))
    missing = [cell.name for cell in cells if find_row(own, source, cell) is None]
    note = f"{len(cells) - len(missing)} of {len(cells)} cells."
    body = table(
        [_cells(own, source, cell) for cell in cells], ["cell", "kept, %", *sets(own), "MB", "time", "RSS, MB"]
    )
    if missing:
        body += folded(f"{len(missing)} {NOT_RUN}", html.escape(", ".join(missing)))
    return "".join(parts) + section(f"{source}: all figures", note, body)


def _cells(rows: Sequence[Row], source: str, cell: Cell) -> dict[str, object]:
    """Return one line of the table."""
    row = find_row(rows, source, cell)
    label = f"{cell.budget} % {_label(cell.method)}{', healed' if cell.healed else ''}"
    if row is None:
        return {"cell": label, "kept, %": NOT_RUN}
    return {
        "cell": label,
        "kept, %": row["parameters_percent"],
        **row["wer"],
        "MB": row["bytes"] / 1e6,
        "time": row["relative_time"],
        "RSS, MB": round(row["peak_rss_bytes"] / 1e6),
    }


def pareto(rows: Sequence[Row], source: str, name: str) -> str:
    """Return WER on a set over parameters and over bytes, as one SVG."""
    measured = [row for row in rows if name in row["wer"]]
    with figure(9, 3.9) as fig:
        panels = fig.subplots(1, 2, sharey=True)
        for ax, (column, label, unit) in zip(panels, AXES, strict=True):
            for method in dict.fromkeys(row["method"] for row in measured):
                _lines(ax, [row for row in measured if row["method"] == method], name, column, unit)
            ax.set(xlabel=label, yscale="log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
        panels[0].set(ylabel="WER, %, log scale")
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            fig.legend(handles, labels, loc="outside lower center", ncols=4)
        return to_svg(fig, f"{source}: WER on {name} over parameters and size")


def _lines(ax: Axes, rows: Sequence[Row], name: str, column: str, unit: float) -> None:
    """Draw one method: a full line where healed, a broken one before; the reference as a level."""
    method = rows[0]["method"]
    if method == REFERENCE:
        ax.axhline(rows[0]["wer"][name], color=SOFT, linewidth=1.0, linestyle=":", label=_label(method))
        return
    color, marker = LOOKS[method]
    for healed in (False, True):
        points = sorted((row[column] * unit, max(row["wer"][name], 0.1)) for row in rows if row["healed"] == healed)
        if points:
            style: dict[str, Any] = {"linestyle": "-" if healed else "--", "alpha": 1.0 if healed else 0.45}
            label = None if not healed and any(row["healed"] for row in rows) else _label(method)
            ax.plot(*zip(*points, strict=True), marker=marker, markersize=5, color=color, label=label, **style)


def _label(method: str) -> str:
    return LABELS.get(method, method).replace("*", "")
