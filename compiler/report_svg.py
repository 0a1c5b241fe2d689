"""The look of the report's plots: a matplotlib figure -> inline SVG in the page's colours, light and dark.

matplotlib draws with placeholder colours; `to_svg` replaces each by a CSS variable of the page, keeps text as
text and takes out what an inline SVG does not need. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_VARIABLES = {"#010203": "--fg", "#010204": "--soft", "#010205": "--grid", "#010206": "--card",
              "#010211": "--a", "#010212": "--b", "#010213": "--c",
              "#010214": "--d", "#010215": "--e", "#010216": "--f"}  # fmt: skip
FG, SOFT, GRID, CARD, *SERIES = _VARIABLES
_XLINK = "http://www.w3.org/1999/xlink"
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": FG,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.titlecolor": FG,
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "path.simplify": True,
}
_UNNEEDED = (
    (r"<style.*?</style>", ""),  # would apply to the whole page; the page has its own
    (r" font-family: [^;]*;", ""),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r'<path d="[^"]*" style="fill: none"/>', ""),  # invisible backgrounds
    (r"(?<=[ \"(\n-])(\d+\.\d)\d+(?=[^<>]*>)", r"\1"),  # coordinates to a tenth of a pixel; labels stay
    (r"(?<=[;:]) | stroke-linecap: square| stroke-linejoin: miter", ""),
    (r"\s*\n\s*", " "),
    (r"> <", "><"),
    (r"<defs></defs>|<g/>|<g></g>", ""),
    (r"<g></g>|<g/>", ""),
)


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """A figure in the page's style, without pyplot's global state."""
    with matplotlib.rc_context(_RC):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(drawn)
        yield drawn


def to_svg(drawn: Figure, label: str) -> str:
    """Return the figure as an <svg> element that uses the page's colours."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    used = set(re.findall(r"[\"(]#([^\")]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    opening = rf'<svg xmlns:xlink="{_XLINK}" viewBox="\1" role="img" aria-label="{label}">'
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', opening, text, count=1)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    for pattern, replacement in _UNNEEDED:
        text = re.sub(pattern, replacement, text, flags=re.S)
    return text.strip()
