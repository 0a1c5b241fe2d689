"""The unit, the installer, the profiles and the images, as far as they can be held to account without a device."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from whisperfold.runtime.server_config import ServerConfig, load_config

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
UNIT = DEPLOY / "whisperfold.service"
LAN = DEPLOY / "whisperfold-lan.conf"
CONFINE = Path(__file__).with_name("confine.py")
PROFILES = sorted((DEPLOY / "profiles").glob("*.toml"))
DOCKERFILES = sorted(path for path in DEPLOY.glob("Dockerfile.*") if path.suffix != ".dockerignore")
MAX_EXPOSURE = 3.0
TOKEN = "0123456789abcdef"


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


def with_lan(folder: Path) -> Path:
    """The unit and its drop-in as one file: offline analysis does not read drop-ins."""
    service = LAN.read_text().split("[Service]\n")[1]
    unit = folder / "whisperfold.service"
    unit.write_text(UNIT.read_text().replace("[Install]", f"{service}\n[Install]"))
    return unit


def settings(path: Path) -> dict[str, list[str]]:
    """Every value of every key of a unit file."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("lan", [False, True], ids=["loopback", "lan"])
def test_the_unit_is_right(lan, tmp_path):
    # systemd-analyze wants the program to exist, which it does only where it is installed
    unit = with_lan(tmp_path) if lan else UNIT
    checked = tmp_path / "checked" / "whisperfold.service"
    checked.parent.mkdir()
    checked.write_text(unit.read_text().replace("/opt/whisperfold/bin/whisperfold", "/bin/true"))
    result = analyze("verify", "--man=no", str(checked))
    complaints = [line for line in (result.stdout + result.stderr).splitlines() if "whisperfold" in line]
    assert not complaints
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("lan", [False, True], ids=["loopback", "lan"])
def test_the_exposure_is_low(lan, tmp_path):
    unit = with_lan(tmp_path) if lan else UNIT
    result = analyze("security", "--offline=true", "--no-pager", str(unit))
    if "unrecognized option" in result.stderr or "Unknown" in result.stderr:
        pytest.skip(f"systemd-analyze is too old for --offline: {result.stderr.strip()}")
    found = re.search(r"exposure level.*?: ([\d.]+)", result.stdout)
    assert found, result.stdout + result.stderr
    assert float(found[1]) <= MAX_EXPOSURE


def test_the_unit_and_the_default_settings_agree():
    unit = settings(UNIT)
    defaults = ServerConfig()
    assert f"tcp:{defaults.port}" in unit["SocketBindAllow"]
    assert "tcp:10300" in unit["SocketBindAllow"]
    assert float(unit["TimeoutStopSec"][0].removesuffix("s")) > defaults.shutdown_s + 10  # Wyoming after HTTP
    assert unit["Type"] == ["notify"]
    assert unit["Environment"] == ["ORT_DISABLE_TELEMETRY=1", "XDG_DATA_HOME=%S"]
    assert unit["StateDirectory"] == ["whisperfold"]  # %S/whisperfold/profiles is where the daemon looks for profiles
    assert unit["IPAddressAllow"] == ["localhost"]
    assert unit["DeviceAllow"] == ["char-alsa rw"]
    assert unit["OOMPolicy"] == ["continue"]  # an adaptation that is killed for its memory leaves the service running


def confined(unit: Path, *command: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, str(CONFINE), str(unit), *command], capture_output=True, text=True, timeout=120
    )
    if result.returncode == 77:
        pytest.skip(result.stderr.strip())
    return result


def test_confining_is_real():
    refused = "import os; os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))"
    result = confined(UNIT, sys.executable, "-c", refused)
    assert "PermissionError" in result.stderr


@pytest.mark.parametrize("microphone", [True, False], ids=["as-is", "no-write-execute"])
def test_what_the_unit_allows_is_enough(microphone, tmp_path, bundle_path):
    unit = UNIT
    if microphone:  # PortAudio calls back through cffi
        script = "import cffi; assert cffi.FFI().callback('int(int)', lambda x: x + 1)(1) == 2\n"
    else:
        unit, script = tmp_path / "unit", ""
        text = UNIT.read_text()
        assert "MemoryDenyWriteExecute=no" in text
        unit.write_text(text.replace("MemoryDenyWriteExecute=no", "MemoryDenyWriteExecute=yes"))
    script += (
        "import os, soxr, uvicorn, wyoming, zeroconf.asyncio\n"
        "os.nice(10)\n"  # as an adaptation does
        "from whisperfold.runtime import Transcriber, load_audio\n"
        f"samples = load_audio({str(REPOSITORY / 'runtime/samples/jfk.flac')!r})\n"
        f"print(Transcriber.open({str(bundle_path)!r}, threads=2).transcribe(samples).text)\n"
    )
    result = confined(unit, sys.executable, "-c", script)
    assert result.returncode == 0, result.stderr
    assert "your country" in result.stdout
    assert "not permitted" not in result.stderr


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_profiles_load_and_say_something(profile):
    config = load_config(profile=profile)
    assert config != ServerConfig()
    assert config.is_loopback
    assert (DEPLOY / "docs" / f"{profile.stem}.md").is_file()


def test_there_is_a_profile_for_every_target():
    assert [path.stem for path in PROFILES] == ["jetson", "pi4", "pi5", "x86"]


def install(*arguments: str) -> str:
    result = subprocess.run(
        [str(DEPLOY / "install.sh"), "--dry-run", *arguments], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def written(output: str, path: str) -> str:
    """Contents of a file that a dry run would write."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"+ write {path} "))
    body = []
    for line in lines[start + 1 :]:
        if line.startswith("+ "):
            break
        body.append(line.removeprefix("    "))
    return "\n".join(body)


@pytest.fixture
def not_installed():
    if Path("/opt/whisperfold").exists() or Path("/etc/whisperfold").exists():
        pytest.skip("whisperfold is installed on this machine: the dry run is another one")


@pytest.mark.parametrize("profile", [path.stem for path in PROFILES])
def test_a_dry_run_shows_every_step_and_a_configuration_that_loads(profile, tmp_path, not_installed):
    output = install("--profile", profile)
    steps = ["-m venv", "[serve]", "write /etc/whisperfold/whisperfold.toml", "systemd/system/whisperfold.service"]
    steps += ["systemctl daemon-reload", "systemctl enable", "systemctl restart"]
    positions = [output.index(step) for step in steps]
    assert positions == sorted(positions)
    assert "lan.conf" not in output and "/etc/whisperfold/token" not in output
    path = tmp_path / "whisperfold.toml"
    path.write_text(written(output, "/etc/whisperfold/whisperfold.toml"))
    config = load_config(path)
    assert config.is_loopback
    assert config.wyoming_port == 10300
    assert config.threads == load_config(profile=DEPLOY / "profiles" / f"{profile}.toml").threads


def test_open_to_the_network_there_is_a_token_that_only_the_service_gets(tmp_path, not_installed):
    output = install("--lan", "--profile", "pi5")
    assert "+ write /etc/whisperfold/token (mode 600)" in output
    assert "whisperfold.service.d/lan.conf" in output
    text = written(output, "/etc/whisperfold/whisperfold.toml")
    credential = "/run/credentials/whisperfold.service/token"
    assert f'token_file = "{credential}"' in text
    assert settings(LAN)["LoadCredential"] == ["token:/etc/whisperfold/token"]
    token, path = tmp_path / "token", tmp_path / "whisperfold.toml"
    token.write_text(TOKEN)
    path.write_text(text.replace(credential, str(token)))
    config = load_config(path)
    assert (config.host, config.token) == ("0.0.0.0", TOKEN)


def test_without_start_nothing_is_started(not_installed):
    output = install("--no-start")
    assert "systemctl enable" in output
    assert "systemctl restart" not in output


def test_uninstall_keeps_what_is_the_users_and_purge_does_not(not_installed):
    kept, purged = install("--uninstall"), install("--purge")
    assert "rm -rf /opt/whisperfold" in kept and "disable --now whisperfold" in kept
    assert "/etc/whisperfold" not in kept
    assert "/etc/whisperfold" in purged and "/var/lib/private/whisperfold" in purged


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["--fast"], 2, "unknown: --fast"), (["--profile", "pi9", "--dry-run"], 1, "no profile 'pi9'; there are: jetson")],
)
def test_wrong_use_of_the_installer_is_said(arguments, code, message):
    result = subprocess.run([str(DEPLOY / "install.sh"), *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == code
    assert message in result.stderr


def test_system_packages_refuses_what_it_does_not_know():
    result = subprocess.run([str(DEPLOY / "system-packages.sh"), "--all"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "--test" in result.stderr


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_clean(script):
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)
    shellcheck = shutil.which("shellcheck")
    if shellcheck is not None:
        result = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_without_root_without_torch_and_with_a_health_check(dockerfile):
    text = dockerfile.read_text()
    instructions = re.sub(r"(?m)^#.*\n", "", text)
    assert re.search(r"(?m)^USER 10001:10001$", instructions)
    assert "/health" in instructions[instructions.index("HEALTHCHECK") :]
    assert re.search(r"(?m)^ENV .*\bORT_DISABLE_TELEMETRY=1\b", instructions)
    assert "[serve]" in instructions and "torch" not in instructions and "[compiler]" not in instructions
    ignored = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text().splitlines()
    for line in re.findall(r"(?m)^COPY (?!--from)(.+)$", instructions):
        for source in line.split()[:-1]:
            assert (REPOSITORY / source).exists(), f"{dockerfile.name}: {source}"
            assert f"!{source.split('/')[0].removeprefix('./')}" in ignored


def test_the_container_settings_load(tmp_path):
    token, path = tmp_path / "token", tmp_path / "container.toml"
    token.write_text(TOKEN)
    path.write_text((DEPLOY / "container.toml").read_text().replace("/run/secrets/whisperfold_token", str(token)))
    config = load_config(path)
    assert (config.host, config.port, config.wyoming_port, config.token) == ("0.0.0.0", 8321, 10300, TOKEN)
    jetson = tmp_path / "jetson.toml"  # as Dockerfile.jetson puts them together
    jetson.write_text(path.read_text() + (DEPLOY / "profiles" / "jetson.toml").read_text())
    assert load_config(jetson).threads == 4
    assert config.profiles == Path("/var/lib/whisperfold/profiles")


def test_every_link_of_the_pages_leads_somewhere():
    for page in [DEPLOY / "README.md", *(DEPLOY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
