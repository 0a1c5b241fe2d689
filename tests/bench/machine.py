"""What every benchmark result says about itself: the machine, the bundle, and where results are kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from whisperfold.runtime.machine import DOT_PRODUCT

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT_BUNDLE = ROOT / "runtime" / "bundles" / "tiny.en"
FEATURES = {"avx2", "avx512f", "asimd"} | DOT_PRODUCT
DEFAULT_SPEECH = ROOT.parent / "shared" / "speech"


def describe_machine() -> dict[str, Any]:
    """CPU, memory, system, and the load before the run: with other work on it the figures are worthless."""
    cpu, memory, flags = platform.processor() or platform.machine(), None, set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
        flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
        memory = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) * 1024
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cpu_features": sorted(flags & FEATURES),
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "blas_kernel_forced": os.environ.get("OPENBLAS_CORETYPE"),
        "date": time.strftime("%Y-%m-%d"),
    }


def has_dot_product(machine: dict[str, Any]) -> bool:
    """Tell whether a described machine multiplies 8-bit numbers at full speed."""
    return bool(DOT_PRODUCT & set(machine["cpu_features"]))


def describe_bundle(path: Path) -> dict[str, Any]:
    """Name, precision, window, bytes of the listed files, SHA-256 of the manifest, which holds that of every one."""
    raw = (path / "manifest.json").read_bytes()
    manifest = json.loads(raw)
    return {
        "name": manifest.get("name"),
        "precision": manifest.get("precision"),
        "window": manifest.get("window", {}).get("kind"),
        "bytes": sum(entry["bytes"] for entry in manifest.get("files", {}).values()),
        "manifest_sha256": hashlib.sha256(raw).hexdigest(),
    }


def save_result(name: str, result: dict[str, Any], folder: Path) -> Path:
    """Write results/NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
