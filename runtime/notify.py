"""What the daemon tells systemd: ready, reloading, stopping, one line of status, "still alive".

    state changes ──► datagram on $NOTIFY_SOCKET ──► `systemctl status`, `systemctl reload`, the watchdog

The sd_notify protocol is newline separated KEY=value pairs in one datagram to an AF_UNIX socket; "@" starts an
abstract address. The environment is the protocol here, not configuration: without NOTIFY_SOCKET nothing happens.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

_LOG = logging.getLogger(__name__)


class Notifier:
    """Speaks to the service manager that started this process, if there is one.

    Attributes:
        watchdog_interval_s: how often `keep_alive` pings, half of what the unit's WatchdogSec allows; None: not wanted.
    """

    def __init__(self, address: str | None = None, watchdog_interval_s: float | None = None) -> None:
        self._address = address
        self.watchdog_interval_s = watchdog_interval_s

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Notifier:
        """Take socket and watchdog from NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID (default: this process's)."""
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            _LOG.warning("NOTIFY_SOCKET=%r is neither a path nor abstract; not telling the service manager", address)
            address = None
        return cls(address, _watchdog_interval_s(environment) if address is not None else None)

    def ready(self, status: str = "") -> None:
        """Say that start-up, or a reload, is done."""
        self._send("READY=1", *_status(status))

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the daemon finishes what is running and leaves."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(*_status(text))

    async def keep_alive(self, is_healthy: Callable[[], bool]) -> None:
        """Ping the watchdog until cancelled, but only while is_healthy() is true; systemd restarts what stops pinging.

        Runs on the event loop, so that a blocked loop counts as dead. Returns at once if no watchdog is wanted.
        """
        if self.watchdog_interval_s is None:
            return
        was_healthy = True
        while True:
            healthy = is_healthy()
            if healthy:
                self._send("WATCHDOG=1")
            if healthy != was_healthy:
                _LOG.log(logging.INFO if healthy else logging.ERROR, "watchdog healthy=%s", healthy)
                was_healthy = healthy
            await asyncio.sleep(self.watchdog_interval_s)

    def _send(self, *lines: str) -> None:
        """Send one datagram; a manager that is gone or busy must not stop the daemon."""
        if self._address is None or not lines:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            _LOG.warning("cannot notify %s: %s", self._address, error)


def _status(text: str) -> list[str]:
    """STATUS line; a newline in it would start another key."""
    return [f"STATUS={' '.join(text.split())}"] if text.strip() else []


def _watchdog_interval_s(environment: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC, if it is meant for this process."""
    period = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not (period.isascii() and period.isdigit()) or int(period) == 0 or pid != str(os.getpid()):
        return None
    return int(period) / 2e6
