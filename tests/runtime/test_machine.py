import subprocess

import pytest

from whisperfold.runtime.machine import cpu_features, examine_machine

CPUS = {
    "pi5": ("Features\t: fp asimd evtstrm crc32 asimddp\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0", "ok", "asimddp"),
    "pi4": ("Features\t: fp asimd evtstrm crc32\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4", "warning", "Pi 4"),
    "vnni": ("model name\t: Intel N100\nflags\t\t: sse2 avx2 avx_vnni", "ok", "avx_vnni"),
    "avx2": ("model name\t: AMD EPYC\nflags\t\t: sse2 avx2", "ok", "AVX2"),
    "old": ("model name\t: Atom\nflags\t\t: sse2 ssse3", "warning", "neither"),
}


def machine(tmp_path, files, throttled=""):
    """Findings by name, on a machine with these files."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return {finding.check: finding for finding in examine_machine(tmp_path, lambda command: throttled)}


@pytest.mark.parametrize("name", CPUS)
def test_cpu_features(tmp_path, name):
    cpuinfo, state, found = CPUS[name]
    finding = machine(tmp_path, {"proc/cpuinfo": cpuinfo})["cpu"]
    assert finding.state == state and found in finding.found
    assert bool(finding.advice) == (state == "warning")


def test_a_machine_that_says_nothing_gives_no_false_alarm(tmp_path):
    assert set(machine(tmp_path, {})) == {"cpu", "threads"}


@pytest.mark.parametrize(
    ("files", "limited"),
    [
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, True),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, False),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, True),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, False),
    ],
)
def test_a_limit_of_the_cgroup(tmp_path, files, limited):
    finding = machine(tmp_path, files)["threads"]
    assert (finding.state == "warning") == limited
    assert ("--threads 1" in finding.advice) == limited


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"proc/meminfo": "MemAvailable:  900000 kB"}, "ok"),
        ({"proc/meminfo": "MemAvailable:  200000 kB"}, "warning"),
        ({"proc/meminfo": "MemAvailable:  900000 kB", "sys/fs/cgroup/memory.max": "128000000"}, "warning"),
        ({"proc/meminfo": "MemAvailable:  900000 kB", "sys/fs/cgroup/memory.max": "max"}, "ok"),
    ],
)
def test_memory(tmp_path, files, state):
    assert machine(tmp_path, files)["memory"].state == state


def test_the_hottest_zone_counts(tmp_path):
    zones = {"sys/class/thermal/thermal_zone0/temp": "45000", "sys/class/thermal/thermal_zone1/temp": "84500"}
    finding = machine(tmp_path, zones)["temperature"]
    assert finding.state == "warning" and "84 °C" in finding.found and "fan" in finding.advice


def test_a_power_chip_that_always_says_100_degrees_does_not_count(tmp_path):
    zone = "sys/class/thermal/thermal_zone"
    jetson = {f"{zone}0/temp": "45000", f"{zone}1/temp": "100000", f"{zone}1/type": "PMIC-Die\n", f"{zone}2/temp": ""}
    finding = machine(tmp_path, jetson)["temperature"]
    assert finding.state == "ok" and finding.found == "45 °C"


@pytest.mark.parametrize(
    ("bits", "state", "found"),
    [
        ("0x0", "ok", "never"),
        ("0x50005", "warning", "now: under-voltage, throttled"),
        ("0x80000", "warning", "since the start: temperature limit"),
    ],
)
def test_throttling_of_a_pi(tmp_path, bits, state, found):
    finding = machine(tmp_path, {}, throttled=f"throttled={bits}\n")["throttling"]
    assert finding.state == state and found in finding.found


def test_a_cpu_kept_slow(tmp_path):
    cpufreq = "sys/devices/system/cpu/cpu0/cpufreq/"
    slow = {cpufreq + "scaling_governor": "powersave"}
    assert machine(tmp_path, slow)["governor"].state == "warning"
    assert "governor" not in machine(tmp_path, {**slow, cpufreq + "scaling_driver": "intel_pstate"})


def test_a_vcgencmd_that_hangs_is_no_finding(tmp_path, monkeypatch):
    def hang(*arguments, **options):
        raise subprocess.TimeoutExpired("vcgencmd", 5)

    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/vcgencmd")
    monkeypatch.setattr(subprocess, "run", hang)
    assert "throttling" not in {finding.check for finding in examine_machine(tmp_path)}


def test_this_machine():
    assert cpu_features() and {finding.check for finding in examine_machine()} >= {"cpu", "threads", "memory"}
