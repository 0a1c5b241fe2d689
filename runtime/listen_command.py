"""``whisperfold listen``: the microphone, or a file in its place, to captions, lines, JSON or subtitles.

Heavy imports (numpy, onnxruntime, rich) are inside the functions, so that ``--help`` answers at once.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whisperfold.runtime.cli_options import (
    BundleOption,
    DeviceOption,
    HotwordOption,
    LanguageOption,
    ProfilesOption,
    PromptOption,
    SpeakerOption,
    TaskOption,
    ThreadsOption,
    say,
)
from whisperfold.runtime.errors import ConfigError

if TYPE_CHECKING:
    from whisperfold.runtime.listen_output import Output
    from whisperfold.runtime.transcribe import Transcriber


def listen(
    device: DeviceOption = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", "-i", help="Play this file through the same path instead.")
    ] = None,
    as_fast_as_possible: Annotated[
        bool, typer.Option("--as-fast-as-possible", help="With --input: do not wait for real time.")
    ] = False,
    output_format: Annotated[
        str, typer.Option("--format", "-f", help="text (captions on a terminal), txt, jsonl, srt or vtt.")
    ] = "text",
    bundle: BundleOption = None,
    speaker: SpeakerOption = None,
    profiles: ProfilesOption = None,
    language: LanguageOption = None,
    task: TaskOption = "transcribe",
    threads: ThreadsOption = 0,
    prompt: PromptOption = None,
    hotword: HotwordOption = None,
    policy: Annotated[
        str | None,
        typer.Option(help="What commits words: attention-frontier or local-agreement. Default: what the bundle can."),
    ] = None,
    save_audio: Annotated[
        Path | None, typer.Option("--save-audio", help="Record what is heard to this .flac or .wav. Default: no.")
    ] = None,
) -> None:
    """Transcribe the microphone live, until Ctrl-C.

    On a terminal: captions, tentative text in angle marks. Elsewhere: one line per utterance.
    """
    from whisperfold.runtime import listen as live
    from whisperfold.runtime.formats import check_format
    from whisperfold.runtime.listen_output import FORMATS
    from whisperfold.runtime.speaker import open_transcriber
    from whisperfold.runtime.stream_options import StreamOptions

    check_format(output_format, FORMATS)
    if input_file is not None and device is not None:
        raise ConfigError("--device and --input exclude each other; give one of them")
    if as_fast_as_possible and input_file is None:
        raise ConfigError("--as-fast-as-possible needs --input FILE; a microphone runs in real time")
    options: dict[str, Any] = {"language": language, "task": task, "prompt": prompt}
    if hotword:
        options["hotwords"] = tuple(hotword)
    streaming = StreamOptions(policy=policy)
    with ExitStack() as stack:
        source = _Microphone(device) if input_file is None else _File(input_file, not as_fast_as_possible)
        transcriber = open_transcriber(bundle, speaker, profiles, threads)
        stop = stack.enter_context(_stopping())
        if save_audio is not None:
            say(f"RECORDING: all that is heard goes to {save_audio}, until Ctrl-C", prefix="")
        output = source.output = _open_output(stack, output_format, source.name, transcriber, save_audio is not None)
        chunks = live.until(stop, source.open(stack), source.close)
        if save_audio is not None:
            chunks = live.saved(chunks, save_audio)
        duration_s = 0.0

        def on_chunk(session: Any, heard_s: float) -> None:
            """Show the level, remember the length."""
            nonlocal duration_s
            duration_s = heard_s
            output.chunk(session.level_dbfs, session.in_speech, heard_s, source.dropped)

        for event in live.listen(transcriber, chunks, options, streaming, on_chunk):
            output.event(event)
        output.finish(duration_s)
    if source.dropped:
        say(f"{source.dropped} blocks of audio were lost; this device is too slow for the bundle")


class _File:
    """A file that stands in for the microphone."""

    close = None
    dropped = 0

    def __init__(self, path: Path, real_time: bool) -> None:
        self.name, self._path, self._real_time = str(path), path, real_time
        self.output: Output | None = None

    def open(self, stack: ExitStack) -> Iterator[Any]:
        """Its chunks."""
        from whisperfold.runtime.listen import file_chunks

        return file_chunks(self._path, self._real_time)


class _Microphone:
    """The microphone, and where its status is shown."""

    def __init__(self, device: str | None) -> None:
        from whisperfold.runtime.microphone import Microphone

        self._microphone = Microphone(device, on_status=self._on_status)
        self.name = self._microphone.device.name if self._microphone.device else "microphone"
        self.output: Output | None = None

    def open(self, stack: ExitStack) -> Iterator[Any]:
        """Its chunks; recording begins."""
        return stack.enter_context(self._microphone).chunks()

    def close(self) -> None:
        """Stop recording; what was recorded is still handed out."""
        self._microphone.close()

    @property
    def dropped(self) -> int:
        """Blocks that were lost."""
        return self._microphone.dropped

    def _on_status(self, status: Any) -> None:
        """Show that it delivers sound, is lost, back, or cannot be understood."""
        if self.output is not None:
            self.output.status(status)


def _open_output(stack: ExitStack, name: str, source: str, transcriber: "Transcriber", is_recording: bool) -> "Output":
    """Captions for text on a terminal, else lines."""
    if name == "text" and sys.stdout.isatty():
        from whisperfold.runtime.captions import Captions

        return stack.enter_context(Captions(source, is_recording))
    from whisperfold.runtime.listen_output import open_output

    return open_output(name, sys.stdout, source, transcriber.language)


@contextmanager
def _stopping() -> Iterator[Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second one interrupts at once."""
    stop = Event()

    def on_signal(number: int, frame: Any) -> None:
        """Ask to stop, or insist."""
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
