#!/usr/bin/env bash
# Install the two shared libraries that pip cannot bring on every device: PortAudio (microphone) and libsndfile
# (audio files; the soundfile wheel has it on common platforms). Without root it says what is missing and goes on:
# only `whisperfold listen` and `whisperfold devices` need PortAudio.
set -uo pipefail

is_missing() { ! { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep -q "$1"; }

packages=()
is_missing 'libportaudio\.so\.2' && packages+=(libportaudio2)
is_missing 'libsndfile\.so\.1' && packages+=(libsndfile1)
[ ${#packages[@]} -eq 0 ] && exit 0

say() { echo "system-packages: $*" >&2; }

if ! command -v apt-get >/dev/null; then
    say "missing ${packages[*]} and there is no apt-get; install them with your package manager (needed for the microphone)"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    say "missing ${packages[*]}; run: sudo apt-get install ${packages[*]} (needed for the microphone), going on without"
    exit 0
fi

install() {
    timeout 300 "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null 2>&1
}

if install || { timeout 120 "${as_root[@]}" apt-get update -qq >/dev/null 2>&1; install; }; then
    say "installed ${packages[*]}"
else
    say "could not install ${packages[*]} (no network, or not in apt's sources); going on without the microphone"
fi
exit 0
