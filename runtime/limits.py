"""What an adaptation must not do to the device: cook it, or drain its battery.

    thermal/thermal_zone*/{type,temp}                the hottest one (machine.py)
    power_supply/*/{type,status,capacity}            of /sys/class

Both are looked at between two steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from whisperfold.runtime.errors import EnrollmentError
from whisperfold.runtime.machine import hottest_zone_c


@dataclass
class DeviceGuard:
    """Looks at the device now and then."""

    max_temperature_c: float = 85.0
    """Processors throttle there."""
    min_battery_percent: float = 20.0
    """Only while the battery is discharging."""
    every_s: float = 5.0
    """Time between two looks."""
    sysfs: Path = Path("/sys/class")
    _looked_at_s: float = field(default=-1e9, init=False, repr=False)

    def check(self) -> None:
        """Look, if the last look is long enough ago.

        Raises:
            EnrollmentError: the device is too hot, or its battery is nearly empty.
        """
        now_s = time.monotonic()
        if now_s - self._looked_at_s < self.every_s:
            return
        self._looked_at_s = now_s
        hottest_c = hottest_zone_c(self.sysfs / "thermal")
        if hottest_c is not None and hottest_c > self.max_temperature_c:
            raise EnrollmentError(
                f"stopped: {hottest_c:.0f} °C, the limit is {self.max_temperature_c:.0f}; "
                "let it cool and go on with --resume"
            )
        for supply in self.sysfs.glob("power_supply/*"):
            is_ours = _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device"  # that is a mouse's
            if is_ours and _text(supply / "status") == "Discharging":
                percent = _number(supply / "capacity", 100.0)
                if percent < self.min_battery_percent:
                    raise EnrollmentError(
                        f"stopped: battery at {percent:.0f} %, the limit is {self.min_battery_percent:.0f}; "
                        "plug it in and go on with --resume"
                    )


def _text(path: Path) -> str:
    """The contents of a small file, empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path, otherwise: float) -> float:
    """The number in a small file."""
    try:
        return float(_text(path))
    except ValueError:
        return otherwise
