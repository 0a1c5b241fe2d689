"""Facts of a compile -> one self-contained HTML page: what was folded, what it cost, where the bytes are.

`write_report` takes a dict and leaves out what is not in it:

    name, source: str or dict              widths, full_widths: {"encoder": [{"qk": 32, ...}], ...}
    spectra: {"encoder.0.qk": [values]}    sensitivity: [{"site", "width", "kl", "params_saved"}]
    heal: [{"stage", "step", "loss_output", "loss_layers", "loss_hidden", "loss_kl", "loss_words"}]
    stages: [{"stage", "bytes", "wer": {"set": percent}, "seconds"}]
    bytes: {"token embedding": n, ...}     quantization: [{"matrix", "bits", "relative_error"}]
    config, results, hardware: nested dicts

A spectrum has one value per unit of width (heads averaged), so that the kept width marks the cut. No
script, no network: text and tables are HTML, plots are the inline SVG of report_plots.
"""

from __future__ import annotations

import html
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whisperfold.compiler import report_plots as plots

Facts = dict[str, Any]

STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--fg:#1d2126;--soft:#667079;--grid:#dfe3e6;--card:#fff;
--a:#2563a8;--b:#c2570c;--c:#2e7d4f;--d:#8a3f9e;--e:#a8842c;--f:#4b5b6b}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e4e7ea;--soft:#9aa4ad;--grid:#30363c;--card:#1b1f23;
--a:#6ea8e6;--b:#f0964f;--c:#6cc08b;--d:#c88ade;--e:#dcbb66;--f:#93a4b5}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:64rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.15rem;margin:0 0 .25rem}p.lead,p.note{color:var(--soft);margin:0 0 .75rem;max-width:46rem}
section{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:1.1rem 1.25rem;
margin:1.1rem 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:1.25rem 0}
.tile{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:.7rem .9rem}
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem}
svg{display:block;width:100%;height:auto;font-family:inherit;stroke-linejoin:round;margin-bottom:.5rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem .25rem 0;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--soft);font-weight:600}th:first-child,td:first-child{text-align:left}
details{margin-top:.6rem}summary{cursor:pointer;color:var(--soft);font-size:.88rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.25rem;margin:0;font-size:.88rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.83rem}
@media(max-width:34rem){dl{grid-template-columns:1fr}dd{margin-bottom:.35rem}}
@media print{section{break-inside:avoid}body{background:#fff}}
"""


def write_report(path: str | Path, facts: Facts) -> Path:
    """Write the page of one compile; the file appears whole or not at all.

    Args:
        path: HTML file to write.
        facts: see the module's docstring; every key may be missing.

    Returns:
        The path.
    """
    path = Path(path)
    sections = [html_ for build in _SECTIONS if (html_ := build(facts))]
    title = html.escape(f"{facts.get('name', 'bundle')}: how it was folded")
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><main>{_header(facts)}{''.join(sections)}</main></body></html>\n"
    )
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _header(facts: Facts) -> str:
    """Title, source line, and the few figures a reader looks for first."""
    source = facts.get("source")
    if isinstance(source, dict):
        source = " ".join(str(source[k]) for k in ("name", "revision", "origin") if source.get(k))
    lead = f'<p class="lead">Folded from {html.escape(str(source))}</p>' if source else ""
    tiles = []
    if facts.get("bytes"):
        tiles.append((f"{sum(facts['bytes'].values()) / 1e6:.1f} MB", "weights and files"))
    stages = facts.get("stages") or []
    sized = [s["bytes"] for s in stages if s.get("bytes")]
    if len(sized) > 1 and sized[0]:
        tiles.append((f"{100 * sized[-1] / sized[0]:.0f} %", "of the original's size"))
    measured = [s["wer"] for s in stages if s.get("wer")]
    for name in measured[-1] if measured else ():
        first = measured[0].get(name) if len(measured) > 1 else None
        change = f", {measured[-1][name] - first:+.2f} points" if first is not None else ""
        tiles.append((f"{measured[-1][name]:.2f} %", f"WER {name}{change}"))
    seconds = sum(s.get("seconds") or 0 for s in stages)
    if seconds:
        tiles.append((f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s", "to compile"))
    cells = "".join(f'<div class="tile"><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>' for v, k in tiles)
    name = html.escape(str(facts.get("name", "bundle")))
    return f"<header><h1>{name}</h1>{lead}</header>" + (f'<div class="tiles">{cells}</div>' if cells else "")


def section(title: str, note: str, body: str) -> str:
    """Return a card of the page."""
    return f'<section><h2>{html.escape(title)}</h2><p class="note">{html.escape(note)}</p>{body}</section>'


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Return an HTML table; nested dicts are not flattened, missing cells are dashes."""
    head = "".join(f"<th>{html.escape(c.replace('_', ' '))}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(c))}</td>" for c in columns) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else html.escape(str(value))


def folded(summary: str, body: str) -> str:
    """Return a body that opens when its summary is clicked."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def _stages(facts: Facts) -> str:
    stages = facts.get("stages")
    if not stages:
        return ""
    sets = list(dict.fromkeys(name for s in stages for name in s.get("wer") or {}))
    rows = []
    for s in stages:
        wer = {f"WER {name}": (s.get("wer") or {}).get(name) for name in sets}
        megabytes = s["bytes"] / 1e6 if s.get("bytes") else None
        rows.append({"stage": s.get("stage"), "MB": megabytes, "seconds": s.get("seconds"), **wer})
    note = "Word error rate and size after every stage: what folding costs, healing returns and int8 saves."
    columns = ["stage", "MB", *(f"WER {n}" for n in sets), "seconds"]
    return section("What each stage did", note, plots.stages(stages) + table(rows, columns))


def _widths(facts: Facts) -> str:
    widths = facts.get("widths")
    if not widths:
        return ""
    note = "Head width of the attention twins, neurons of the feed-forward layers; the frame is the original's."
    return section("Kept of each twin", note, plots.widths(widths, facts.get("full_widths") or {}))


def _spectra(facts: Facts) -> str:
    if not facts.get("spectra"):
        return ""
    note = (
        "Singular values of the weighted twins, largest = 1; a panel per twin kind, a line per layer. "
        "The dot marks the cut: what lies to the right of it was dropped."
    )
    return section("Spectra", note, plots.spectra(facts["spectra"], facts.get("widths") or {}))


def _sensitivity(facts: Facts) -> str:
    rows = facts.get("sensitivity")
    if not rows:
        return ""
    note = "KL of the logits when only this twin is cut to this width, before healing: the budget uses it."
    detail = folded(f"all {len(rows)} measurements", table(rows, ["site", "width", "kl", "params_saved"]))
    return section("Sensitivity", note, plots.sensitivity(rows) + detail)


def _heal(facts: Facts) -> str:
    if not facts.get("heal"):
        return ""
    note = (
        "Losses while healing: distance of the encoder's output from the uncut one's and from the original's at 30 s, "
        "KL of the words from the original's; for a student the cross-entropy of its words too."
    )
    return section("Healing", note, plots.heal(facts["heal"]))


def _bytes(facts: Facts) -> str:
    sizes = facts.get("bytes")
    if not sizes:
        return ""
    total = sum(sizes.values())
    rows = [{"part": k, "bytes": v, "share": f"{100 * v / total:.1f} %"} for k, v in plots.largest_first(sizes)]
    detail = folded(f"{total:,} bytes in all", table(rows, ["part", "bytes", "share"]))
    return section("Where the bytes are", "Bytes of every part of the bundle.", plots.sizes(sizes) + detail)


def _quantization(facts: Facts) -> str:
    rows = facts.get("quantization")
    if not rows:
        return ""
    worst = sorted(rows, key=lambda r: -(r.get("relative_error") or 0))
    columns = list(dict.fromkeys(["matrix", "bits", "relative_error", *(k for r in rows for k in r)]))
    body = plots.quantization(worst[:12]) + folded(f"all {len(rows)} matrices, worst first", table(worst, columns))
    return section(
        "Quantisation error", "Relative error of each integer matrix, |W - Q| / |W|; the worst twelve.", body
    )


def _tree(key: str, title: str, note: str) -> Callable[[Facts], str]:
    """A section that lists a nested dict."""

    def build(facts: Facts) -> str:
        pairs = list(_flatten(facts.get(key) or {}))
        items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in pairs)
        return section(title, note, f"<dl>{items}</dl>") if pairs else ""

    return build


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested dicts -> [("a.b", text)]."""
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in _flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return [(prefix or "value", text)]


_SECTIONS: tuple[Callable[[Facts], str], ...] = (
    _stages,
    _widths,
    _bytes,
    _spectra,
    _sensitivity,
    _heal,
    _quantization,
    _tree("results", "Results", "As in the manifest."),
    _tree(
        "config",
        "Effective configuration",
        "Defaults, file and flags together: what this bundle was compiled with.",
    ),
    _tree("source", "Provenance", "The checkpoint that was folded."),
    _tree("hardware", "Hardware", "Where it was compiled and measured."),
)
