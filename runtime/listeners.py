"""Where the server listens: a TCP port and a Unix socket, bound before anything is loaded."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from whisperfold.runtime.errors import ServerError

_BACKLOG = 512
_UMASK = 0o117
"""The socket's file: owner and group may connect."""


@contextlib.contextmanager
def listening(host: str, port: int, unix_socket: Path | None) -> Iterator[list[socket.socket]]:
    """Bind, and remove the Unix socket's file at the end.

    Args:
        host: address or name.
        port: 0 takes a free one.
        unix_socket: path, or None.

    Yields:
        The TCP socket, then the Unix one if it is wanted.

    Raises:
        ServerError: an address is in use, or cannot be had.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_tcp(host, port))]
        if unix_socket is not None:
            sockets.append(stack.enter_context(_unix(unix_socket)))
        yield sockets


def _tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        is_any = family == socket.AF_INET6 and address[0] == "::"
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=is_any)
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}:{port} ({error.strerror}); stop what runs there, or choose another --port"
        ) from None


@contextlib.contextmanager
def _unix(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket; what a dead server left behind is replaced."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        mask = os.umask(_UMASK)
        try:
            _remove_dead(path)
            listener.bind(str(path))
            listener.listen(_BACKLOG)
            inode = path.stat().st_ino
        except OSError as error:
            raise ServerError(f"cannot listen on {path} ({error.strerror or error}); choose another path") from None
        finally:
            os.umask(mask)
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):  # another server may have the place by now
                if path.stat().st_ino == inode:
                    path.unlink()


def _remove_dead(path: Path) -> None:
    """Remove a socket that nobody listens on; anything else stays and makes bind fail."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
