"""Settings of the server: their sources and their errors."""

from pathlib import Path

import pytest

from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.server_config import ServerConfig, is_loopback, load_config


def toml(tmp_path: Path, text: str, name: str = "serve.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_defaults_are_local() -> None:
    config = load_config()
    assert config == ServerConfig() and config.is_loopback and config.token is None and not config.log_transcripts


def test_flags_win_over_the_file_over_the_profile(tmp_path: Path) -> None:
    profile = toml(tmp_path, "threads = 3\nworkers = 2\nmax_waiting = 5\n", "pi.toml")
    path = toml(tmp_path, 'workers = 4\nport = 9000\nunix_socket = "/run/w.sock"\nmodel_aliases = ["a"]\n')
    config = load_config(path, profile, port=9001, host=None)
    assert (config.threads, config.workers, config.max_waiting, config.port) == (3, 4, 5, 9001)
    assert config.unix_socket == Path("/run/w.sock") and config.model_aliases == ("a",)


def test_the_shipped_profiles_are_valid() -> None:
    profiles = sorted((Path(__file__).resolve().parents[2] / "deploy" / "profiles").glob("*.toml"))
    if not profiles:
        pytest.skip("no deploy/profiles beside the tests")
    for profile in profiles:
        assert load_config(profile=profile).is_loopback


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_conections = 3", "max_conections is unknown; did you mean max_connections?"),
        ("zzz = 3", "zzz is unknown; known: host, port"),
        ('port = "8000"', "port = '8000': expected int"),
        ("port = true", "port = True: expected int"),
        ("port = 99999", "port = 99999: expected 0 to 65535"),
        ("zeroconf = 1", "zeroconf = 1: expected true or false"),
        ("allowed_hosts = [1]", "expected a list of strings"),
        ("host = 1", "host = 1: expected str"),
        ('host = ""', "host is empty"),
        ("idle_timeout_s = nan", "idle_timeout_s = nan: expected"),
        ("enroll_max_memory_mb = 100", "enroll_max_memory_mb = 100: expected 400 to"),
        ("enroll_nice = 20", "enroll_nice = 20: expected 0 to 19"),
        ("unix_socket = 1", "unix_socket = 1: expected Path"),
        ("port = = 3", "not TOML"),
        ('token = "a"\ntoken_file = "b"', "token and token_file are both set"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[").replace("?", r"\?")):
        load_config(toml(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.toml: not readable"):
        load_config(tmp_path / "none.toml")


def test_an_open_address_needs_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no token is set"):
        load_config(host="0.0.0.0")
    config = load_config(host="0.0.0.0", token="secret-secret")
    assert config.token == "secret-secret" and "secret" not in repr(config)


def test_a_token_file_is_read(tmp_path: Path) -> None:
    assert load_config(token_file=toml(tmp_path, "0123456789\n", "token")).token == "0123456789"
    with pytest.raises(ConfigError, match="5 characters, expected at least 8"):
        load_config(token_file=toml(tmp_path, "short", "token"))
    with pytest.raises(ConfigError, match="not readable"):
        load_config(token_file=tmp_path / "gone")


def test_a_token_flag_replaces_the_files_token(tmp_path: Path) -> None:
    path = toml(tmp_path, 'token_file = "/does/not/exist"')
    assert load_config(path, token="from-the-flag").token == "from-the-flag"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "::ffff:127.0.0.1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "127.0.0.1.evil.example", ""])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
