"""What is installed: the wheel holds what the tree holds, and the runtime pulls no compiler dependency."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "compiler", "models")
DATA_FOLDERS = ("bundles", "canary", "prompts", "samples", "silero", "web")
"""Of the runtime; package-data in pyproject.toml names them."""
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_packages_on_disk_are_packages_listed():
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    on_disk = {
        ".".join(("whisperfold", *init.parent.relative_to(ROOT).parts))
        for package in PACKAGES
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert on_disk == listed
    assert set(PYPROJECT["tool"]["setuptools"]["package-dir"]) == listed


def test_every_python_file_is_in_a_listed_package():
    for package in PACKAGES:
        stray = [path for path in (ROOT / package).rglob("*.py") if path.parent != ROOT / package]
        assert not stray, f"packages are flat; {stray} would be missing from the wheel"


@pytest.mark.parametrize("package", PACKAGES)
def test_links_for_static_tools(package):
    link = ROOT / ".links" / "whisperfold" / package
    assert link.is_symlink() and link.resolve() == ROOT / package


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of a copy of the tree: building in the tree itself would leave a stale build/ behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", str(out), str(copy)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def tree_files(*patterns: str) -> set[str]:
    return {
        f"whisperfold/{path.relative_to(ROOT).as_posix()}"
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file()
    }


def test_wheel_holds_every_module_and_all_data(wheel):
    expected = tree_files("*/py.typed", *(f"runtime/{folder}/**/*" for folder in DATA_FOLDERS))
    expected |= tree_files(*(f"{package}/*.py" for package in PACKAGES))
    missing = expected - set(wheel.namelist())
    assert not missing
    for name in ("samples/jfk.flac", "silero/silero_vad_16k_sequence.onnx", "silero/LICENSE", "web/index.html"):
        assert f"whisperfold/runtime/{name}" in wheel.namelist()


def test_every_folder_of_data_is_in_the_wheel():
    on_disk = {path.name for path in (ROOT / "runtime").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert on_disk == set(DATA_FOLDERS)


@pytest.mark.parametrize("bundle", ["tiny.en", "base"])
def test_wheel_holds_the_bundles(wheel, bundle):
    if not (ROOT / "runtime/bundles" / bundle).is_dir():
        pytest.skip(f"{bundle} is not in this tree: run make bundle MODEL={bundle}")
    names = {Path(name).name for name in wheel.namelist() if f"/bundles/{bundle}/" in name}
    assert {"manifest.json", "encoder.onnx", "decoder.onnx"} <= names
    assert {"tokenizer.json", "tokenizer.json.gz"} & names


def test_wheel_is_small_enough_for_an_index(wheel):
    assert sum(info.compress_size for info in wheel.infolist()) < 100e6  # PyPI's limit for one file


def test_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"whisperfold"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name or "/tests/" in name]


def test_wheel_declares_commands_and_only_the_runtime_by_default(wheel):
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    entries = wheel.read(f"{info}/entry_points.txt").decode()
    assert "whisperfold = whisperfold.runtime.cli:main" in entries
    assert "compile = whisperfold.compiler.cli:compile_command" in entries
    assert "verify = whisperfold.compiler.cli:verify_command" in entries
    metadata = wheel.read(f"{info}/METADATA").decode()
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not [line for line in base if any(name in line for name in ("torch", "transformers", "peft", "onnx>"))]


def test_runtime_pulls_no_compiler_dependency():
    code = (
        "import sys, pkgutil, importlib, whisperfold.runtime as runtime\n"
        "for module in pkgutil.iter_modules(runtime.__path__):\n"
        "    importlib.import_module('whisperfold.runtime.' + module.name)\n"
        "banned = {'torch', 'transformers', 'peft', 'onnx', 'matplotlib', 'sounddevice'}\n"
        "ours = sorted(name for name in sys.modules if name.startswith('whisperfold.'))\n"
        "print(sorted(banned & set(sys.modules)), ours)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT / ".links"
    )
    assert done.returncode == 0, done.stderr
    banned, ours = done.stdout.split("] [")
    assert banned == "["
    assert "compiler" not in ours and "whisperfold.models" not in ours


def test_help_starts_without_the_heavy_imports():
    code = (
        "import sys, whisperfold.runtime.cli as cli\n"
        "cli.main(['--help'])\n"
        "print(sorted({'numpy', 'onnxruntime', 'soundfile', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT / ".links"
    )
    assert done.returncode == 0, done.stderr
    assert "transcribe" in done.stdout and "compile" in done.stdout
    assert done.stderr.strip() == "[]"
