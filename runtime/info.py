"""A bundle's manifest -> tables on the terminal: source, ranks, window, where the bytes are, results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_bundle(path: Path, manifest: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what a bundle is.

    Args:
        path: the bundle's directory.
        manifest: what its manifest.json holds; fields that are missing are left out.
        console: where to print; None is stdout.
    """
    console = console or Console()
    console.print(_summary(path, manifest))
    for part, title in (("encoder", "encoder ranks"), ("decoder", "decoder ranks")):
        layers = manifest.get("widths", {}).get(part, [])
        if layers:
            console.print(_widths(title, layers))
    if manifest.get("bytes"):
        console.print(_bytes(manifest["bytes"]))
    results = list(_flat(manifest.get("results", {})))
    if results:
        console.print(_pairs("results", results))


def _summary(path: Path, manifest: Mapping[str, Any]) -> Table:
    """Name, source, window, precision and size."""
    source = manifest.get("source", {})
    window = manifest.get("window", {})
    total = sum(int(entry.get("bytes", 0)) for entry in manifest.get("files", {}).values())
    dims = manifest.get("dims", {})
    rows = [
        ("path", str(path)),
        ("source", str(source.get("name", "?"))),
        ("revision", str(source.get("revision") or "?")),
        ("origin", str(source.get("origin", "?"))),
        ("source SHA-256", str(source.get("sha256", "?"))),
        ("licence", str(source.get("licence", "?"))),
        ("layers", f"encoder {dims.get('n_audio_layer', '?')}, decoder {dims.get('n_text_layer', '?')}"),
        ("window", _window(window)),
        ("precision", str(manifest.get("precision", "?"))),
        ("size", _megabytes(total)),
        ("format", str(manifest.get("format", "?"))),
    ]
    return _pairs(f"bundle {manifest.get('name', path.name)}", rows)


def _window(window: Mapping[str, Any]) -> str:
    """Describe how much audio the encoder runs on."""
    if window.get("kind") == "short":
        return (
            f"short: the audio + {window.get('tail_s', '?')} s, "
            f"{window.get('min_s', '?')} to {window.get('max_s', '?')} s"
        )
    return "full: always 30 s" if window.get("kind") == "full" else "?"


def _widths(title: str, layers: Sequence[Mapping[str, Any]]) -> Table:
    """Head width of each twin kind and number of neurons, one row per layer."""
    kinds = list(layers[0])
    table = Table(title=title, title_justify="left")
    table.add_column("layer", justify="right")
    for kind in kinds:
        table.add_column(kind.replace("_", " "), justify="right")
    for index, layer in enumerate(layers):
        table.add_row(str(index), *(str(layer.get(kind, "")) for kind in kinds))
    return table


def _bytes(parts: Mapping[str, Any]) -> Table:
    """Where the bytes are, largest first, with their share."""
    table = Table(title="where the bytes are", title_justify="left")
    table.add_column("part")
    table.add_column("size", justify="right")
    table.add_column("share", justify="right")
    total = sum(int(size) for size in parts.values()) or 1
    for part, size in sorted(parts.items(), key=lambda item: -int(item[1])):
        table.add_row(part, _megabytes(int(size)), f"{100 * int(size) / total:.1f} %")
    return table


def _pairs(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """A table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("name")
    table.add_column("value", overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _flat(results: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    """Nested results as (dotted name, value) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, value in results.items():
        if isinstance(value, Mapping):
            pairs.extend(_flat(value, f"{prefix}{name}."))
        else:
            pairs.append((f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return pairs


def _megabytes(size_bytes: int) -> str:
    """Bytes as MB (10^6)."""
    return f"{size_bytes / 1e6:.2f} MB"
