"""What a compile is told to do: TOML file and flags -> frozen dataclasses, checked before anything runs."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whisperfold.compiler.adapt import AdaptConfig
from whisperfold.compiler.adapters import ADAPTERS
from whisperfold.compiler.budget import parse_budget
from whisperfold.compiler.frames import FramesConfig
from whisperfold.compiler.heal import HealConfig
from whisperfold.compiler.refit import RefitConfig
from whisperfold.compiler.student import StudentConfig
from whisperfold.compiler.vocabulary import ALL, codes_of
from whisperfold.runtime.errors import ConfigError

WINDOWS = ("short", "full")
PRECISIONS = ("int8", "mixed", "fp32")


@dataclass(frozen=True)
class CompileConfig:
    """One compile; audio, verify and speaker of a TOML file are relative to that file."""

    source: str = "tiny.en"
    """Checkpoint: directory, hub id or short name."""
    revision: str | None = None
    """Git revision on the hub; default the newest."""
    audio: tuple[str, ...] = ()
    """Manifests or folders of speech to calibrate and heal on; default the few minutes that ship in the package."""
    speaker: str | None = None
    """Labelled recordings of one person to adapt to, after healing."""
    verify: tuple[str, ...] = ()
    """Manifests with transcripts; the WER after every stage is measured on them."""
    budget: str = "100%"
    """What to keep: a share of the encoder layers' parameters (80%), a bundle size (38MB), or both (55%, 50MB)."""
    max_wer: float | None = None
    """Instead of a budget: cut as much as leaves the WER of every verify set within so many points, before healing."""
    window: str = "short"
    """"short": encode what was said and a tail; "full": always 30 s, as the original."""
    tail_s: float = 0.5
    """Silence after the speech in a short window, seconds."""
    max_s: float = 20.0
    """Longest speech in one window, seconds."""
    precision: str = "int8"
    """int8, fp32, or mixed: the token embedding in 4 bits, the rest in 8."""
    vocabulary: str = "all"
    """all, or the languages whose words the bundle keeps whole tokens for: en,de."""
    join_s: tuple[float, float] = (2.0, 14.0)
    """Clips of one speaker are joined until a length drawn from this range, seconds."""
    cut_short_share: float = 0.0
    """Share of the utterances that end before their end, as what a stream hears does; tiny.en gains by it, base loses
    (docs/decisions/0020)."""
    every_nth: int = 1
    """Take every n-th utterance of the second and later audio sets."""
    max_teacher_wer: float = 0.4
    """Leave out utterances whose transcript the original misses by more than this."""
    calibration_utterances: int = 40
    """Utterances whose second moments are taken."""
    probe_utterances: int = 6
    """Utterances on which the sensitivity of each cut is measured."""
    threads: int = 2
    """torch threads."""
    seed: int = 0
    student: StudentConfig = field(default_factory=StudentConfig)
    """Distil a decoder of fewer layers first; by default none."""
    window_heal: HealConfig = field(default_factory=HealConfig)
    """The uncut model learns the short window."""
    refit: RefitConfig = field(default_factory=RefitConfig)
    """The cut encoder's output projections are solved on its own inputs."""
    frames: FramesConfig = field(default_factory=FramesConfig)
    """The cut encoder learns the uncut one's frames and words."""
    heal: HealConfig = field(default_factory=lambda: HealConfig(epochs=1.0, learning_rate=2e-4))
    """The cut model, end to end."""
    adapt: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value, allowed in (
            ("window", self.window, WINDOWS),
            ("precision", self.precision, PRECISIONS),
            ("window_heal.adapter", self.window_heal.adapter, ADAPTERS),
            ("heal.adapter", self.heal.adapter, ADAPTERS),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} = {value!r}: expected one of {', '.join(allowed)}")
        for name, number, low, high in (
            ("tail_s", self.tail_s, 0.0, 5.0),
            ("max_s", self.max_s, 2.0, 29.0),
            ("cut_short_share", self.cut_short_share, 0.0, 1.0),
            ("every_nth", self.every_nth, 1, 1000),
            ("student.decoder_layers", self.student.decoder_layers, 0, 100),
            ("student.epochs", self.student.epochs, 0, 1000),
            ("window_heal.epochs", self.window_heal.epochs, 0, 1000),
            ("window_heal.rank", self.window_heal.rank, 1, 512),
            ("refit.batches", self.refit.batches, 0, 10**4),
            ("frames.epochs", self.frames.epochs, 0, 1000),
            ("heal.epochs", self.heal.epochs, 0, 1000),
            ("heal.rank", self.heal.rank, 1, 512),
            ("threads", self.threads, 1, 256),
        ):
            if not low <= number <= high:
                raise ConfigError(f"{name} = {number}: expected {low} to {high}")
        budget = parse_budget(self.budget)
        if self.vocabulary != ALL:
            codes_of(self.vocabulary)
        if self.max_wer is not None and (not self.verify or self.max_wer < 0 or budget.sides):
            raise ConfigError(f"max_wer = {self.max_wer}: expected 0 or more, a verify set, and budget 100% beside it")


def load_config(path: Path | None, **flags: Any) -> CompileConfig:
    """Return defaults < file < flags that are not None.

    Args:
        path: TOML file, or None.
        **flags: fields of CompileConfig; heal_epochs for window_heal.epochs: at 0 nothing is healed or refitted, and no
            student is taught.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known one), wrong type or range.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not readable as TOML ({error})") from error
        data |= beside(path, data)
    heal_epochs = flags.pop("heal_epochs", None)
    data |= {name: value for name, value in flags.items() if value is not None}
    if heal_epochs is not None:
        data["window_heal"] = data.get("window_heal", {}) | {"epochs": heal_epochs}
    if heal_epochs == 0:
        data["student"] = data.get("student", {}) | {"epochs": 0}
        data["refit"] = data.get("refit", {}) | {"batches": 0}
        data["frames"] = data.get("frames", {}) | {"epochs": 0}
        data["heal"] = data.get("heal", {}) | {"epochs": 0}
    return build_config(CompileConfig(), data, str(path or "flags"))


def beside(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a TOML file that are paths, relative to that file."""
    found: dict[str, Any] = {}
    for name in {"audio", "verify", "speaker"} & data.keys():
        entries = [data[name]] if name == "speaker" else data[name]
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            expected = "a path" if name == "speaker" else "a list of paths"
            raise ConfigError(f"{path}: {name} = {data[name]!r}: expected {expected}")
        paths = [str(path.parent / entry) for entry in entries]
        found[name] = paths[0] if name == "speaker" else paths
    return found


def build_config(defaults: Any, data: dict[str, Any], where: str) -> Any:
    """Change a dataclass by a table; nested tables change its dataclasses, arrays become tuples."""
    fields = {f.name: f for f in dataclasses.fields(defaults)}
    values = {}
    for name, value in data.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(fields)}"
            raise ConfigError(f"{where}: unknown key {name!r}{hint}")
        if isinstance(value, dict) and dataclasses.is_dataclass(getattr(defaults, name)):
            value = build_config(getattr(defaults, name), value, f"{where} [{name}]")
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return dataclasses.replace(defaults, **values)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: a value of the wrong type ({error})") from error
