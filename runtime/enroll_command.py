"""``whisperfold enroll NAME``: read sentences aloud, or import recordings; then this device learns the voice.

Heavy imports are inside the functions, so that ``--help`` answers at once.
"""

import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whisperfold.runtime.cli_options import (
    BundleOption,
    DeviceOption,
    LanguageOption,
    ProfilesOption,
    ThreadsOption,
    say,
)
from whisperfold.runtime.errors import EnrollmentError
from whisperfold.runtime.profiles_command import PassphraseFileOption, ask_passphrase, unlock

if TYPE_CHECKING:
    from whisperfold.runtime.enroll import Outcome
    from whisperfold.runtime.enroll_terminal import Studio
    from whisperfold.runtime.profiles import ProfileStore
    from whisperfold.runtime.recordings import RecordingStore
    from whisperfold.runtime.transcribe import Transcriber

EXIT_NOT_TAKEN = 1
EXIT_INTERRUPTED = 130


def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile: letters, digits, '.', '-', '_'.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Recordings: a .jsonl (audio, text), or a folder of audio files and .txt."),
    ] = None,
    device: DeviceOption = None,
    prompts: Annotated[int, typer.Option(min=0, help="Packaged sentences to read aloud.")] = 25,
    sentence: Annotated[
        list[str] | None, typer.Option("--sentence", help="One of your own, e.g. with names; may be given again.")
    ] = None,
    sentences: Annotated[Path | None, typer.Option(help="File with your own sentences, one a line.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to the recordings that are there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was begun; record nothing more.")] = False,
    max_memory: Annotated[int, typer.Option(min=400, help="MB that the adaptation may take.")] = 1500,
    nice: Annotated[int, typer.Option(min=0, max=19, help="Priority: 19 gives way to everything.")] = 10,
    threads: ThreadsOption = 0,
    language: LanguageOption = None,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Seal recordings and report with a passphrase.")] = False,
    passphrase_file: PassphraseFileOption = None,
    root: ProfilesOption = None,
    bundle: BundleOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
) -> None:
    """Learn a voice on this device: record or import, adapt, test, and use the result only if it is better.

    Recordings and profiles stay here, readable by you alone. Exit code 1: the new profile was not taken; 2: the
    recordings cannot be learned from.
    """
    from whisperfold.runtime.bundle import Bundle
    from whisperfold.runtime.enroll_options import EnrollOptions
    from whisperfold.runtime.packaged import default_bundle
    from whisperfold.runtime.profiles import ProfileStore
    from whisperfold.runtime.transcribe import Transcriber

    store = ProfileStore(Bundle.open(bundle or default_bundle(), check=False), root)
    unlock(store, name, passphrase_file)
    recordings = store.recordings(name)
    n_kept = len(recordings.all())
    if n_kept and not (add or resume):
        raise EnrollmentError(f"{name} has {n_kept} recordings; --resume goes on with them, --add adds more")
    if resume and (source is not None or add):
        raise EnrollmentError("--resume takes no more recordings; use --add")
    if encrypt and not store.is_encrypted(name):
        store.encrypt(name, ask_passphrase(name, passphrase_file, is_new=True))
        recordings = store.recordings(name)
    transcriber = Transcriber.open(bundle, threads)
    language = _language(store, name, transcriber, language)
    if not resume:
        wanted = _sentences(prompts, sentence or [], sentences, language or "en") if source is None else []
        with store.locked(name):
            if source is not None:
                _import(source, recordings, transcriber, language)
            else:
                _record(name, wanted, recordings, transcriber, device, language)
        if source is None and not yes and not typer.confirm("Learn from them now?", default=True, err=True):
            say(f"not now; later: whisperfold enroll {name} --resume")
            return
    os.nice(nice)
    options = EnrollOptions(language=language, threads=threads, max_memory_mb=max_memory)
    try:
        outcome = _adapt(store, name, transcriber, options)
    except KeyboardInterrupt:
        say(f"stopped, nothing has changed; go on with: whisperfold enroll {name} --resume")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print(outcome)
    if not outcome.decision.promoted:
        raise typer.Exit(EXIT_NOT_TAKEN)


def _language(store: "ProfileStore", name: str, transcriber: "Transcriber", asked: str | None) -> str | None:
    """The language of a person's recordings: what is asked for is kept, and holds from then on."""
    language = asked or store.language(name)
    if language is not None:
        transcriber.engine.tokenizer.sot_sequence(language)  # whether the bundle knows it
    return store.keep_language(name, asked)


def _sentences(n_prompts: int, own: list[str], file: Path | None, language: str) -> list[str]:
    """The user's own sentences first, then the packaged ones; own ones do in a language that has none."""
    from whisperfold.runtime.recordings import read_prompts

    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file is not None else []
    except (OSError, UnicodeDecodeError) as error:
        raise EnrollmentError(f"{file}: not readable ({error}); expected one sentence a line, UTF-8") from error
    wanted = [line.strip() for line in (*own, *lines) if line.strip()]
    try:
        wanted += read_prompts(language)[:n_prompts] if n_prompts else []
    except EnrollmentError:
        if not wanted:
            raise
    if not wanted:
        raise EnrollmentError("nothing to read aloud; give --prompts, --sentence or --sentences FILE")
    return list(dict.fromkeys(wanted))


def _import(source: Path, recordings: "RecordingStore", transcriber: "Transcriber", language: str | None) -> None:
    """Copy recordings into the store; those without text get the model's own, where it is sure."""
    from whisperfold.runtime.recordings import label, read_source

    counts = {"import": 0, "self": 0, "known": 0}
    for candidate in read_source(source):
        labelled = [candidate] if candidate.text is not None else label(candidate, transcriber, language)
        for item in labelled:
            kept = recordings.add(item.samples, item.text or "", item.kind)
            counts[item.kind if kept else "known"] += 1
    imported, guessed, known = counts.values()
    say(f"{imported} recordings imported, {guessed} labelled by the model, {known} known already")


def _record(
    name: str,
    wanted: list[str],
    recordings: "RecordingStore",
    transcriber: "Transcriber",
    device: str | None,
    language: str | None,
) -> None:
    """The guided flow at the terminal; q and Ctrl-C keep what is there, and end the command."""
    from whisperfold.runtime.enroll_terminal import read_aloud

    if not sys.stdin.isatty():
        raise EnrollmentError("recording needs a terminal; import recordings with --from, or use the web page")
    code = 0
    try:
        if read_aloud(wanted, recordings, transcriber, _studio(device), language):
            return
    except (KeyboardInterrupt, EOFError):
        code = EXIT_INTERRUPTED
    say(f"{len(recordings.all())} recordings are kept; go on with: whisperfold enroll {name} --add")
    raise typer.Exit(code)


def _studio(device: str | None) -> "Studio":
    """The microphone and the keyboard."""
    from rich.console import Console

    from whisperfold.runtime.audio import SAMPLE_RATE
    from whisperfold.runtime.devices import load_sounddevice
    from whisperfold.runtime.enroll_terminal import Studio
    from whisperfold.runtime.microphone import Microphone

    console, sounddevice = Console(stderr=True), load_sounddevice()

    def chunks() -> Iterator[Any]:
        """The microphone, open while it is read."""
        with Microphone(device) as microphone:
            console.print("  [bold red]recording[/] (Enter ends it)")
            yield from microphone.chunks()

    def pressed() -> bool:
        """Whether a line was typed."""
        if select.select([sys.stdin], [], [], 0)[0]:
            sys.stdin.readline()
            return True
        return False

    def play(samples: Any) -> None:
        """Through the loudspeaker."""
        sounddevice.play(samples, SAMPLE_RATE, blocking=True)

    return Studio(chunks, console.input, lambda line: console.print(line, markup=False, highlight=False), play, pressed)


def _adapt(store: "ProfileStore", name: str, transcriber: "Transcriber", options: Any) -> "Outcome":
    """Enroll with a bar on the terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from whisperfold.runtime.enroll import Progress as Report
    from whisperfold.runtime.enroll import enroll as run

    console = Console(stderr=True)
    share = TextColumn("{task.percentage:>3.0f} %  {task.fields[rest]}")
    with Progress(
        TextColumn("{task.description:<19}"), BarColumn(), share, console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("checking recordings", total=1.0, rest="")

        def show(report: Report) -> None:
            """Where it is, and how long it will take."""
            rest = "" if report.remaining_s is None else f"{report.remaining_s / 60:.1f} min left"
            bar.update(task, description=report.stage, completed=report.share, rest=rest)

        return run(store, name, transcriber, options, on_progress=show)


def _print(outcome: "Outcome") -> None:
    """The result, for people."""
    for file, reason in outcome.selection.left_out:
        say(f"{file}: left out, {reason}")
    for file, warning in outcome.selection.warnings:
        say(f"{file}: learned, but {warning}")
    verdict = "in use now" if outcome.decision.promoted else "not taken"
    typer.echo(f"{outcome.profile.name}: {verdict}: {outcome.decision.reason}")
    typer.echo(f"report: {outcome.profile.report}")
