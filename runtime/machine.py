"""What this machine can do for speech recognition: CPU features, cores, memory, temperature -> findings.

Everything is read from /proc, /sys and the Raspberry Pi's vcgencmd; what is not there gives no finding.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "warning", "broken"]
MIN_MEMORY_BYTES = 300_000_000
"""The packaged bundle, numpy and onnxruntime need about 200 MB."""
DOT_PRODUCT = {"asimddp", "i8mm", "avx_vnni", "avx512_vnni"}
"""With one of these, 8-bit products are several times as fast."""
HOT_C = 80.0
"""A Raspberry Pi slows down from here on."""
_THROTTLED_NOW = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "temperature limit"}
_POWER_AND_COOLING = "use a 5 V supply with 3 A (Pi 4) or 5 A (Pi 5), and cool the board"


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor looked at."""

    check: str
    """What was looked at, e.g. "microphone"."""
    state: State
    found: str
    advice: str = ""
    """What to do about it; empty when there is nothing to do."""

    def record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def examine_machine(root: Path = Path("/"), run: Callable[[list[str]], str] | None = None) -> Iterator[Finding]:
    """Look at CPU, cores, memory and temperature.

    Args:
        root: where proc and sys are; tests have their own.
        run: runs a command and returns what it prints, "" when it fails; None is the real one.
    """
    yield _cpu(root)
    yield _cores(root)
    yield from _memory(root)
    yield from _temperature(root)
    yield from _throttling(run or _run)
    yield from _governor(root)


def cpu_features(root: Path = Path("/")) -> set[str]:
    """Return the flags of the first CPU, as Linux names them (x86 "flags", ARM "Features")."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def usable_cores(root: Path = Path("/")) -> tuple[int, float | None]:
    """Return the CPUs that this process may run on, and the CPU time per time that its cgroup allows (None: all)."""
    return len(os.sched_getaffinity(0)), _cgroup_quota(root)


def hottest_zone_c(thermal: Path) -> float | None:
    """Return the temperature of the hottest thermal zone, None without one.

    A power chip's zone is left out: PMIC-Die of a Jetson says 100 °C at all times.

    Args:
        thermal: /sys/class/thermal; thermal_zone*/temp in it are thousandths of a degree.
    """
    zones = [zone for zone in thermal.glob("thermal_zone*") if not _read(zone / "type").startswith("PMIC")]
    found = [_read(zone / "temp").strip() for zone in zones]
    return max((int(value) / 1000 for value in found if value.lstrip("-").isdecimal()), default=None)


def _cpu(root: Path) -> Finding:
    """Model, and the instructions that 8-bit weights need to be fast."""
    features = cpu_features(root)
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    model = found.group(1).strip() if found else platform.machine()
    fast = sorted(features & DOT_PRODUCT)
    if fast:
        return Finding("cpu", "ok", f"{model}: 8-bit dot product ({', '.join(fast)})")
    if "avx2" in features:
        return Finding("cpu", "ok", f"{model}: AVX2, no 8-bit dot product (VNNI)")
    if "asimd" in features:
        advice = "ARMv8.0, e.g. Raspberry Pi 4: 8-bit weights gain little here; a bundle in fp32 may be as fast"
        return Finding("cpu", "warning", f"{model}: NEON, no 8-bit dot product (asimddp)", advice)
    advice = "recognition will be slow; expected AVX2 (x86-64 since 2013) or a 64-bit ARM system"
    return Finding("cpu", "warning", f"{model}: neither AVX2 nor 64-bit NEON", advice)


def _cores(root: Path) -> Finding:
    """Cores, affinity and the cgroup's limit."""
    usable, quota = usable_cores(root)
    found = f"{os.cpu_count()} cores, {usable} for this process"
    if quota is not None:
        found += f", limited to {quota:.2g} CPUs by its cgroup"
        if quota < min(usable, 4):
            return Finding("threads", "warning", found, f"use --threads {max(1, int(quota))}, or raise the CPU limit")
    return Finding("threads", "ok", found)


def _cgroup_quota(root: Path) -> float | None:
    """CPUs that the cgroup allows: version 2, or version 1; of the process's own group in a container."""
    version_2 = _read(root / "sys/fs/cgroup/cpu.max").split()
    if len(version_2) == 2 and version_2[0].isdigit():
        return int(version_2[0]) / int(version_2[1])
    quota = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
    period = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _memory(root: Path) -> Iterator[Finding]:
    """Memory that is free for us: the machine's, and the cgroup's limit."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if found is None:
        return
    free_bytes, where = int(found.group(1)) * 1024, "available"
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < free_bytes:
        free_bytes, where = int(limit), "allowed by the cgroup"
    if free_bytes < MIN_MEMORY_BYTES:
        advice = f"at least {MIN_MEMORY_BYTES / 1e6:.0f} MB are needed: stop other programs, or raise the limit"
        yield Finding("memory", "warning", f"{free_bytes / 1e6:.0f} MB {where}", advice)
    else:
        yield Finding("memory", "ok", f"{free_bytes / 1e6:.0f} MB {where}")


def _temperature(root: Path) -> Iterator[Finding]:
    """The hottest thermal zone."""
    hottest_c = hottest_zone_c(root / "sys/class/thermal")
    if hottest_c is None:
        return
    if hottest_c >= HOT_C:
        advice = "the CPU slows down when it is hot: add a heat sink or a fan"
        yield Finding("temperature", "warning", f"{hottest_c:.0f} °C", advice)
    else:
        yield Finding("temperature", "ok", f"{hottest_c:.0f} °C")


def _throttling(run: Callable[[list[str]], str]) -> Iterator[Finding]:
    """A Raspberry Pi's own report: bits 0-3 now, 16-19 since it was started."""
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", run(["vcgencmd", "get_throttled"]))
    if found is None:
        return
    bits = int(found.group(1), 16)
    now = [name for bit, name in _THROTTLED_NOW.items() if bits >> bit & 1]
    before = [name for bit, name in _THROTTLED_NOW.items() if bits >> (bit + 16) & 1]
    if now:
        yield Finding("throttling", "warning", f"now: {', '.join(now)}", _POWER_AND_COOLING)
    elif before:
        yield Finding("throttling", "warning", f"since the start: {', '.join(before)}", _POWER_AND_COOLING)
    else:
        yield Finding("throttling", "ok", "never since the start")


def _governor(root: Path) -> Iterator[Finding]:
    """A CPU that is kept slow."""
    governor = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    if governor == "powersave" and "intel_pstate" not in _read(
        root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"
    ):
        yield Finding(
            "governor", "warning", "powersave: the CPU stays at its lowest clock", "use schedutil or ondemand"
        )


def _run(command: list[str]) -> str:
    """What a command prints, "" when it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _read(path: Path) -> str:
    """A small text file, "" when it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
