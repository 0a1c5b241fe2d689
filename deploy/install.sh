#!/usr/bin/env bash
# Install whisperfold as a system service on Raspberry Pi OS, Debian or Ubuntu (arm64, amd64), from this checkout.
#
#   sudo deploy/install.sh                  this machine only: web page on 127.0.0.1:8321, Wyoming on 127.0.0.1:10300
#   sudo deploy/install.sh --lan            open to the local network; makes /etc/whisperfold/token
#   sudo deploy/install.sh --profile pi5    default: what the board says it is (pi4, pi5, jetson, x86)
#   sudo deploy/install.sh --no-start       install and enable, do not start
#   sudo deploy/install.sh --uninstall      remove program and service; configuration and state stay
#   sudo deploy/install.sh --purge          remove these too
#   deploy/install.sh --dry-run ...         print what would be done
#
# Running it again upgrades; /etc/whisperfold is never overwritten.
set -euo pipefail

PREFIX=/opt/whisperfold
CONFIG_DIR=/etc/whisperfold
UNIT=/etc/systemd/system/whisperfold.service
DEPLOY=$(cd "$(dirname "$0")" && pwd)
SOURCE=$(dirname "$DEPLOY")

say() { echo "install: $*" >&2; }
fail() { say "$*"; exit 1; }
usage() { sed -n '4,10s/^#   //p' "$0"; }

# run COMMAND...: do it, or with --dry-run say it.
run() {
    if $dry_run; then printf '+ %s\n' "$*"; else "$@"; fi
}

# write MODE FILE: stdin into a new file.
write() {
    if $dry_run; then
        printf '+ write %s (mode %s)\n' "$2" "$1"
        sed 's/^/    /'
    else
        (umask 077 && cat > "$2.new") && chmod "$1" "$2.new" && mv "$2.new" "$2"
    fi
}

# A Python of the system: the service cannot look into anybody's home, where pyenv and conda live.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 /usr/bin/python3.1[1-9] /usr/local/bin/python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Name of the profile that fits this board.
find_profile() {
    local model=""
    [ -r /proc/device-tree/model ] && model=$(tr -d '\0' < /proc/device-tree/model)
    case "$model" in
        *"Raspberry Pi 5"* | *"Compute Module 5"*) echo pi5 ;;
        *Jetson*) echo jetson ;;
        *) if [ "$(uname -m)" = x86_64 ]; then echo x86; else echo pi4; fi ;;
    esac
}

check() {
    case "$(uname -s)-$(uname -m)" in
        Linux-aarch64 | Linux-x86_64) ;;
        *) fail "$(uname -s) on $(uname -m): expected 64-bit Linux on arm64 or x86-64; onnxruntime has no other wheels" ;;
    esac
    [ -f "$DEPLOY/profiles/$profile.toml" ] || fail "no profile '$profile'; there are: $(profiles)"
    $dry_run && return
    [ "$(id -u)" -eq 0 ] || fail "needs root; run: sudo $0"
    [ -d /run/systemd/system ] || fail "systemd does not run here; in a container use deploy/Dockerfile.arm64"
    local free_mb
    free_mb=$(df -Pm "$(dirname "$PREFIX")" | awk 'NR == 2 { print $4 }')
    [ "$free_mb" -ge 700 ] || fail "$free_mb MB free below $(dirname "$PREFIX"), expected 700; make room"
}

profiles() { (cd "$DEPLOY/profiles" && printf '%s ' *.toml | sed 's/\.toml//g'); }

install_packages() {
    run "$DEPLOY/system-packages.sh"
    local python
    if python=$(find_python) && "$python" -c 'import ensurepip' 2>/dev/null; then return; fi
    command -v apt-get >/dev/null || fail "no Python 3.11 with venv, and no apt-get; install both first"
    run apt-get install -y -qq --no-install-recommends python3 python3-venv
    $dry_run || find_python >/dev/null || fail "the system's Python is older than 3.11; upgrade the system (Debian 12 has 3.11)"
}

install_program() {
    local python copy
    python=$(find_python || echo /usr/bin/python3)
    # A system upgrade that replaced Python leaves a venv that cannot start.
    if ! "$PREFIX/bin/python" -c pass 2>/dev/null; then run "$python" -m venv --clear "$PREFIX"; fi
    # A copy: pip leaves build/ behind, which would be root's and bring deleted modules back next time.
    copy=$(mktemp -d)
    # shellcheck disable=SC2064  # copy is local: its value now
    trap "rm -rf '$copy'" EXIT
    (cd "$SOURCE" && cp -r pyproject.toml README.md LICENSE runtime compiler models "$copy/")
    run "$PREFIX/bin/python" -m pip --disable-pip-version-check install --quiet --no-cache-dir --upgrade \
        --constraint "$SOURCE/constraints.txt" "${copy}[serve]"
    run install -d -m 755 "$PREFIX/share/doc/whisperfold"
    run cp -r "$DEPLOY/README.md" "$DEPLOY/docs" "$DEPLOY/profiles" "$PREFIX/share/doc/whisperfold/"
}

install_config() {
    run install -d -m 755 "$CONFIG_DIR"
    if [ -e "$CONFIG_DIR/whisperfold.toml" ]; then
        say "$CONFIG_DIR/whisperfold.toml stays as it is"
        if $lan && ! grep -q '^token_file' "$CONFIG_DIR/whisperfold.toml"; then
            say "--lan: set host and token_file in it yourself; deploy/README.md shows how"
        fi
    else
        config | write 644 "$CONFIG_DIR/whisperfold.toml"
    fi
    if $lan && [ ! -e "$CONFIG_DIR/token" ]; then
        if $dry_run; then
            printf '+ write %s (mode 600)\n    a random token\n' "$CONFIG_DIR/token"
        else
            head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n' | write 600 "$CONFIG_DIR/token"
        fi
    fi
}

# The first configuration: where to listen, then the profile.
config() {
    echo "# Settings of whisperfold; all of them: ServerConfig in whisperfold/runtime/server_config.py. After a change: reload."
    echo "# Addresses, ports, threads and the microphone need a restart. Other ports: also SocketBindAllow in the unit."
    echo
    if $lan; then
        echo 'host = "0.0.0.0"'
        echo 'token_file = "/run/credentials/whisperfold.service/token"'
    else
        echo 'host = "127.0.0.1"'
    fi
    echo 'port = 8321'
    echo '# Home Assistant. Wyoming has no password: on an open host, whoever reaches this port can use it.'
    echo 'wyoming_port = 10300'
    echo '# The captions of this device'\''s own microphone: part of its name, see whisperfold devices.'
    echo '#microphone = "default"'
    echo
    cat "$DEPLOY/profiles/$profile.toml"
}

install_service() {
    run install -m 644 "$DEPLOY/whisperfold.service" "$UNIT"
    if $lan; then
        run install -d -m 755 "$UNIT.d"
        run install -m 644 "$DEPLOY/whisperfold-lan.conf" "$UNIT.d/lan.conf"
    fi
    run systemctl daemon-reload
    run systemctl enable --quiet whisperfold
    $start || return 0
    # Type=notify: returns when the service is ready, or has failed.
    if ! run systemctl restart whisperfold; then
        journalctl --unit whisperfold --lines 20 --no-pager >&2 || true
        fail "the service does not start; the log above says why"
    fi
}

uninstall() {
    run systemctl disable --now whisperfold || true
    run rm -f "$UNIT" "$UNIT.d/lan.conf"
    run systemctl daemon-reload
    # Only what install_program made.
    if [ -f "$PREFIX/pyvenv.cfg" ] || $dry_run; then run rm -rf "$PREFIX"; fi
    if $purge; then
        run rm -rf "$CONFIG_DIR" /var/lib/private/whisperfold /var/cache/private/whisperfold "$UNIT.d"
        run rm -f /var/lib/whisperfold /var/cache/whisperfold
    else
        say "kept: $CONFIG_DIR, /var/lib/whisperfold (--purge removes them)"
    fi
}

dry_run=false lan=false start=true purge=false action=install profile=$(find_profile)
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) dry_run=true ;;
        --lan) lan=true ;;
        --no-start) start=false ;;
        --profile) profile=${2:?--profile needs a name: $(profiles)}; shift ;;
        --uninstall) action=uninstall ;;
        --purge) action=uninstall purge=true ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; say "unknown: $1"; exit 2 ;;
    esac
    shift
done

check
if [ "$action" = uninstall ]; then
    uninstall
    exit 0
fi
install_packages
install_program
install_config
install_service
say "done (profile $profile); systemctl status whisperfold, journalctl -u whisperfold, $PREFIX/bin/whisperfold --help"
