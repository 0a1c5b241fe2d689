"""What a study compares: TOML file -> methods, budgets and the recipe that all of them share -> cells.

    recipe = "tiny.en.toml"          # as for `whisperfold compile`: source, audio, verify, window, [heal]
    budgets = [90, 75, 55]           # % of the encoder layers' parameters
    own_budgets = [85, 80]           # more of them, for the joint twins alone
    methods = ["ours", "lite-asr"]   # of baselines.METHODS
    frames = { epochs = 1 }          # any key of the recipe may be set here too

Paths are relative to the file that names them.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisperfold.compiler.baselines import METHODS
from whisperfold.compiler.config import CompileConfig, beside, build_config, load_config
from whisperfold.runtime.errors import ConfigError

REFERENCE = "reference"
"""The original checkpoint at 30 s, fp32: not a method, but what all are measured against."""


@dataclass(frozen=True)
class Cell:
    """One bundle of the study."""

    method: str
    budget: int
    """% of the encoder layers' parameters."""
    healed: bool

    @property
    def name(self) -> str:
        """Return "svd-55-healed", the name of its artefacts."""
        return f"{self.method}-{self.budget}" + ("-healed" if self.healed else "")

    def matches(self, pattern: str) -> bool:
        """Return whether it has everything that a pattern such as "svd,55,healed" asks for."""
        own = {self.method, str(self.budget), "healed" if self.healed else "cut"}
        return {part.strip().removesuffix("%") for part in pattern.split(",")} <= own


@dataclass(frozen=True)
class StudyConfig:
    """Methods times budgets, each before and after the recipe's healing."""

    recipe: CompileConfig
    budgets: tuple[int, ...] = (90, 75, 55)
    """% of the encoder layers' parameters."""
    own_budgets: tuple[int, ...] = ()
    """More budgets, for the joint twins alone: how far they may be cut."""
    methods: tuple[str, ...] = tuple(METHODS)
    timed_clips: int = 12
    """Clips of the first verify set on which speed is measured."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for method in self.methods:
            if method not in METHODS:
                raise ConfigError(f"methods: {method!r}: expected some of {', '.join(METHODS)}")
        for budget in self._all_budgets:
            if not isinstance(budget, int) or not 20 <= budget <= 99:
                raise ConfigError(f"budgets: {budget!r}: expected whole numbers from 20 to 99 (%)")
        if not self.recipe.verify:
            raise ConfigError("verify: no set to measure on; name one with transcripts in the study or its recipe")

    @property
    def _all_budgets(self) -> tuple[int, ...]:
        return (*self.budgets, *self.own_budgets)

    def cells(self, only: tuple[str, ...] = ()) -> list[Cell]:
        """Return the cells, the quick ones first; only those that match one of the patterns, if there are any.

        Raises:
            ConfigError: a pattern matches nothing.
        """
        cells = [Cell(REFERENCE, 100, False)]
        for healed in (False, True):
            cells += [Cell("original", 100, healed)] if "original" in self.methods else []
            others = [method for method in self.methods if method != "original"]
            planned = [(budget, method) for budget in self.budgets for method in others]
            planned += [(budget, "ours") for budget in self.own_budgets if "ours" in others]
            ordered = sorted(dict.fromkeys(planned), key=lambda cell: -cell[0])
            cells += [Cell(method, budget, healed) for budget, method in ordered]
        for pattern in only:
            if not any(cell.matches(pattern) for cell in cells):
                methods, budgets = ", ".join((REFERENCE, *self.methods)), ", ".join(map(str, self._all_budgets))
                raise ConfigError(
                    f"--only {pattern}: no such cell; methods {methods}; budgets {budgets}; cut or healed"
                )
        return [cell for cell in cells if not only or any(cell.matches(pattern) for pattern in only)]


def load_study(path: Path) -> StudyConfig:
    """Read a study's TOML file.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known one), wrong type or range.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as TOML ({error})") from error
    own = {field.name for field in dataclasses.fields(StudyConfig)} & data.keys()
    settings: dict[str, Any] = {name: data.pop(name) for name in own}
    recipe = load_config(path.parent / settings.pop("recipe")) if "recipe" in own else CompileConfig()
    data |= beside(path, data)
    lists: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return StudyConfig(build_config(recipe, data, str(path)), **lists)
