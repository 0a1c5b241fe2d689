"""Plots of the report: facts -> inline SVG; see report.py for the facts, report_svg.py for the look."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from whisperfold.compiler.report_svg import CARD, SERIES, SOFT, figure, to_svg

Rows = list[dict[str, Any]]
_MAX_POINTS = 96
"""Points of one curve: more than the pixels between two of them, fewer than a spectrum has."""
_CURVES = (
    ("loss_output", "encoder distance, uncut"),
    ("loss_hidden", "encoder distance, 30 s"),
    ("loss_kl", "KL on logits"),
    ("loss_words", "cross-entropy of the words"),
)
_TWIN_NAMES = {"qk": "Q-K", "vo": "V-O", "ffn": "FFN", "self_qk": "self Q-K", "self_vo": "self V-O",
               "cross_qk": "cross Q-K", "cross_vo": "cross V-O"}  # fmt: skip


def largest_first(sizes: dict[str, int]) -> list[tuple[str, int]]:
    """Sort parts by size."""
    return sorted(sizes.items(), key=lambda pair: -pair[1])


def stages(rows: Rows) -> str:
    """WER lines (one per set) over the stages, beside bars of the size."""
    names = [str(row.get("stage", i)) for i, row in enumerate(rows)]
    sets = list(dict.fromkeys(name for row in rows for name in row.get("wer") or {}))
    with figure(9, 2.9) as fig:
        panels = list(fig.subplots(1, 2, width_ratios=(3, 2))) if sets else [fig.subplots()]
        if sets:
            _wer_lines(panels[0], names, rows, sets)
        _bars(panels[-1], names, [(row.get("bytes") or 0) / 1e6 for row in rows], "size, MB", "{:.1f}")
        return to_svg(fig, "WER and size after each stage")


def _wer_lines(ax: Axes, names: list[str], rows: Rows, sets: list[str]) -> None:
    """One line per set; the highest and the lowest value of a stage are written beside their points."""
    shown = [wer for row in rows for wer in (row.get("wer") or {}).values()]
    for color, name in zip(_cycle(len(sets)), sets, strict=True):
        points = [(i, row["wer"][name]) for i, row in enumerate(rows) if name in (row.get("wer") or {})]
        ax.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, label=name)
        for i, wer in points:
            stage = list(rows[i]["wer"].values())
            if wer in (max(stage), min(stage)):
                offset = 6 if wer == max(stage) else -12
                ax.annotate(
                    f"{wer:.1f}",
                    (i, wer),
                    (0, offset),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7.5,
                    color=color,
                )
    collapsed = max(shown) > 5 * max(min(shown), 1)
    ax.set(title="WER, %, log scale" if collapsed else "WER, %", xlim=(-0.4, len(names) - 0.6))
    if collapsed:
        ax.set(yscale="log", ylim=(0.55 * max(min(shown), 0.1), 2.2 * max(shown)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    else:
        ax.set(ylim=(0, 1.3 * max(*shown, 0.1)))
    ax.set_xticks(range(len(names)), names)
    ax.legend(loc="upper right", ncols=min(3, len(sets)))


def widths(kept: dict[str, Rows], full: dict[str, Rows]) -> str:
    """Bars of the kept width of every layer inside the original's, one panel per side and twin kind."""
    panels = [(side, kind) for side in kept for kind in (kept[side][0] if kept[side] else {})]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with figure(9, 1.9 * rows) as fig:
        axes = fig.subplots(rows, columns, squeeze=False).flat
        for ax, (side, kind) in zip(axes, panels, strict=False):
            values = [layer[kind] for layer in kept[side]]
            original = [layer.get(kind, 0) for layer in full.get(side, [])]
            layers = np.arange(len(values))
            if len(original) == len(values):
                ax.bar(layers, original, 0.72, color="none", edgecolor=SOFT, linewidth=0.8)
            ax.bar(layers, values, 0.72, color=SERIES[_kind_color(kind)])
            small = len(values) <= 8
            for i, value in enumerate(values if small else ()):
                ax.annotate(
                    str(value),
                    (i, value),
                    (0, -9),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7.5,
                    color=CARD,
                )
            ax.set(title=f"{side} {_TWIN_NAMES.get(kind, kind)}", ylim=(0, 1.05 * max(values + original)))
            ax.set_xticks(layers if small else layers[:: max(1, len(values) // 6)])
            ax.grid(axis="x", visible=False)
        _hide_rest(fig, len(panels))
        return to_svg(fig, "Kept width of each layer and twin")


def _site(name: str) -> tuple[str, int, str]:
    """Split "encoder.0.qk" into side, layer and twin kind; what stands between them does not matter."""
    side, *middle, kind = name.split(".")
    return side, next((int(part) for part in middle if part.isdigit()), 0), kind


def spectra(values: dict[str, list[float]], kept: dict[str, Rows]) -> str:
    """Normalised singular values on a log scale, cut marked; one panel per side and twin kind."""
    panels: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = {}
    for name, given in values.items():
        side, layer, kind = _site(name)
        panels.setdefault((side, kind), []).append((layer, np.asarray(given, dtype=np.float64)))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with figure(9, 2.3 * rows) as fig:
        axes = fig.subplots(rows, columns, squeeze=False).flat
        for ax, ((side, kind), curves) in zip(axes, panels.items(), strict=False):
            curves.sort(key=lambda curve: curve[0])
            for color, (layer, raw) in zip(_cycle(len(curves)), curves, strict=True):
                spectrum = np.maximum(raw / max(raw.max(), 1e-30), 1e-7)
                n_points = min(len(spectrum), _MAX_POINTS)
                index = np.unique(np.linspace(0, len(spectrum) - 1, n_points).astype(int))
                label = f"layer {layer}" if len(curves) <= 6 else None
                ax.plot(index + 1, spectrum[index], color=color, linewidth=1.2, label=label)
                layers = kept.get(side, [])
                width = int(layers[layer].get(kind, 0)) if layer < len(layers) else 0
                if 0 < width <= len(spectrum):
                    ax.plot(width, spectrum[width - 1], "o", color=color, markersize=5, markeredgecolor=CARD)
            ax.set(title=f"{side} {_TWIN_NAMES.get(kind, kind)}", yscale="log")
            ax.minorticks_off()
        first = fig.axes[0]
        if first.get_legend_handles_labels()[1]:
            first.legend(loc="lower left", fontsize=7.5, handlelength=1.2)
        _hide_rest(fig, len(panels))
        return to_svg(fig, "Singular values of the twins")


def sensitivity(rows: Rows) -> str:
    """KL over the width of every site, one panel per twin kind."""
    panels: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        side, layer, kind = _site(str(row["site"]))
        panel = panels.setdefault(f"{side} {_TWIN_NAMES.get(kind, kind)}", {})
        panel.setdefault(layer, []).append((float(row["width"]), max(float(row["kl"]), 1e-7)))
    columns = min(4, len(panels))
    count = -(-len(panels) // columns)
    with figure(9, 2.2 * count) as fig:
        axes = fig.subplots(count, columns, squeeze=False).flat
        for ax, (title, layers) in zip(axes, panels.items(), strict=False):
            for color, (layer, points) in zip(_cycle(len(layers)), layers.items(), strict=True):
                ax.plot(*zip(*sorted(points), strict=True), "o-", color=color, markersize=3, linewidth=1.1,
                        label=f"layer {layer}" if len(layers) <= 6 else None)  # fmt: skip
            ax.set(title=title, yscale="log")
            ax.minorticks_off()
        if fig.axes[0].get_legend_handles_labels()[1]:
            fig.axes[0].legend(fontsize=7.5, handlelength=1.2)
        _hide_rest(fig, len(panels))
        return to_svg(fig, "KL of each candidate cut")


def heal(rows: Rows) -> str:
    """Loss curves: the raw values faint, their running mean strong, stages separated by dotted lines."""
    losses = [pair for pair in _CURVES if any(row.get(pair[0]) is not None for row in rows)]
    if not losses:
        return ""
    with figure(9, 2.5) as fig:
        for ax, (key, title), color in zip(
            fig.subplots(1, len(losses), squeeze=False)[0], losses, SERIES, strict=False
        ):
            found = [(i, float(row[key])) for i, row in enumerate(rows) if row.get(key) is not None]
            raw = np.array([value for _, value in found])
            window = max(1, len(raw) // 40)
            smooth = np.convolve(
                np.pad(raw, (window // 2, window - 1 - window // 2), "edge"),
                np.ones(window) / window,
                "valid",
            )
            keep = np.unique(np.linspace(0, len(raw) - 1, min(len(raw), 4 * _MAX_POINTS)).astype(int))
            steps = np.array([i for i, _ in found])
            ax.plot(steps[keep], raw[keep], color=color, alpha=0.28, linewidth=0.8)
            ax.plot(steps[keep], smooth[keep], color=color)
            for i in range(1, len(rows)):
                if rows[i].get("stage") != rows[i - 1].get("stage"):
                    ax.axvline(i - 0.5, color=SOFT, linewidth=0.8, linestyle=":")
            ax.set(title=title, xlabel="record", yscale="log" if raw.min() > 0 else "linear")
            ax.minorticks_off()
        return to_svg(fig, "Healing losses")


def sizes(parts: dict[str, int]) -> str:
    """Horizontal bars, the largest part on top."""
    ordered = largest_first(parts)[:16][::-1]
    with figure(9, 0.5 + 0.26 * len(ordered)) as fig:
        _horizontal(fig.subplots(), [k for k, _ in ordered], [v / 1e6 for _, v in ordered], "{:.2f} MB", SERIES[0])
        return to_svg(fig, "Bytes of each part")


def quantization(rows: Rows) -> str:
    """Horizontal bars of the relative error, the worst matrix on top."""
    ordered = rows[::-1]
    with figure(9, 0.5 + 0.26 * len(ordered)) as fig:
        names = [f"{row['matrix']} ({row.get('bits', '?')} bit)" for row in ordered]
        _horizontal(
            fig.subplots(),
            names,
            [100 * (row.get("relative_error") or 0) for row in ordered],
            "{:.2f} %",
            SERIES[1],
        )
        return to_svg(fig, "Relative error of the quantised matrices")


def _horizontal(ax: Axes, names: list[str], values: list[float], form: str, color: str) -> None:
    ax.barh(range(len(names)), values, 0.68, color=color)
    for i, value in enumerate(values):
        ax.annotate(
            form.format(value),
            (value, i),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=SOFT,
        )
    ax.set_yticks(range(len(names)), names)
    ax.set(xlim=(0, 1.12 * max(max(values), 1e-9)), ylim=(-0.6, len(names) - 0.4))
    ax.grid(axis="y", visible=False)


def _bars(ax: Axes, names: list[str], values: list[float], title: str, form: str) -> None:
    ax.bar(range(len(names)), values, 0.66, color=SERIES[0])
    for i, value in enumerate(values):
        ax.annotate(
            form.format(value),
            (i, value),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=SOFT,
        )
    ax.set_xticks(range(len(names)), names)
    ax.set(title=title, ylim=(0, 1.15 * max(max(values), 1e-9)))
    ax.grid(axis="x", visible=False)


def _kind_color(kind: str) -> int:
    """Q-K, V-O and FFN keep their colour in every panel."""
    return 2 if kind == "ffn" else 0 if kind.endswith("qk") else 1


def _cycle(n: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(n)]


def _hide_rest(fig: Figure, used: int) -> None:
    """Blank the panels of a grid that have no data."""
    for ax in fig.axes[used:]:
        ax.set_visible(False)
