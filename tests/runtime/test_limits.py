"""Heat and an empty battery stop an adaptation; a device without sensors goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisperfold.runtime.errors import EnrollmentError
from whisperfold.runtime.limits import DeviceGuard


def device(sysfs: Path, temperature_mc: str = "50000", status: str = "Discharging", percent: str = "80") -> DeviceGuard:
    """A /sys/class with one thermal zone and one battery; the temperature is in thousandths of a degree."""
    zone, battery = sysfs / "thermal" / "thermal_zone0", sysfs / "power_supply" / "BAT0"
    for folder in (zone, battery):
        folder.mkdir(parents=True, exist_ok=True)
    (zone / "temp").write_text(temperature_mc + "\n")
    for name, text in (("type", "Battery"), ("status", status), ("capacity", percent)):
        (battery / name).write_text(text + "\n")
    return DeviceGuard(every_s=0.0, sysfs=sysfs)


def test_heat_and_an_empty_battery_stop_it(tmp_path: Path) -> None:
    device(tmp_path).check()
    with pytest.raises(EnrollmentError, match="stopped: 91 °C, the limit is 85; let it cool and go on with --resume"):
        device(tmp_path, temperature_mc="91200").check()
    with pytest.raises(EnrollmentError, match="stopped: battery at 12 %, the limit is 20; plug it in"):
        device(tmp_path, percent="12").check()
    device(tmp_path, status="Charging", percent="12").check()


def test_a_power_chip_that_always_says_100_degrees_does_not_stop_it(tmp_path: Path) -> None:
    guard = device(tmp_path)
    chip = tmp_path / "thermal" / "thermal_zone1"
    chip.mkdir()
    (chip / "temp").write_text("100000\n")
    (chip / "type").write_text("PMIC-Die\n")
    guard.check()
    (chip / "type").write_text("CPU-therm\n")
    with pytest.raises(EnrollmentError, match="stopped: 100 °C"):
        guard.check()


def test_without_sensors_or_with_broken_ones_it_goes_on(tmp_path: Path) -> None:
    DeviceGuard(every_s=0.0, sysfs=tmp_path / "none").check()
    device(tmp_path, temperature_mc="n/a", percent="").check()


def test_it_looks_now_and_then_only(tmp_path: Path) -> None:
    guard = device(tmp_path)
    guard.every_s = 3600.0
    guard.check()
    device(tmp_path, temperature_mc="99000")
    guard.check()
