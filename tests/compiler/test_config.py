"""Configuration: defaults < file < flags; wrong keys, types and ranges are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisperfold.compiler.config import load_config
from whisperfold.runtime.errors import ConfigError


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    tables = "[window_heal]\nepochs = 2\nrank = 8\n[heal]\nrank = 4\n"
    file.write_text(f'source = "base"\nbudget = "80%"\naudio = ["a.jsonl"]\nspeaker = "me.jsonl"\n{tables}')
    config = load_config(file, budget="60%", source=None, heal_epochs=1.5)
    assert (config.source, config.budget) == ("base", "60%")
    assert (config.audio, config.speaker) == ((str(tmp_path / "a.jsonl"),), str(tmp_path / "me.jsonl"))
    assert (config.window_heal.epochs, config.window_heal.rank, config.window_heal.batch_s) == (1.5, 8, 64.0)
    assert (config.heal.epochs, config.heal.rank, config.heal.learning_rate) == (1.0, 4, 2e-4)
    unhealed = load_config(file, heal_epochs=0)
    assert (unhealed.window_heal.epochs, unhealed.frames.epochs, unhealed.heal.epochs) == (0, 0, 0)
    assert (config.refit.batches, unhealed.refit.batches) == (40, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sorce = "base"', "unknown key 'sorce'; did you mean source?"),
        ("[heal]\nepoch = 2", "unknown key 'epoch'; did you mean epochs?"),
        ('window = "long"', "window = 'long': expected one of short, full"),
        ('precision = "int3"', "precision = 'int3': expected one of int8, mixed, fp32"),
        ("tail_s = 60", "tail_s = 60: expected 0.0 to 5.0"),
        ('audio = "speech"', "audio = 'speech': expected a list of paths"),
        ("speaker = 3", "speaker = 3: expected a path"),
        ('tail_s = "a"', "a value of the wrong type"),
        ('budget = "much"', "budget 'much': expected 20%"),
        ("source = ", "not readable as TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        load_config(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not readable as TOML"):
        load_config(tmp_path / "none.toml")


def test_the_packaged_recipe_is_valid() -> None:
    recipe = Path(__file__).parents[2] / "compiler" / "configs" / "tiny.en.toml"
    config = load_config(recipe)
    assert config.source == "tiny.en" and config.window_heal.epochs > 0
