"""``whisperfold doctor`` and ``whisperfold devices``: what works here, and which microphone would be used.

Heavy imports (numpy, PortAudio, onnxruntime) are inside the functions, so that ``--help`` answers at once.
"""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from whisperfold.runtime.cli_options import BundleOption, DeviceOption, ThreadsOption, say

if TYPE_CHECKING:
    from whisperfold.runtime.devices import InputDevice

EXIT_BROKEN = 1
_MARKS = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "broken": ("BROKEN ", "red")}


def doctor(
    device: DeviceOption = None,
    bundle: BundleOption = None,
    threads: ThreadsOption = 0,
    no_microphone: Annotated[
        bool, typer.Option("--no-microphone", help="Leave out sound: a server without a microphone of its own.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Check machine, sound, bundle and speed, and say what to do; exit code 1 when something is broken."""
    from whisperfold.runtime.doctor import examine

    findings = []
    for finding in examine(device, bundle, threads, microphone=not no_microphone):
        findings.append(finding)
        if not as_json:
            mark, colour = _MARKS[finding.state]
            typer.echo(f"{typer.style(mark, fg=colour)}  {finding.check}: {finding.found}")
            if finding.advice:
                typer.echo(f"         -> {finding.advice}")
    if as_json:
        typer.echo(json.dumps([finding.record() for finding in findings], ensure_ascii=False, indent=1))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(EXIT_BROKEN)


def devices(
    device: DeviceOption = None,
    meter: Annotated[bool, typer.Option("--meter", help="Show the level of the microphone until Ctrl-C.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="With --meter: end after this long; 0: never.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """List the microphones: * is what `listen` would use; devices that are not taken by themselves say why."""
    from whisperfold.runtime.devices import find_device, list_devices

    found = list_devices()
    chosen = find_device(device, found) if found or device is not None else None
    if meter:
        _show_level(find_device(device, found), seconds, as_json)
    elif as_json:
        records = [{**asdict(each), "would_use": each is chosen, "skipped": each.skipped} for each in found]
        typer.echo(json.dumps(records, ensure_ascii=False, indent=1))
    else:
        if not found:
            say("no device that can record was found; `whisperfold doctor` says what may be missing")
        for each in found:
            typer.echo(_line(each, is_chosen=each is chosen))


def _line(device: "InputDevice", is_chosen: bool) -> str:
    """One device on one line."""
    figures = f"({device.host_api}, {device.channels} channels, {device.native_rate_hz} Hz)"
    skipped = f"  skipped: {device.skipped}" if device.skipped else ""
    return f"{'*' if is_chosen else ' '}{device.index:3d}  {device.name}  {figures}{skipped}"


def _show_level(device: "InputDevice", seconds: float, as_json: bool) -> None:
    """Draw the level on a terminal; elsewhere one line, or JSON object, per second."""
    from contextlib import nullcontext

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from whisperfold.runtime.audio import SAMPLE_RATE
    from whisperfold.runtime.captions import level_bar
    from whisperfold.runtime.microphone import Microphone

    console = Console(highlight=False)
    is_drawn = console.is_terminal and not as_json
    n_samples, next_line_s = 0, 1.0
    with (
        Live(console=console, auto_refresh=False) if is_drawn else nullcontext() as live,
        Microphone(device.index, on_status=lambda status: say(status.message)) as microphone,
    ):
        for chunk in microphone.chunks():
            n_samples += chunk.size
            heard_s = n_samples / SAMPLE_RATE
            level = microphone.level
            if live is not None:
                figures = f" {level.dbfs:4.0f} dBFS  peak {level.peak:.2f}  lost blocks {microphone.dropped}  "
                bar = level_bar(level.dbfs, 40, console.options.ascii_only)
                live.update(Text.assemble(bar, figures, (level.problem, "bold red")), refresh=True)
            elif heard_s >= next_line_s:
                next_line_s += 1.0
                record = {"dbfs": round(level.dbfs, 1), "peak": round(level.peak, 3), "problem": level.problem}
                text = " ".join(f"{name}={value}" for name, value in record.items() if value != "")
                print(json.dumps(record) if as_json else text, file=sys.stdout, flush=True)
            if 0.0 < seconds <= heard_s:
                break
