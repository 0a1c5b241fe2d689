import asyncio
import socket

import pytest
from zeroconf import DNSAddress, DNSIncoming, DNSService

from whisperfold.runtime.announce import SERVICE_TYPE, announce

TIMEOUT_S = 10.0


def test_the_network_hears_where_the_server_is_and_that_it_went():
    group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
    heard = []

    async def main() -> None:
        assert await announce("whisperfold-test", "127.0.0.2", 10300) is None  # nobody else could connect
        announcement = await announce("whisperfold-test", "192.0.2.7", 10300, interfaces=["127.0.0.1"])
        assert announcement is not None
        await announcement.close()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("", 5353))
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))
        listener.setblocking(False)
        try:
            while True:
                heard += DNSIncoming(listener.recv(9000)).answers()
        except BlockingIOError:
            pass
    ours = [record for record in heard if record.name == f"whisperfold-test.{SERVICE_TYPE}"]
    if not ours:
        pytest.skip("no multicast on the loopback interface here")
    services = [record for record in ours if isinstance(record, DNSService)]
    assert {record.port for record in services} == {10300}
    assert services[0].ttl > 0 and services[-1].ttl == 0  # hello, goodbye
    addresses = {record.address for record in ours if isinstance(record, DNSAddress)}
    assert addresses == {socket.inet_aton("192.0.2.7")}


def test_a_network_that_cannot_announce_is_a_warning(caplog):
    async def main() -> None:
        assert await announce("whisperfold-test", "192.0.2.7", 10300, interfaces=["203.0.113.9"]) is None

    asyncio.run(asyncio.wait_for(main(), TIMEOUT_S))
    assert "by hand" in caplog.text
