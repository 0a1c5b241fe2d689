"""Direction of imports: compiler -> models, compiler -> runtime; runtime -> nothing of ours.

models takes one thing from the runtime: errors.py (which imports nothing), for SourceError.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "runtime" / "samples" / "jfk.flac"
ALLOWED = {"runtime": {"runtime"}, "models": {"models"}, "compiler": {"compiler", "models", "runtime"}}
NOT_ON_THE_DEVICE = {
    "torch",
    "transformers",
    "peft",
    "onnx",
    "matplotlib",
    "jiwer",
    "wordfreq",
}
ONLY_WITH_THE_SERVE_EXTRA = {
    "starlette",
    "uvicorn",
    "websockets",
    "python_multipart",
    "prometheus_client",
    "wyoming",
    "zeroconf",
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


def test_sounddevice_is_only_in_devices():
    users = {path.name for path in FILES if "sounddevice" in imported_modules(path)}
    assert users == {"devices.py"}


def without_the_serve_extra(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code where importing what the extra installs fails, as if it were not installed."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({sorted(ONLY_WITH_THE_SERVE_EXTRA)}))\n"
    command = [sys.executable, "-c", hide + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT / ".links")


@pytest.mark.parametrize("module", ["cli", "listen_command", "serve_command", "transcribe", "stream", "recognizer"])
def test_what_the_serve_extra_installs_is_not_imported(module):
    done = without_the_serve_extra(f"import whisperfold.runtime.{module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("transcribe", str(CLIP)), ("listen", "--input", str(CLIP), "--as-fast-as-possible")],
    ids=lambda arguments: arguments[0],
)
def test_commands_work_without_the_serve_extra(bundle_path, arguments):
    run = "from whisperfold.runtime import cli; sys.exit(cli.main(sys.argv[1:]))"
    done = without_the_serve_extra(run, *arguments, "--bundle", str(bundle_path))
    assert done.returncode == 0, done.stderr
    assert "country" in done.stdout.lower()


def test_serve_says_which_extra_is_missing():
    done = without_the_serve_extra("from whisperfold.runtime import cli; sys.exit(cli.main(['serve']))")
    assert done.returncode == 2
    assert "pip install 'whisperfold[serve]'" in done.stderr and done.stderr.count("\n") == 1


def test_errors_imports_nothing():
    assert imported_modules(ROOT / "runtime" / "errors.py") <= {"__future__", "__future__.annotations"}
