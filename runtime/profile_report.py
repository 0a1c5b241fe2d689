"""Facts and sentences of an enrollment -> one self-contained HTML page that stays with the profile.

The decision and its figures, every sentence before and after, the learning curve (inline SVG), what changed where.
No script, no network; light and dark.
"""

from __future__ import annotations

import difflib
import html
from collections.abc import Mapping, Sequence
from typing import Any

from whisperfold.runtime.error_rate import Score, normalised_words

_STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--fg:#1d2126;--soft:#667079;--grid:#dfe3e6;--card:#fff;--a:#2563a8;
--b:#c2570c;--good:#2e7d4f}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e4e7ea;--soft:#9aa4ad;--grid:#30363c;--card:#1b1f23;
--a:#6ea8e6;--b:#f0964f;--good:#6cc08b}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}h1{font-size:1.7rem;margin:0}h2{font-size:1.1rem;margin:0}
p.note,.lead{color:var(--soft);margin:.2rem 0 .8rem;max-width:46rem}
section,.tile{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:1rem 1.2rem;margin:1rem 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.75rem}.tile{margin:0}
.tile b{display:block;font-size:1.3rem;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:.85rem}
.yes{color:var(--good)}.no{color:var(--b)}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
td,th{text-align:left;vertical-align:top;padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--grid)}
th{color:var(--soft);font-weight:600}td.n{text-align:right;white-space:nowrap}
mark{background:none;color:var(--b);font-weight:600}.scroll{overflow-x:auto}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
@media(max-width:34rem){main{padding:1rem .7rem}}
"""


def render_report(
    name: str,
    facts: Mapping[str, Any],
    before: Sequence[Score],
    after: Sequence[Score],
    left_out: Sequence[tuple[str, str]],
) -> str:
    """Return the page.

    Args:
        name: of the profile.
        facts: of profile.json.
        before: the sentences as the bundle hears them.
        after: the same, by adapters that were not trained on them.
        left_out: recordings that were not used, with the reason.
    """
    parts = [_header(name, facts), _sentences(before, after, facts), _curve(facts["history"]), _changes(facts)]
    if left_out:
        rows = "".join(f"<tr><td>{_text(file)}</td><td>{_text(reason)}</td></tr>" for file, reason in left_out)
        parts.append(_section("Left out", "Recordings that were not used.", f"<table>{rows}</table>"))
    recipe = {"strength": facts["strength"]} | facts["options"]
    parts.append(_section("Recipe", "", _table([(key, str(value)) for key, value in recipe.items()])))
    title = _text(f"{name}: enrollment report")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _header(name: str, facts: Mapping[str, Any]) -> str:
    """The decision and its figures."""
    owner, canary, rules = facts["owner"], facts["canary"], facts["rules"]
    verdict = '<b class="yes">Promoted</b>' if facts["promoted"] else '<b class="no">Not taken</b>'
    tiles = [
        (f"{owner['before']:.1f} → {owner['after']:.1f} %", "your word error rate"),
        (f"{100 * owner['probability_better']:.0f} %", f"sure of it; {100 * rules['min_probability']:.0f} % needed"),
        (f"{canary['before']:.1f} → {canary['after']:.1f} %", f"others; {rules['max_canary_rise']:+.1f} allowed"),
        (f"{facts['recordings']}, {facts['recordings_s']:.0f} s", "recordings"),
        (f"{facts['seconds'] / 60:.1f} min", f"of work, {facts['epochs']} epochs"),
    ]
    cells = "".join(f'<div class="tile"><b>{_text(b)}</b><span>{_text(label)}</span></div>' for b, label in tiles)
    interval = f"95 % interval of the change: {owner['low']:+.1f} to {owner['high']:+.1f} points"
    return (
        f"<h1>{_text(name)}</h1><p class='lead'>{verdict} {_text(facts['reason'])}. {interval}.</p>"
        f"<p class='lead'>On {_text(facts['bundle_name'])}, whose weights are unchanged.</p>"
        f'<div class="tiles">{cells}</div>'
    )


def _sentences(before: Sequence[Score], after: Sequence[Score], facts: Mapping[str, Any]) -> str:
    """Every sentence before and after; words that differ from the text are marked."""
    rows = "".join(
        f"<tr><td>{_text(old.reference)}</td><td>{_marked(old)}</td><td>{_marked(new)}</td>"
        f'<td class="n">{old.errors} → {new.errors}</td></tr>'
        for old, new in zip(before, after, strict=True)
    )
    note = (
        f"Cross-validated in {facts['folds']} folds: each sentence was heard by an adapter that was not trained on it, "
        "but that was stopped early if it did these sentences harm. The profile itself was then trained on all "
        "recordings, so it has seen these. Recordings with the model's own text are learned from, and not shown."
    )
    head = "<tr><th>Text</th><th>Before</th><th>After</th><th>Errors</th></tr>"
    return _section("Sentences", note, f'<div class="scroll"><table>{head}{rows}</table></div>')


def _curve(history: Sequence[Sequence[Mapping[str, float]]]) -> str:
    """Loss per epoch of every run: learned (blue) and held out (orange)."""
    lines = [([e["loss"] for e in run], "var(--a)") for run in history]
    lines += [([e["held_out_loss"] for e in run if "held_out_loss" in e], "var(--b)") for run in history]
    values = [value for line, _ in lines for value in line]
    n, low, high = max(len(line) for line, _ in lines), min(values), max(values)
    span = (high - low) or 1.0

    def point(i: int, value: float) -> str:
        return f"{40 + 600 * i / max(1, n - 1):.1f},{10 + 150 * (high - value) / span:.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" '
        f'points="{" ".join(point(i, value) for i, value in enumerate(line))}"/>'
        for line, colour in lines
        if line
    )
    labels = f'<text x="0" y="14">{high:.2f}</text><text x="0" y="164">{low:.2f}</text>'
    labels += "".join(f'<text x="{40 + 600 * i / max(1, n - 1):.0f}" y="180">{i + 1}</text>' for i in range(n))
    svg = f'<svg viewBox="0 0 660 186" role="img" aria-label="loss per epoch">{drawn}{labels}</svg>'
    return _section("Learning curve", "Loss per epoch: learned (blue) and held out (orange), nats per token.", svg)


def _changes(facts: Mapping[str, Any]) -> str:
    """How large the change of each module is, as bars."""
    norms: Mapping[str, float] = facts["norms"]
    top = max(norms.values(), default=0.0) or 1.0
    rows = "".join(
        f'<tr><td>{_text(module)}</td><td style="width:50%"><svg viewBox="0 0 100 4" preserveAspectRatio="none" '
        f'height="10"><rect width="{100 * norm / top:.1f}" height="4" fill="var(--a)"/></svg></td>'
        f'<td class="n">{norm:.2f}</td></tr>'
        for module, norm in norms.items()
    )
    return _section("What changed", "Norm of the change of each projection.", f"<table>{rows}</table>")


def _marked(item: Score) -> str:
    """The hypothesis, with the words marked that are not in the text at that place."""
    heard = item.hypothesis.split()
    keys = [" ".join(normalised_words(word)) for word in heard]
    expected = normalised_words(item.reference)
    right: set[int] = set()
    for _, start, size in difflib.SequenceMatcher(None, expected, keys, autojunk=False).get_matching_blocks():
        right.update(range(start, start + size))
    shown = [_text(word) for word in heard]
    return " ".join(word if i in right or not keys[i] else f"<mark>{word}</mark>" for i, word in enumerate(shown))


def _section(title: str, note: str, body: str) -> str:
    """A card."""
    return f'<section><h2>{_text(title)}</h2><p class="note">{_text(note)}</p>{body}</section>'


def _table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    cells = "".join(f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in rows)
    return f"<table>{cells}</table>"


def _text(value: object) -> str:
    """Escaped."""
    return html.escape(str(value))
