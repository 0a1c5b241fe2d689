"""Tell the local network that a Wyoming server is here (mDNS), so that Home Assistant offers it by itself.

    name, host, port -> _wyoming._tcp.local. on every interface, withdrawn by close()

A server that only this machine can reach is not announced. A network that cannot be used is a warning: serving goes on.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Sequence

from zeroconf import Error as ZeroconfError
from zeroconf import InterfaceChoice
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

_LOG = logging.getLogger(__name__)

SERVICE_TYPE = "_wyoming._tcp.local."
_MDNS_GROUP = "224.0.0.251"


class Announcement:
    """A service that is announced until `close`; made by `announce`."""

    def __init__(self, zeroconf: AsyncZeroconf, info: AsyncServiceInfo) -> None:
        self._zeroconf = zeroconf
        self.info = info

    async def close(self) -> None:
        """Withdraw the service and leave the multicast group."""
        try:
            await self._zeroconf.async_unregister_all_services()
        finally:
            await self._zeroconf.async_close()


async def announce(
    name: str, host: str, port: int, interfaces: Sequence[str] | InterfaceChoice = InterfaceChoice.All
) -> Announcement | None:
    """Announce a Wyoming server.

    Args:
        name: what people see; Home Assistant remembers the server by it. A number is added if it is taken.
        host: address that the server listens on; any-address announces the one that the network uses.
        port: its TCP port.
        interfaces: addresses of the interfaces to announce on; default all.

    Returns:
        The announcement, or None if nobody else could connect or the network refuses.
    """
    zeroconf: AsyncZeroconf | None = None
    try:
        address = _reachable(host)
        if address is None:
            return None
        info = AsyncServiceInfo(SERVICE_TYPE, f"{name}.{SERVICE_TYPE}", parsed_addresses=[address], port=port)
        zeroconf = AsyncZeroconf(interfaces=interfaces)
        await (await zeroconf.async_register_service(info, allow_name_change=True))
    except (OSError, ZeroconfError) as error:
        _LOG.warning("not announced on the network (%s); enter host and port in Home Assistant by hand", error)
        if zeroconf is not None:
            await zeroconf.async_close()
        return None
    _LOG.info("announced=%r address=%s port=%d", info.name, address, port)
    return Announcement(zeroconf, info)


def _reachable(host: str) -> str | None:
    """The address that others can use, None for loopback."""
    try:
        address = ipaddress.ip_address(host or "0.0.0.0")
    except ValueError:  # a name
        address = ipaddress.ip_address(socket.gethostbyname(host))
    if address.is_loopback:
        return None
    if not address.is_unspecified:
        return str(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting UDP sends nothing
        probe.connect((_MDNS_GROUP, 1))
        return str(probe.getsockname()[0])
