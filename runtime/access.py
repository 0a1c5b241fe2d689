"""Who may ask: a request and where it comes from -> allowed, or the reason why not.

    Unix socket                                          allowed (file permissions decide)
    right token                                          allowed
    this machine, no proxy, our own Host and Origin      allowed
    anything else                                        401 (no or wrong token) or 403 (another site's page)

The Host check stops DNS rebinding: a page of evil.example whose name suddenly means 127.0.0.1 still says
`Host: evil.example`. The Origin check stops its forms and WebSockets. A header that only proxies add means that
the client is somebody else, whatever it says.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from whisperfold.runtime.http_errors import RequestError
from whisperfold.runtime.server_config import LOOPBACK_NAMES, ServerConfig, is_loopback

TOKEN_SUBPROTOCOL = "openai-insecure-api-key."
"""How a browser's WebSocket carries a token: OpenAI's convention, as it cannot set headers."""
SUBPROTOCOL = "realtime"
"""What is accepted when it is offered; never the one with the token."""
_PROXY_HEADERS = ("x-forwarded-for", "x-forwarded-host", "x-real-ip", "forwarded", "via")
_PUBLIC = ("/", "/health")
_PUBLIC_PREFIX = "/static/"


def check_access(scope: Scope, config: ServerConfig) -> None:
    """Let the request pass or say why not.

    Args:
        scope: of an HTTP or WebSocket request, with the peer's own address in "client".
        config: token, allowed hosts and origins.

    Raises:
        RequestError: 401 or 403.
    """
    if not is_public(scope):
        check_caller(scope, config)


def check_caller(scope: Scope, config: ServerConfig) -> None:
    """Let who asks pass or say why not, whatever is asked for; arguments and errors as `check_access`."""
    headers = Headers(scope=scope)
    if is_unix_socket(scope):
        return
    offered = offered_token(scope, headers)
    if offered is not None and config.token is not None:
        if hmac.compare_digest(offered.encode(), config.token.encode()):
            return
        raise RequestError(401, "token", "the token is wrong; it is the one that the server was started with")
    if not is_local(scope, headers):
        raise RequestError(401, "token", "a token is needed: send `Authorization: Bearer TOKEN`")
    host = _host_name(headers.get("host", ""))
    if host not in LOOPBACK_NAMES and host not in config.allowed_hosts:
        raise RequestError(
            403, "host", f"host {host[:80]!r} is not this server; add it to allowed_hosts, or send a token"
        )
    origin = headers.get("origin")
    if origin is not None and not _is_own_origin(origin, headers.get("host", ""), config):
        raise RequestError(403, "origin", "another site's page may not call this server; see allowed_origins")


def is_public(scope: Scope) -> bool:
    """The page itself and the health check hold no secrets."""
    path = str(scope["path"])
    is_read = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return is_read and (path in _PUBLIC or path.startswith(_PUBLIC_PREFIX))


def is_unix_socket(scope: Scope) -> bool:
    """Whether the request came over the Unix socket: its server address is a path without a port."""
    server = scope.get("server")
    return scope.get("client") is None and server is not None and server[1] is None


def is_local(scope: Scope, headers: Headers) -> bool:
    """Whether the peer is this machine and no proxy speaks for somebody else."""
    client = scope.get("client")
    return client is not None and is_loopback(client[0]) and not any(name in headers for name in _PROXY_HEADERS)


def offered_token(scope: Scope, headers: Headers) -> str | None:
    """The token of a request: header, and for WebSockets also subprotocol or query."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if scope["type"] != "websocket":
        return None
    for name in scope.get("subprotocols", ()):
        if name.startswith(TOKEN_SUBPROTOCOL):
            return str(name.removeprefix(TOKEN_SUBPROTOCOL))
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    return query["token"][0] if "token" in query else None


def accepted_subprotocol(scope: Scope) -> str | None:
    """What a WebSocket is accepted with."""
    return SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None


def peer_name(scope: Scope) -> str:
    """The peer for the log."""
    client = scope.get("client")
    return "unix" if client is None else f"{client[0]}:{client[1]}"


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; "" if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_own_origin(origin: str, host: str, config: ServerConfig) -> bool:
    """Whether a page of this server, or one that the owner allows, is asking."""
    return origin in config.allowed_origins or urlsplit(origin).netloc.lower() == host.lower() != ""
