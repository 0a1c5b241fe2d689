"""Settings of `whisperfold serve`: defaults < device profile < file < flags -> one frozen ServerConfig.

Files are flat TOML with the names of the fields below; a name that nobody knows is an error that tells the nearest.
"""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.session import DEFAULT_PROVIDERS

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
NEED_RESTART = (
    "host",
    "port",
    "unix_socket",
    "threads",
    "workers",
    "providers",
    "speaker",
    "profiles",
    "wyoming_port",
    "wyoming_host",
    "zeroconf",
    "microphone",
    "chunk_s",
    "max_waiting",
    "idle_unload_s",
    "enroll_max_memory_mb",
    "enroll_nice",
    "allowed_origins",
)
"""Fields that a running server cannot change; SIGHUP keeps the old value and says so (and Wyoming its limits)."""


@dataclass(frozen=True)
class ServerConfig:
    """Everything that a server can be told; the string under a field is its unit and its meaning."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs a token."""
    port: int = 8321
    """TCP port; 0 takes a free one."""
    unix_socket: Path | None = None
    """Also listen here; owner and group may connect, without a token."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that clients from elsewhere must send."""
    token_file: Path | None = None
    """File with the token in its first line, instead of token."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names besides localhost under which this machine's own browser may ask without a token."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages (https://name) besides our own that may call the server."""
    bundle: Path | None = None
    """Bundle directory; none is the packaged tiny.en."""
    speaker: str | None = None
    """Whose profile; "none" is the bundle as it is; none given follows `whisperfold profiles use`."""
    profiles: Path | None = None
    """Where profiles are; none is ~/.local/share/whisperfold/profiles."""
    threads: int = 0
    """CPU threads of one run; 0 takes the CPUs there are, at most 4."""
    workers: int = 1
    """Runs at the same time."""
    providers: tuple[str, ...] = DEFAULT_PROVIDERS
    """onnxruntime's execution providers, the preferred one first; the bundle decides the precision."""
    model_aliases: tuple[str, ...] = ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")
    """Model names that clients may ask for and get the bundle."""
    wyoming_port: int | None = None
    """TCP port of the Wyoming protocol (Home Assistant uses 10300); 0 or none is off."""
    wyoming_host: str | None = None
    """Address of the Wyoming port; none takes host. That protocol has no password: a firewall must say who may come."""
    zeroconf: bool = True
    """Announce the Wyoming port in the local network."""
    microphone: str | None = None
    """Input device whose captions clients can follow: index, name or part of it, "default"; none is off."""
    chunk_s: float = 0.1
    """Length of the microphone's blocks, seconds: shorter ones cost more wake-ups and save as much latency."""
    max_upload_bytes: int = 100 * 2**20
    """Largest request body, bytes."""
    max_duration_s: float = 7200.0
    """Longest recording, seconds."""
    max_connections: int = 64
    """Requests and WebSockets at the same time; more get 503."""
    max_waiting: int = 32
    """Recordings that may wait for a worker; more get 503."""
    max_buffer_s: float = 30.0
    """Live audio that a WebSocket may be ahead of the recogniser, seconds; then it is read more slowly."""
    idle_timeout_s: float = 60.0
    """A connection that neither sends nor takes anything for this long is closed, seconds."""
    idle_unload_s: float | None = None
    """Drop the weights after this long without work, seconds; none keeps them."""
    enroll_max_memory_mb: int = 1500
    """What an adaptation may take, MB; recordings that would need more are left out. It takes `threads` as well."""
    enroll_nice: int = 10
    """Priority of an adaptation: 0 is that of captions, 19 gives way to everything."""
    shutdown_s: float = 20.0
    """Running work gets this long at SIGTERM, seconds."""
    log_transcripts: bool = False
    """Write recognised text to the log."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check_range(name, value)
        if self.token is not None and self.token_file is not None:
            raise ConfigError("token and token_file are both set; keep one of them")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the TCP port."""
        return is_loopback(self.host)

    def checked(self) -> ServerConfig:
        """Return the config with its token read.

        Raises:
            ConfigError: the token file is unreadable or too short, or a token is missing on an open address.
        """
        config = self if self.token_file is None else replace(self, token=_read_token(self.token_file), token_file=None)
        if not config.is_loopback and not config.token:
            raise ConfigError(
                f"host {config.host} can be reached from elsewhere and no token is set; "
                "give --token-file FILE (e.g. made by `openssl rand -hex 24`), or listen on 127.0.0.1"
            )
        return config


def load_config(path: Path | None = None, profile: Path | None = None, **flags: Any) -> ServerConfig:
    """Merge all sources of settings.

    Args:
        path: the user's TOML file.
        profile: TOML file of the device, e.g. deploy/profiles/pi5.toml.
        **flags: fields that were given on the command line; None means not given.

    Raises:
        ConfigError: a file is unreadable, a name is unknown, a value has the wrong type or range.
    """
    values: dict[str, Any] = {}
    for source in (profile, path):
        if source is not None:
            values.update(_read_toml(source))
    given = {name: value for name, value in flags.items() if value is not None}
    if given.keys() & {"token", "token_file"}:
        values = {name: value for name, value in values.items() if name not in ("token", "token_file")}
    values.update(_typed("flags", given))
    return ServerConfig(**values).checked()


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine; an unknown name is not."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


_FIELDS = {item.name: str(item.type) for item in fields(ServerConfig)}
_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "wyoming_port": (0, 65535),
    "threads": (0, 256),
    "workers": (1, 64),
    "chunk_s": (0.02, 1.0),
    "max_upload_bytes": (1024, 2**40),
    "max_duration_s": (1.0, 86400.0),
    "max_connections": (1, 10000),
    "max_waiting": (0, 10000),
    "max_buffer_s": (1.0, 600.0),
    "idle_timeout_s": (0.05, 86400.0),
    "idle_unload_s": (0.05, 86400.0),
    "enroll_max_memory_mb": (400, 10**6),
    "enroll_nice": (0, 19),
    "shutdown_s": (0.0, 600.0),
}
"""Lowest and highest value of the numbers."""


def _check_range(name: str, value: Any) -> None:
    """Raise ConfigError for a number out of range, or an empty string."""
    if isinstance(value, str) and (not value or value != value.strip()):
        raise ConfigError(f"{name} is empty or has blanks around it; leave it out, or give a value")
    if name not in _RANGES or value is None:
        return
    low, high = _RANGES[name]
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value}: expected {low:g} to {high:g}")


def _read_toml(path: Path) -> dict[str, Any]:
    """The settings of one file."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: not readable ({error.strerror}); expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error}); see deploy/ for an example") from None
    return _typed(str(path), values)


def _typed(source: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values as the fields want them; unknown names and wrong types are errors."""
    result = {}
    for name, value in values.items():
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_FIELDS)}"
            raise ConfigError(f"{source}: {name} is unknown; {hint}")
        result[name] = _convert(source, name, value, _FIELDS[name])
    return result


def _convert(source: str, name: str, value: Any, kind: str) -> Any:
    """One value in the type of its field."""
    is_bool = isinstance(value, bool)
    if kind == "bool" and is_bool:
        return value
    if kind.startswith("int") and isinstance(value, int) and not is_bool:
        return value
    if kind.startswith("float") and isinstance(value, int | float) and not is_bool:
        return float(value)
    if kind.startswith("Path") and isinstance(value, str | Path):
        return Path(value).expanduser()
    if kind.startswith("str") and isinstance(value, str):
        return value
    if kind.startswith("tuple") and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    expected = {"tuple[str, ...]": "a list of strings", "bool": "true or false"}.get(kind, kind.split(" ")[0])
    raise ConfigError(f"{source}: {name} = {value!r}: expected {expected}")


def _read_token(path: Path) -> str:
    """First line of the token file."""
    try:
        token = path.read_text(encoding="utf-8").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {path}: not readable ({error}); write the token into it") from None
    if len(token) < 8:
        raise ConfigError(f"token file {path}: {len(token)} characters, expected at least 8; use a random token")
    return token
