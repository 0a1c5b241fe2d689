"""``whisperfold serve``: recognition for other programs and machines, until SIGTERM or Ctrl-C.

Heavy imports (starlette, onnxruntime) are inside the function, so that ``--help`` answers at once.
"""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from whisperfold.runtime.cli_options import BundleOption, ProfilesOption, SpeakerOption, say


def serve(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; flags win over it.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="TOML file of the device, e.g. deploy/profiles/pi5.toml; the config wins over it."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1; others need a token.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 takes a free one. Default: 8321.")] = None,
    unix_socket: Annotated[Path | None, typer.Option(help="Also listen on this Unix socket, without a token.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the token that other machines must send.")] = None,
    bundle: BundleOption = None,
    speaker: SpeakerOption = None,
    profiles: ProfilesOption = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of one run; 0: the cores there are, at most 4.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at the same time. Default: 1.")] = None,
    wyoming_port: Annotated[
        int | None, typer.Option(help="Also serve Home Assistant (Wyoming) here, usually 10300. Default: off.")
    ] = None,
    wyoming_host: Annotated[
        str | None, typer.Option(help="Address of the Wyoming port, which has no password. Default: --host.")
    ] = None,
    microphone: Annotated[
        str | None, typer.Option(help="Caption this input device for all clients: index, name or 'default'.")
    ] = None,
    idle_unload_s: Annotated[
        float | None, typer.Option(help="Drop the weights after so many seconds without work. Default: never.")
    ] = None,
    log_transcripts: Annotated[
        bool | None, typer.Option("--log-transcripts", help="Write recognised text to the log.")
    ] = None,
) -> None:
    """Serve OpenAI's HTTP and realtime API, Wyoming, live captions and a web page.

    SIGHUP reads the config and the bundle again; SIGTERM finishes what is running.
    """
    try:
        from whisperfold.runtime import serve as server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("whisperfold"):
            raise
        say(f"serve needs the serve extra: pip install 'whisperfold[serve]' (missing: {error.name})")
        raise typer.Exit(2) from None
    from whisperfold.runtime.server_config import load_config

    log = logging.getLogger("whisperfold")
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)  # a daemon's log is its only voice
    load = partial(
        load_config,
        config,
        profile,
        host=host,
        port=port,
        unix_socket=unix_socket,
        token_file=token_file,
        bundle=bundle,
        speaker=speaker,
        profiles=profiles,
        threads=threads,
        workers=workers,
        wyoming_port=wyoming_port,
        wyoming_host=wyoming_host,
        microphone=microphone,
        idle_unload_s=idle_unload_s,
        log_transcripts=log_transcripts,
    )
    server.serve(load, partial(print, file=sys.stderr, flush=True))
