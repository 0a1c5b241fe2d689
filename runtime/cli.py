"""The ``whisperfold`` command: transcribe, listen, devices, info, version, and plug-ins (compile, verify).

Text goes to stdout, everything else to stderr. Exit codes: 0 done, 2 wrong use or bad input, 130 Ctrl-C.
Heavy imports (onnxruntime, numpy) are inside the commands, so that ``--help`` and completion answer at once.

The compiler's commands are plug-ins (plugins.py), loaded when they are called.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whisperfold.runtime.errors import AudioError, ConfigError, WhisperfoldError
from whisperfold.runtime.plugins import CommandGroup

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

BundleOption = Annotated[
    Path | None, typer.Option("--bundle", "-b", help="Bundle directory. Default: the packaged tiny.en.")
]
LanguageOption = Annotated[
    str | None,
    typer.Option("--language", "-l", help="Language code such as 'en'. Default: what the bundle speaks."),
]
TaskOption = Annotated[str, typer.Option(help="transcribe, or translate (to English; multilingual bundles).")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads; 0: the cores there are, at most 4.")]


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
    language: LanguageOption = None,
    task: TaskOption = "transcribe",
    threads: ThreadsOption = 0,
    word_timestamps: Annotated[
        bool, typer.Option("--word-timestamps", help="Words with times and probabilities (json, jsonl).")
    ] = False,
    beam_size: Annotated[int, typer.Option(min=1, help="Hypotheses kept by the search; 1 is greedy.")] = 1,
    prompt: Annotated[str | None, typer.Option(help="Text that sets style and spelling.")] = None,
    no_vad: Annotated[bool, typer.Option("--no-vad", help="Decode silence too.")] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="txt: one line per segment, with its times.")
    ] = False,
) -> None:
    """Transcribe audio files (anything libsndfile reads, any rate, any number of channels)."""
    from whisperfold.runtime import formats, progress

    formats.check_format(output_format)
    if len(files) > 1 and output_dir is None and output_format in formats.ONE_FILE_PER_DOCUMENT:
        raise ConfigError(
            f"--format {output_format} holds one recording, {len(files)} were given; add --output-dir DIR, "
            "or use --format jsonl"
        )
    outputs = formats.output_paths(files, output_dir, output_format)
    options = {
        "language": language,
        "task": task,
        "word_timestamps": word_timestamps,
        "beam_size": beam_size,
        "prompt": prompt,
        "vad": not no_vad,
    }
    transcriber = _open_transcriber(bundle, threads)
    failed = 0
    for source in files:
        try:
            with formats.open_output(outputs[source]) as out:
                writer = formats.open_writer(output_format, out, source, timestamps)
                try:
                    _transcribe_one(transcriber, source, writer, options, progress.is_wanted(output_dir is not None))
                except BaseException:
                    writer.abandon()
                    raise
        except AudioError as error:
            failed += 1
            _say(error)
    if failed:
        if len(files) > 1:
            _say(f"{failed} of {len(files)} files failed")
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command()
def listen(
    device: Annotated[
        str | None,
        typer.Option("--device", "-d", help="Index, name or part of a name; see `whisperfold devices`."),
    ] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", "-i", help="Play this file through the same path instead.")
    ] = None,
    as_fast_as_possible: Annotated[
        bool, typer.Option("--as-fast-as-possible", help="With --input: do not wait for real time.")
    ] = False,
    output_format: Annotated[str, typer.Option("--format", "-f", help="txt or jsonl.")] = "txt",
    bundle: BundleOption = None,
    language: LanguageOption = None,
    task: TaskOption = "transcribe",
    threads: ThreadsOption = 0,
    prompt: Annotated[str | None, typer.Option(help="Text that sets style and spelling.")] = None,
) -> None:
    """Transcribe the microphone: one line per utterance, until Ctrl-C."""
    import json

    from whisperfold.runtime import formats
    from whisperfold.runtime import listen as listening

    formats.check_format(output_format, ("txt", "jsonl"))
    if input_file is not None and device is not None:
        raise ConfigError("--device and --input exclude each other; give one of them")
    if as_fast_as_possible and input_file is None:
        raise ConfigError("--as-fast-as-possible needs --input FILE; a microphone runs in real time")
    options = {"language": language, "task": task, "prompt": prompt}
    if input_file is not None:
        chunks = listening.file_chunks(input_file, real_time=not as_fast_as_possible)
        microphone = None
    else:
        from whisperfold.runtime.microphone import Microphone

        microphone = Microphone(device)
        chunks = microphone.chunks()
    transcriber = _open_transcriber(bundle, threads)
    with microphone or _nothing():
        if microphone is not None:
            _say(f"listening to {microphone.device.name} (Ctrl-C ends)", prefix="")
        for utterance in listening.listen(transcriber, chunks, options):
            is_text = output_format == "txt"
            typer.echo(utterance.text if is_text else json.dumps(utterance.record(), ensure_ascii=False))
    if microphone is not None and microphone.dropped:
        _say(f"{microphone.dropped} blocks of audio were lost; this device is too slow for the bundle")


@app.command()
def devices(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """List the microphones that `listen --device` can use."""
    import json
    from dataclasses import asdict

    from whisperfold.runtime.microphone import list_devices

    found = list_devices()
    if as_json:
        typer.echo(json.dumps([asdict(device) for device in found], ensure_ascii=False, indent=1))
        return
    if not found:
        _say("no device that can record was found")
    for device in found:
        star = "*" if device.is_default else " "
        typer.echo(
            f"{star}{device.index:3d}  {device.name}  ({device.host_api}, {device.channels} channels, "
            f"{device.native_rate_hz} Hz)"
        )


@app.command()
def info(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle directory. Default: the packaged tiny.en.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest, for machines.")] = False,
) -> None:
    """Show what a bundle is: source, ranks, window, where the bytes are, measured results."""
    from whisperfold.runtime.bundle import Bundle, default_bundle

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
        _say(error)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    return 0


def _open_transcriber(bundle: Path | None, threads: int) -> "Transcriber":
    """Load the weights; None is the packaged bundle."""
    from whisperfold.runtime.transcribe import Transcriber

    return Transcriber.open(bundle, threads=threads)


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


@contextmanager
def _nothing() -> Iterator[None]:
    """A context that does nothing."""
    yield


def _say(message: object, prefix: str = "whisperfold: ") -> None:
    """Write one line to stderr."""
    print(f"{prefix}{' '.join(str(message).split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
