import asyncio
import logging
import os
import socket
import time

import pytest

from whisperfold.runtime.notify import Notifier


class Manager:
    """A service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(5)

    def receive(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().split("\n"))

    def has_more(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(4096)
        except BlockingIOError:
            return False
        finally:
            self.socket.settimeout(5)
        return True


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    address = str(tmp_path / "notify") if request.param == "path" else f"@whisperfold-test-{os.getpid()}"
    manager = Manager(address)
    yield manager
    manager.socket.close()


def environment(manager: Manager, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.address, **more}


def test_a_life_of_a_service(manager):
    notifier = Notifier.from_environment(environment(manager))
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready("serving 127.0.0.1:8080")
    notifier.reloading()
    notifier.ready()
    notifier.stopping()
    assert manager.receive() == {"READY": "1", "STATUS": "serving 127.0.0.1:8080"}
    reloading = manager.receive()
    assert reloading["RELOADING"] == "1"
    assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert manager.receive() == {"READY": "1"}
    assert manager.receive() == {"STOPPING": "1"}


def test_a_status_cannot_smuggle_in_another_key(manager):
    Notifier.from_environment(environment(manager)).status("lag\nSTOPPING=1\r\n")
    assert manager.receive() == {"STATUS": "lag STOPPING=1"}


def test_an_empty_status_is_no_datagram(manager):
    Notifier.from_environment(environment(manager)).status(" \n")
    assert not manager.has_more()


def test_without_a_manager_nothing_happens(caplog):
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "1000"})
    notifier.ready("x")
    notifier.stopping()
    asyncio.run(asyncio.wait_for(notifier.keep_alive(lambda: True), 1))
    assert notifier.watchdog_interval_s is None and caplog.records == []


def test_a_strange_address_is_ignored_and_said(caplog):
    Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"}).ready()
    assert len(caplog.records) == 1  # a socket that was tried would have been a second warning
    assert "neither a path nor abstract" in caplog.text


def test_a_manager_that_is_gone_is_a_warning(tmp_path, caplog):
    Notifier(str(tmp_path / "nobody")).ready()
    assert "cannot notify" in caplog.text


@pytest.mark.parametrize(
    ("more", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_pinged_at_half_its_time_by_the_right_process(manager, more, interval_s):
    assert Notifier.from_environment(environment(manager, **more)).watchdog_interval_s == interval_s


def test_the_watchdog_is_pinged_only_while_healthy(manager, caplog):
    answers = iter([True, True, False, False, True])
    caplog.set_level(logging.INFO)

    def is_healthy() -> bool:
        try:
            return next(answers)
        except StopIteration:
            raise asyncio.CancelledError from None

    notifier = Notifier.from_environment(environment(manager, WATCHDOG_USEC="2000"))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(notifier.keep_alive(is_healthy))
    assert [manager.receive() for _ in range(3)] == [{"WATCHDOG": "1"}] * 3
    assert not manager.has_more()
    assert "healthy=False" in caplog.text
    assert "healthy=True" in caplog.text
