"""Measured cuts + what may be kept, or lost -> widths per layer.

80%         of the encoder layers' parameters; the decoder stays whole
25MB        of bundle; encoder and decoder pay where it costs least
55%, 50MB   the encoder first, the decoder pays the rest
max_wer     the most that can go while no set's WER rises by more; each try is cut, exported and measured, not healed
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from whisperfold.compiler import bundling
from whisperfold.compiler.blocks import ROUNDING
from whisperfold.compiler.budget import Cut, parse_budget, sites, spend, with_widths
from whisperfold.compiler.calibrate import load_moments
from whisperfold.compiler.factorize import cut_model
from whisperfold.models.dims import Widths
from whisperfold.models.whisper import Whisper

if TYPE_CHECKING:
    from whisperfold.compiler.stages import Compile

TRIES = 5
"""Halvings of what is cut; 1/32 of all that could go is the grain."""


def choose_widths(run: Compile, uncut: Whisper, cuts: list[Cut], key: str) -> Widths:
    """Return the widths that the budget or the limit of the WER asks for.

    Args:
        run: the compile under way.
        uncut: the model before it is cut.
        cuts: measured candidates; none: nothing is cut.
        key: of the moments.

    Raises:
        ConfigError: even the smallest candidates are too large.
    """
    if not cuts:
        return uncut.widths
    if run.config.max_wer is not None:
        return _within_wer(run, uncut, cuts, key)
    budget = parse_budget(run.config.budget)
    saved, chosen = 0, dict[str, int]()
    if budget.encoder < 1:
        to_save = (1 - budget.encoder) * sum(p.numel() for layer in uncut.encoder.layers for p in layer.parameters())
        chosen = _spend(uncut, cuts, ("encoder",), to_save)
        saved = sum(cut.params_saved for cut in cuts if chosen.get(cut.site) == cut.width)
    if budget.bytes is not None:
        bytes_each = 4 if run.config.precision == "fp32" else 1
        to_save = (bundling.estimate_bytes(uncut, run) - budget.bytes) / bytes_each - saved
        sides = ("decoder",) if chosen else ("encoder", "decoder")
        chosen |= _spend(uncut, cuts, sides, max(0.0, to_save))
    return with_widths(uncut.widths, chosen)


def _spend(uncut: Whisper, cuts: list[Cut], sides: tuple[str, ...], to_save: float) -> dict[str, int]:
    """Return the widths of some sides' sites."""
    full = sites(uncut.widths, sides)
    return spend([cut for cut in cuts if cut.site in full], full, to_save)


def _within_wer(run: Compile, uncut: Whisper, cuts: list[Cut], key: str) -> Widths:
    """Return the smallest widths whose WER, before healing, is within max_wer of the original on every set."""
    limit = {name: wer + (run.config.max_wer or 0.0) for name, wer in run.stages[0].wer.items()}
    most = sum(max(cut.params_saved for cut in cuts if cut.site == site) for site in {cut.site for cut in cuts})
    moments = load_moments(run.work.file("moments.safetensors"))

    def fits(widths: Widths, share: float) -> bool:
        """Cut, export and measure, once."""

        def work(_: str) -> dict[str, Any]:
            lean, model = run.with_vocabulary(cut_model(uncut, moments, widths))
            path = run.work.file("stage-bundle")
            bundle = bundling.write_model(path, model, lean, config.window, config.precision, {"results": {}})
            return asdict(bundling.measure("try", bundle, config.verify, run.work.bar))

        config = run.config
        inputs = [
            key,
            widths.to_json(),
            config.verify,
            config.precision,
            config.vocabulary,
            config.tail_s,
            config.max_s,
            ROUNDING,
        ]
        found = run.work.stage(f"try-{round(share * 2**TRIES):02d}", inputs, work).facts
        run.work.console.print(f"  {found['bytes'] / 1e6:.1f} MB before healing: WER {found['wer']}, limit {limit}")
        return all(found["wer"][name] <= limit[name] for name in limit)

    best, low, high = uncut.widths, 0.0, 1.0
    for _ in range(TRIES):
        middle = (low + high) / 2
        widths = with_widths(uncut.widths, _spend(uncut, cuts, ("encoder", "decoder"), middle * most))
        if fits(widths, middle):
            best, low = widths, middle
        else:
            high = middle
    if best == uncut.widths:
        run.work.console.print("  nothing can be cut: the smallest try is above the limit")
    return best
