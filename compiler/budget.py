"""Measured sensitivity + a budget -> widths per layer.

Sensitivity of a cut: mean KL(uncut || cut) of the next-token distribution when only that twin of that layer is cut,
teacher-forced on the lessons, both models at the window that will be used. The budget picks, per site, the width
that minimises KL + price * parameters kept; the price is bisected until the parameters fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from whisperfold.compiler.calibrate import Moments, window_of
from whisperfold.compiler.factorize import cut_attention, cut_ffn
from whisperfold.compiler.teacher import Lesson, mel_window
from whisperfold.models.dims import ModelDimensions, Widths
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import ConfigError

FRACTIONS = {
    "qk": (0.25, 0.375, 0.5, 0.625, 0.75),
    "vo": (0.5, 0.625, 0.75, 0.875),
    "ffn": (0.5, 0.625, 0.75, 0.875),
}
"""Candidate widths, as fractions of the full one."""
MULTIPLE = 8


@dataclass(frozen=True)
class Cut:
    """One candidate: a twin of a layer at a width, what it costs and what it saves."""

    site: str
    """"encoder.0.qk", "decoder.2.cross_vo", "encoder.3.ffn"."""
    width: int
    kl: float
    """Mean KL per token, nats."""
    params_saved: int


def params_per_width(site: str, dims: ModelDimensions) -> int:
    """Return the parameters that one unit of width (or one neuron) costs at a site, biases included."""
    side, _, kind = site.split(".")
    n_state, n_head = (
        (dims.n_audio_state, dims.n_audio_head) if side == "encoder" else (dims.n_text_state, dims.n_text_head)
    )
    if kind == "ffn":
        return 2 * n_state + 1
    return n_head * (2 * n_state + (1 if kind.endswith("qk") else 0))


def sites(widths: Widths, sides: tuple[str, ...]) -> dict[str, int]:
    """Return every site of the sides with its width."""
    layers = {side: getattr(widths, side) for side in sides}
    return {
        f"{side}.{i}.{kind}": width
        for side, all_layers in layers.items()
        for i, layer in enumerate(all_layers)
        for kind, width in asdict(layer).items()
    }


def with_widths(widths: Widths, chosen: dict[str, int]) -> Widths:
    """Return widths with the chosen sites replaced."""
    layers: dict[str, list[Any]] = {"encoder": list(widths.encoder), "decoder": list(widths.decoder)}
    for site, width in chosen.items():
        side, i, kind = site.split(".")
        layers[side][int(i)] = replace(layers[side][int(i)], **{kind: width})
    return Widths(tuple(layers["encoder"]), tuple(layers["decoder"]))


def candidates(widths: Widths, sides: tuple[str, ...]) -> list[tuple[str, int]]:
    """Return (site, width) for every cut to be measured."""
    found = []
    for site, full in sites(widths, sides).items():
        kind = site.rsplit(".", 1)[1].rsplit("_", 1)[-1]
        found += [(site, max(MULTIPLE, round(full * f / MULTIPLE) * MULTIPLE)) for f in FRACTIONS[kind]]
    return found


@torch.no_grad()
def measure_cut(model: Whisper, moments: Moments, site: str, width: int, probe: Probe) -> float:
    """Return the KL of the model with one twin cut, which is put back afterwards."""
    side, i, kind = site.split(".")
    layer = getattr(model, side).layers[int(i)]
    part = "ffn" if kind == "ffn" else "cross" if kind.startswith("cross") else "attn"
    name, original = f"{side}.layers.{i}.{part}", getattr(layer, part)
    cut: Any
    if part == "ffn":
        cut = cut_ffn(original, moments[f"{name}.neurons"], width)
    else:
        full = original.q.out_features // original.n_head, original.v.out_features // original.n_head
        cut = cut_attention(original, moments, name, *((width, full[1]) if kind.endswith("qk") else (full[0], width)))
    setattr(layer, part, cut)
    try:
        return probe.divergence(model)
    finally:
        setattr(layer, part, original)


class Probe:
    """Fixed inputs and the uncut model's log-probabilities, against which cuts are compared."""

    @torch.no_grad()
    def __init__(self, model: Whisper, lessons: list[Lesson], kind: str, tail_s: float) -> None:
        """Run the uncut model once over the lessons."""
        self.mels = [
            mel_window(lesson.samples, window_of(lesson, kind, tail_s), model.dims.n_mels)[None] for lesson in lessons
        ]
        self.tokens = [lesson.sequences[0][0][None, :-1] for lesson in lessons]
        self.expected = self._log_probabilities(model)

    def _log_probabilities(self, model: Whisper) -> list[Tensor]:
        return [model(mel, ids)[0].log_softmax(-1) for mel, ids in zip(self.mels, self.tokens, strict=True)]

    @torch.no_grad()
    def divergence(self, model: Whisper) -> float:
        """Return the mean KL(uncut || model) per token, in nats."""
        total, n_tokens = 0.0, 0
        for expected, found in zip(self.expected, self._log_probabilities(model), strict=True):
            total += float((expected.exp() * (expected - found)).sum())
            n_tokens += len(expected)
        return total / n_tokens


def measure_sensitivity(
    model: Whisper,
    moments: Moments,
    probe: Probe,
    sides: tuple[str, ...],
    advance: Callable[[], None] = lambda: None,
) -> list[Cut]:
    """Return every candidate cut of the sides, measured."""
    full = sites(model.widths, sides)
    cuts = []
    for site, width in candidates(model.widths, sides):
        saved = (full[site] - width) * params_per_width(site, model.dims)
        cuts.append(Cut(site, width, measure_cut(model, moments, site, width, probe), saved))
        advance()
    return cuts


@dataclass(frozen=True)
class Budget:
    """What may be kept."""

    encoder: float = 1.0
    """Share of the encoder layers' parameters."""
    bytes: float | None = None
    """Size of the bundle; None is any."""

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that may have to pay."""
        return ("encoder", "decoder") if self.bytes is not None else ("encoder",) if self.encoder < 1 else ()


def parse_budget(text: str) -> Budget:
    """Parse "80%" of the encoder layers' parameters, "25MB" of bundle, or both: "55%, 50MB".

    Raises:
        ConfigError: neither form, or out of range.
    """
    budget = Budget()
    try:
        for part in map(str.strip, text.split(",")):
            if part.endswith("%") and 20 <= float(part[:-1]) <= 100 and budget.encoder == 1:
                budget = replace(budget, encoder=float(part[:-1]) / 100)
            elif part.upper().endswith("MB") and float(part[:-2]) > 0 and budget.bytes is None:
                budget = replace(budget, bytes=float(part[:-2]) * 1e6)
            else:
                raise ValueError(part)
    except ValueError:
        raise ConfigError(
            f"budget {text!r}: expected 20% to 100% of encoder layers, a bundle size such as 25MB, or both (55%, 50MB)"
        ) from None
    return budget


def spend(cuts: list[Cut], full: dict[str, int], params_to_save: float) -> dict[str, int]:
    """Return the width of every site so that at least params_to_save parameters go, at the least summed KL.

    Where none must go, none does: a cut that seems to lose less than nothing on a few clips is noise.

    Raises:
        ConfigError: even the smallest candidates do not save that many.
    """
    if params_to_save <= 0:
        return dict(full)
    options = {site: [Cut(site, width, 0.0, 0)] for site, width in full.items()}
    for cut in cuts:
        options[cut.site].append(cut)
    largest = sum(max(cut.params_saved for cut in choice) for choice in options.values())
    if params_to_save > largest:
        raise ConfigError(f"budget: {params_to_save:.0f} parameters must go, the candidates save at most {largest}")

    def at(price: float) -> list[Cut]:
        return [min(choice, key=lambda cut: cut.kl - price * cut.params_saved) for choice in options.values()]

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        enough = sum(cut.params_saved for cut in at(middle)) >= params_to_save
        low, high = (low, middle) if enough else (middle, high)
    return {cut.site: cut.width for cut in at(high)}
