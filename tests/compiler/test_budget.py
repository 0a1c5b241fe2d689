"""Budgets: parsed, spent where it costs least, and refused where they cannot be met."""

from __future__ import annotations

import pytest

from whisperfold.compiler.budget import (
    Budget,
    Cut,
    Probe,
    measure_cut,
    params_per_width,
    parse_budget,
    sites,
    spend,
    with_widths,
)
from whisperfold.compiler.calibrate import Moments
from whisperfold.compiler.factorize import cut_model
from whisperfold.compiler.teacher import Lesson
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80%", Budget(0.8)),
        ("38MB", Budget(bytes=38e6)),
        (" 25 mb", Budget(bytes=25e6)),
        ("55%, 50MB", Budget(0.55, 50e6)),
    ],
)
def test_parse(text: str, expected: Budget) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "80", "5%", "140%", "xMB", "-1MB", "55%,", "25MB 55%", "80%, 55%", "25MB,20MB"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="expected 20% to 100%"):
        parse_budget(text)


def test_spends_where_it_costs_least() -> None:
    full = {"encoder.0.qk": 64, "encoder.0.vo": 64}
    cuts = [
        Cut("encoder.0.qk", 32, 0.01, 100),
        Cut("encoder.0.qk", 16, 0.05, 150),
        Cut("encoder.0.vo", 32, 0.9, 100),
    ]
    assert spend([*cuts, Cut("encoder.0.vo", 48, -0.01, 50)], full, 0) == full
    assert spend(cuts, full, 90) == {"encoder.0.qk": 32, "encoder.0.vo": 64}
    assert spend(cuts, full, 240) == {"encoder.0.qk": 16, "encoder.0.vo": 32}
    with pytest.raises(ConfigError, match="save at most 250"):
        spend(cuts, full, 251)


@pytest.mark.parametrize(
    "site", ["encoder.0.qk", "encoder.1.vo", "encoder.0.ffn", "decoder.0.cross_qk", "decoder.0.ffn"]
)
def test_saved_parameters_are_the_models(tiny_model: Whisper, moments: Moments, site: str) -> None:
    full = sites(tiny_model.widths, ("encoder", "decoder"))[site]
    cut = cut_model(tiny_model, moments, with_widths(tiny_model.widths, {site: full - 8}))
    saved = sum(p.numel() for p in tiny_model.parameters()) - sum(p.numel() for p in cut.parameters())
    assert saved == 8 * params_per_width(site, tiny_model.dims)


def test_deeper_cuts_cost_more_and_leave_no_trace(tiny_model: Whisper, moments: Moments, lessons: list[Lesson]) -> None:
    probe = Probe(tiny_model, lessons[:3], "short", 0.5)
    assert probe.divergence(tiny_model) == pytest.approx(0, abs=1e-6)
    shallow, deep = (measure_cut(tiny_model, moments, "encoder.0.vo", width, probe) for width in (24, 8))
    assert 0 < shallow < deep
    assert probe.divergence(tiny_model) == pytest.approx(0, abs=1e-6)
