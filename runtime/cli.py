"""The ``whisperfold`` command: transcribe, listen, serve, enroll, profiles, devices, doctor, info, version.

Text goes to stdout, everything else to stderr. Exit codes: 0 done, 2 wrong use or bad input, 130 Ctrl-C;
1: doctor found something broken, enroll did not take the profile.
Heavy imports (onnxruntime, numpy) are inside the commands, so that ``--help`` and completion answer at once.

The compiler's compile, study and verify are plug-ins (plugins.py), loaded when they are called.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whisperfold.runtime.cli_options import (
    BundleOption,
    HotwordOption,
    LanguageOption,
    ProfilesOption,
    PromptOption,
    SpeakerOption,
    TaskOption,
    ThreadsOption,
    say,
)
from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.doctor_command import devices, doctor
from whisperfold.runtime.enroll_command import enroll
from whisperfold.runtime.errors import AudioError, ConfigError, WhisperfoldError
from whisperfold.runtime.listen_command import listen
from whisperfold.runtime.plugins import CommandGroup
from whisperfold.runtime.profiles_command import profiles
from whisperfold.runtime.serve_command import serve

if TYPE_CHECKING:
    from whisperfold.runtime.transcribe import Transcriber

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Speech recognition folded to fit the device and the person.",
)


@app.callback()
def configure(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log to stderr; twice: debug.")] = 0,
) -> None:
    """Speech recognition folded to fit the device and the person."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s", force=True)


@app.command()
def transcribe(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Audio files; - is stdin.")],
    output_format: Annotated[str, typer.Option("--format", "-f", help="txt, srt, vtt, json or jsonl.")] = "txt",
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="One transcript per file here, instead of stdout."),
    ] = None,
    bundle: BundleOption = None,
    speaker: SpeakerOption = None,
    profiles_dir: ProfilesOption = None,
    language: LanguageOption = None,
    task: TaskOption = "transcribe",
    threads: ThreadsOption = 0,
    word_timestamps: Annotated[
        bool, typer.Option("--word-timestamps", help="Words with times and probabilities (json, jsonl).")
    ] = False,
    beam_size: Annotated[int, typer.Option(min=1, help="Hypotheses kept by the search; 1 is greedy.")] = (
        DecodingOptions.beam_size
    ),
    prompt: PromptOption = None,
    hotword: HotwordOption = None,
    no_vad: Annotated[bool, typer.Option("--no-vad", help="Decode silence too.")] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="txt: one line per segment, with its times.")
    ] = False,
) -> None:
    """Transcribe audio files (anything libsndfile reads, any rate, any number of channels)."""
    from whisperfold.runtime import formats, progress
    from whisperfold.runtime.outputs import open_output, output_paths
    from whisperfold.runtime.speaker import open_transcriber

    formats.check_format(output_format)
    if len(files) > 1 and output_dir is None and output_format in formats.ONE_FILE_PER_DOCUMENT:
        raise ConfigError(
            f"--format {output_format} holds one recording, {len(files)} were given; add --output-dir DIR, "
            "or use --format jsonl"
        )
    paths = output_paths(files, output_dir, output_format)
    options = {
        "language": language,
        "task": task,
        "word_timestamps": word_timestamps,
        "beam_size": beam_size,
        "prompt": prompt,
        "hotwords": tuple(hotword or ()),
        "vad": not no_vad,
    }
    transcriber = open_transcriber(bundle, speaker, profiles_dir, threads)
    failed = 0
    for source in files:
        try:
            with open_output(paths[source]) as out:
                writer = formats.open_writer(output_format, out, source, timestamps)
                try:
                    _transcribe_one(transcriber, source, writer, options, progress.is_wanted(output_dir is not None))
                except BaseException:
                    writer.abandon()
                    raise
        except AudioError as error:
            failed += 1
            say(error)
    if failed:
        if len(files) > 1:
            say(f"{failed} of {len(files)} files failed")
        raise typer.Exit(EXIT_BAD_INPUT)


app.command()(listen)
app.command()(serve)
app.command()(enroll)
app.add_typer(profiles, name="profiles")
app.command()(devices)
app.command()(doctor)


@app.command()
def info(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle directory, or a packaged one's name. Default: tiny.en.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest, for machines.")] = False,
) -> None:
    """Show what a bundle is: source, ranks, window, where the bytes are, measured results."""
    from whisperfold.runtime.bundle import Bundle
    from whisperfold.runtime.packaged import default_bundle

    opened = Bundle.open(bundle if bundle is not None else default_bundle())
    if as_json:
        import json

        typer.echo(json.dumps({"path": str(opened.path), **opened.manifest}, ensure_ascii=False, indent=1))
        return
    from whisperfold.runtime.info import print_bundle

    print_bundle(opened.path, opened.manifest)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed_version

    try:
        typer.echo(f"whisperfold {installed_version('whisperfold')}")
    except PackageNotFoundError:
        typer.echo("whisperfold (not installed)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; errors that a person can act on are one line on stderr.

    Args:
        arguments: without the program's name; None takes sys.argv.

    Returns:
        The exit code, when the command did not already exit by itself.
    """
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="whisperfold")
    except WhisperfoldError as error:
        say(error)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    return 0


def _transcribe_one(
    transcriber: "Transcriber", source: str, writer: Any, options: dict[str, Any], show_progress: bool
) -> None:
    """Read one recording block by block (flat memory) and hand its segments to the writer."""
    from whisperfold.runtime import audio, progress

    audio_source = sys.stdin.buffer if source == "-" else source
    seconds = _Seconds(audio.stream_audio(audio_source))
    total_s = audio.duration_s(source) if show_progress and source != "-" else 0.0
    with progress.bar(source, total_s, show_progress) as advance:
        for segment in transcriber.transcribe_blocks(seconds, **options):
            writer.write(segment)
            advance(seconds.read_s)
    writer.finish(language=options["language"] or transcriber.language, duration_s=seconds.read_s)


class _Seconds:
    """Pass audio blocks on and count their seconds."""

    def __init__(self, blocks: Iterator[Any]) -> None:
        self._blocks = blocks
        self.read_s = 0.0

    def __iter__(self) -> Iterator[Any]:
        for block in self._blocks:
            self.read_s += len(block) / 16000
            yield block


if __name__ == "__main__":
    sys.exit(main())
