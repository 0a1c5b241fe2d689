"""Direction of imports: compiler -> models, compiler -> runtime; runtime -> nothing of ours.

models takes one thing from the runtime: errors.py (which imports nothing), for SourceError.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {"runtime": {"runtime"}, "models": {"models"}, "compiler": {"compiler", "models", "runtime"}}
NOT_ON_THE_DEVICE = {
    "torch",
    "transformers",
    "peft",
    "onnx",
    "onnxscript",
    "safetensors",
    "matplotlib",
    "jiwer",
}
FILES = sorted(path for package in ALLOWED for path in (ROOT / package).glob("*.py"))


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write whisperfold.{path.parent.name}, not a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_go_one_way(path):
    for name in imported_modules(path):
        top, _, rest = name.partition(".")
        assert top not in ALLOWED, f"{path}: import whisperfold.{name}, never the bare name"
        if top == "whisperfold" and rest:
            is_shared = f"{rest}.".startswith("runtime.errors.")
            assert is_shared or rest.split(".")[0] in ALLOWED[path.parent.name], f"{path}: no import of {name}"
        if path.parent.name == "runtime":
            assert top not in NOT_ON_THE_DEVICE, f"{path}: {top} is not on the device"


def test_sounddevice_is_only_in_microphone():
    users = {path.name for path in FILES if "sounddevice" in imported_modules(path)}
    assert users == {"microphone.py"}


def test_errors_imports_nothing():
    assert imported_modules(ROOT / "runtime" / "errors.py") <= {"__future__", "__future__.annotations"}
