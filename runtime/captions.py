"""Events of a live stream -> captions on a terminal.

    Ask not what your country can do for you.              finished utterances scroll away
    Ask what you can do ‹for your›                          the open one: committed, then ‹tentative›
    ▕████████▋           ▏ -31 dBFS  speech  delay 0.4 s  lag 0.0 s  lost blocks 0  USB Mic

Tentative text is in angle marks, so that it can be told apart without colours; they, and the bar, are plain
ASCII on a terminal that has nothing else.
"""

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from whisperfold.runtime.microphone import MicrophoneStatus
    from whisperfold.runtime.stream_event import StreamEvent

BAR_DBFS = -60.0
"""Left end of the level bar; the right end is 0 dBFS."""
HOT_DBFS = -6.0
"""RMS from here on is nearly clipping."""


class Captions:
    """The live view; a context manager with the methods of listen_output.Output.

    Args:
        source: what is listened to, for the last line.
        is_recording: whether the audio is being saved; then the last line says so.
        console: where to draw; None is stdout.
    """

    def __init__(self, source: str, is_recording: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._is_ascii = self._console.options.ascii_only
        self._source, self._is_recording = source, is_recording
        self._committed = self._tentative = ""
        self._level_dbfs, self._is_speech, self._dropped = BAR_DBFS, False, 0
        self._heard_s = self._lag_s = 0.0
        self._delay_s: float | None = None
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stderr=False)

    def __enter__(self) -> "Captions":
        """Start to draw."""
        self._live.start()
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the finished utterances on the terminal, nothing else."""
        self._live.stop()

    def event(self, event: "StreamEvent") -> None:
        """Show an event; a final moves up into the finished ones."""
        is_final = event.kind == "final"
        self._committed = "" if is_final else event.committed
        self._tentative = "" if is_final else event.tentative
        self._lag_s = event.lag_s
        if is_final or event.words:
            # Since the last committed word was spoken; chunk() has said what has been heard.
            end_s = event.end_s if is_final else event.words[-1].end_s
            self._delay_s = max(0.0, self._heard_s - end_s)
        self._draw()
        if is_final:
            self._console.print(Text(event.committed.strip()), soft_wrap=True)

    def status(self, status: "MicrophoneStatus") -> None:
        """Show what happened to the microphone, among the finished utterances."""
        self._console.print(Text(f"[{status.message}]", style="yellow"), soft_wrap=True)
        self._draw()

    def chunk(self, level_dbfs: float, is_speech: bool, heard_s: float, dropped: int) -> None:
        """Show the level."""
        self._level_dbfs, self._is_speech = level_dbfs, is_speech
        self._heard_s, self._dropped = heard_s, dropped
        self._draw()

    def finish(self, duration_s: float) -> None:
        """Nothing comes after the last utterance."""

    def _draw(self) -> None:
        """Draw the open utterance and the last line."""
        self._live.update(Group(self._utterance(), self._footer()), refresh=True)

    def _utterance(self) -> Text:
        """Committed text, then tentative text in marks; the end of it, if it does not fit on the terminal."""
        text = Text(self._committed.strip(), style="bold")
        if self._tentative.strip():
            left, right = ("<", ">") if self._is_ascii else ("‹", "›")
            text.append(" " if text else "")
            text.append(f"{left}{self._tentative.strip()}{right}", style="not bold dim italic")
        lines = text.wrap(self._console, self._console.width)
        return Text("\n").join(list(lines)[-max(1, self._console.height - 3) :])

    def _footer(self) -> Text:
        """Level, delay, lag, what was lost, and where it comes from."""
        footer = level_bar(self._level_dbfs, is_ascii=self._is_ascii)
        footer.append(f" {self._level_dbfs:4.0f} dBFS  {'speech' if self._is_speech else '      '}")
        if self._delay_s is not None:
            footer.append(f"  delay {self._delay_s:.1f} s")
        footer.append(f"  lag {self._lag_s:.1f} s", style="bold red" if self._lag_s > 1.0 else "")
        footer.append(f"  lost blocks {self._dropped}", style="bold red" if self._dropped else "")
        if self._is_recording:
            footer.append("  RECORDING", style="bold red")
        footer.append(f"  {self._source}", style="dim")
        footer.truncate(self._console.width, overflow="ellipsis")
        return footer


def level_bar(dbfs: float, width: int = 20, is_ascii: bool = False) -> Text:
    """Return a bar from BAR_DBFS to 0 dBFS.

    Args:
        dbfs: RMS level.
        width: characters between its ends.
        is_ascii: the terminal cannot show blocks.
    """
    share = min(1.0, max(0.0, 1.0 - dbfs / BAR_DBFS))
    left, right, full = ("[", "]", "#") if is_ascii else ("▕", "▏", "█")
    eighths = round(share * width * 8)
    bar = full * (eighths // 8)
    if not is_ascii and eighths % 8:
        bar += "▏▎▍▌▋▊▉"[eighths % 8 - 1]
    style = "red" if dbfs >= HOT_DBFS else "green"
    return Text.assemble(left, (bar.ljust(width), style), right)
