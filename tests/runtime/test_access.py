"""Who may ask: tokens, loopback, proxies, other sites' pages."""

from typing import Any

import pytest

from whisperfold.runtime.access import accepted_subprotocol, check_access
from whisperfold.runtime.http_errors import RequestError
from whisperfold.runtime.server_config import ServerConfig

TOKEN = "right-token"
LOCAL, REMOTE = ("127.0.0.1", 4000), ("192.168.1.7", 4000)


def scope(
    client: Any = LOCAL, headers: dict[str, str] | None = None, path: str = "/v1/models", **changes: Any
) -> dict[str, Any]:
    values = {"host": "127.0.0.1:8321", **(headers or {})}
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "client": client,
        "server": ("127.0.0.1", 8321),
        "headers": [(name.lower().encode(), value.encode()) for name, value in values.items()],
        **changes,
    }


def status(request: dict[str, Any], **config: Any) -> int:
    try:
        check_access(request, ServerConfig(**{"token": TOKEN, **config}))
    except RequestError as error:
        return error.status
    return 200


def test_loopback_needs_no_token() -> None:
    assert status(scope()) == status(scope(("::1", 4000), {"host": "[::1]:8321"})) == 200
    assert status(scope(headers={"host": "localhost"}), token=None) == 200


def test_others_need_the_token() -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert status(scope(REMOTE)) == 401
    assert status(scope(REMOTE, bearer)) == 200
    assert status(scope(REMOTE, {"authorization": f"bearer  {TOKEN} "})) == 200
    for wrong in ("Bearer wrong", "Bearer ", f"Basic {TOKEN}", TOKEN, "Bearer \xe9"):
        assert status(scope(REMOTE, {"authorization": wrong})) == 401, wrong
    assert status(scope(REMOTE, bearer), token=None) == 401


def test_a_wrong_token_is_wrong_on_loopback_too() -> None:
    assert status(scope(headers={"authorization": "Bearer wrong"})) == 401
    assert status(scope(headers={"authorization": "Bearer anything"}), token=None) == 200  # clients must send some key


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host"])
def test_behind_a_proxy_nobody_is_local(header: str) -> None:
    assert status(scope(headers={header: "127.0.0.1"})) == 401


def test_an_unknown_peer_is_not_local() -> None:
    assert status(scope(None)) == status(scope(("testclient", 1))) == 401


def test_the_unix_socket_is_open() -> None:
    assert status(scope(None, {"host": "anything"}, server=("/run/w.sock", None))) == 200


def test_dns_rebinding_is_stopped() -> None:
    evil = {"host": "evil.example:8321"}
    assert (
        status(scope(headers=evil))
        == status(scope(headers={"host": ""}))
        == status(scope(headers={"host": "[x"}))
        == 403
    )
    assert status(scope(headers={"host": "pi.local:8321"}), allowed_hosts=("pi.local",)) == 200
    assert status(scope(headers={**evil, "authorization": f"Bearer {TOKEN}"})) == 200


def test_other_sites_pages_are_stopped() -> None:
    assert status(scope(headers={"origin": "https://evil.example"})) == 403
    assert status(scope(headers={"origin": "null"})) == 403
    assert status(scope(headers={"origin": "http://127.0.0.1:8321"})) == 200
    assert status(scope(headers={"origin": "http://127.0.0.1:9999"})) == 403
    assert status(scope(headers={"origin": "https://my.example"}), allowed_origins=("https://my.example",)) == 200


def test_the_page_and_health_are_public() -> None:
    for path in ("/", "/static/app.js", "/health"):
        assert status(scope(REMOTE, path=path)) == 200
    for path in ("/metrics", "/v1/models", "/static", "/statics/x"):
        assert status(scope(REMOTE, path=path)) == 401
    assert status(scope(REMOTE, path="/", method="POST")) == 401


def test_websockets_may_carry_the_token_elsewhere() -> None:
    def socket(**changes: Any) -> dict[str, Any]:
        return scope(REMOTE, path="/v1/realtime", type="websocket", **changes)

    assert status(socket()) == 401
    assert status(socket(query_string=b"token=right-token")) == 200
    assert status(socket(query_string=b"token=wrong")) == 401
    offered = ["realtime", f"openai-insecure-api-key.{TOKEN}"]
    assert status(socket(subprotocols=offered)) == 200
    assert accepted_subprotocol(socket(subprotocols=offered)) == "realtime"
    assert accepted_subprotocol(socket(subprotocols=offered[1:])) is None
    assert status(scope(REMOTE, query_string=b"token=right-token")) == 401  # HTTP clients can set a header
