"""Options that several commands share, and the one way to speak to the person at the terminal.

Only typer is imported, so that ``--help`` and completion answer at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

BundleOption = Annotated[
    Path | None, typer.Option("--bundle", "-b", help="Bundle directory, or a packaged one's name. Default: tiny.en.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", "-d", help="Index, name or part of a name; see `whisperfold devices`.")
]
LanguageOption = Annotated[
    str | None,
    typer.Option("--language", "-l", help="Language code such as 'en'. Default: what the bundle speaks."),
]
TaskOption = Annotated[str, typer.Option(help="transcribe, or translate (to English; multilingual bundles).")]
SpeakerOption = Annotated[
    str | None, typer.Option("--speaker", help="Whose profile; none: the bundle as it is. Default: the one in use.")
]
ProfilesOption = Annotated[
    Path | None, typer.Option("--profiles", help="Where profiles are. Default: ~/.local/share/whisperfold/profiles.")
]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads; 0: the cores there are, at most 4.")]
PromptOption = Annotated[str | None, typer.Option(help="Text that sets style and spelling.")]
HotwordOption = Annotated[
    list[str] | None, typer.Option("--hotword", help="A word or name to expect; may be given again.")
]


def say(message: object, prefix: str = "whisperfold: ") -> None:
    """Write one line to stderr."""
    print(f"{prefix}{' '.join(str(message).split())}", file=sys.stderr, flush=True)
