"""A bar on stderr for files that take a while; never on the terminal that the transcript is written to."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def is_wanted(has_output_files: bool) -> bool:
    """Return whether a bar helps: stderr is a terminal, and the transcript goes elsewhere.

    Args:
        has_output_files: transcripts go to files, not to stdout.
    """
    return sys.stderr.isatty() and (has_output_files or not sys.stdout.isatty())


@contextmanager
def bar(source: str, total_s: float, is_shown: bool) -> Iterator[Callable[[float], None]]:
    """Yield a function that moves the bar to a number of seconds of the recording.

    Args:
        source: name of the recording.
        total_s: its length; 0 when unknown.
        is_shown: False gives a function that does nothing.
    """
    if not is_shown:
        yield lambda position_s: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    name, position = TextColumn("{task.description}"), TextColumn("{task.completed:.0f} s")
    # stdout belongs to the transcript: rich must not redirect it to this console.
    with Progress(
        name,
        BarColumn(),
        position,
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as shown:
        task = shown.add_task(Path(source).name, total=total_s or None)
        yield lambda position_s: shown.update(task, completed=position_s)
