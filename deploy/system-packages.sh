#!/usr/bin/env bash
# Install what pip cannot bring on every device: PortAudio (microphone) and libsndfile (audio files; the soundfile wheel
# has it on common platforms). With --test also what the live and browser tests need: PulseAudio, ALSA's plugin for it,
# Chromium. Without root it says what is missing and goes on: what needs it says so again, or skips.
set -uo pipefail

say() { echo "system-packages: $*" >&2; }
has_library() { { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep -q "$1"; }
has_command() { command -v "$1" >/dev/null; }
has_alsa_pulse() { compgen -G '/usr/lib/*/alsa-lib/libasound_module_pcm_pulse.so' >/dev/null; }

packages=()
has_library 'libportaudio\.so\.2' || packages+=(libportaudio2)
has_library 'libsndfile\.so\.1' || packages+=(libsndfile1)
case "${1:-}" in
    "") ;;
    --test)
        has_command pulseaudio || packages+=(pulseaudio)
        has_command pactl || packages+=(pulseaudio-utils)
        has_alsa_pulse || packages+=(libasound2-plugins)
        has_command chromium || packages+=(chromium)
        ;;
    *)
        say "unknown: $1; the only option is --test"
        exit 2
        ;;
esac
[ ${#packages[@]} -eq 0 ] && exit 0

if ! has_command apt-get; then
    say "missing ${packages[*]} and there is no apt-get; install them with your package manager"
    exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif has_command sudo && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    say "missing ${packages[*]}; run: sudo apt-get install ${packages[*]}; going on without"
    exit 0
fi

# Chromium is large: minutes on a slow line.
install() {
    timeout 600 "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null 2>&1
}

if install || { timeout 120 "${as_root[@]}" apt-get update -qq >/dev/null 2>&1; install; }; then
    say "installed ${packages[*]}"
else
    say "could not install ${packages[*]} (no network, or not in apt's sources); going on without"
fi
exit 0
