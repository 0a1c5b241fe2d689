"""Where transcripts go: stdout, or a file beside others that takes its name only when the transcript is complete."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from whisperfold.runtime.errors import ConfigError


def output_paths(sources: Sequence[str], directory: Path | None, name: str) -> dict[str, Path | None]:
    """Return where each transcript goes: ``directory/clip.srt`` for ``any/clip.wav``, and make the directory.

    Args:
        sources: recordings as given by the user; ``-`` is stdin.
        directory: None is stdout for all of them.
        name: one of FORMATS.

    Raises:
        ConfigError: two recordings would overwrite each other's transcript, or the directory cannot be made.
    """
    if directory is None:
        return dict.fromkeys(sources)
    paths: dict[str, Path | None] = {}
    owner: dict[Path, str] = {}
    for source in dict.fromkeys(sources):
        stem = "stdin" if source == "-" else Path(source).stem
        path = directory / f"{stem}.{name}"
        if path in owner:
            raise ConfigError(f"{owner[path]} and {source} would both be written to {path}; rename one")
        owner[path], paths[source] = source, path
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the output directory {directory}: {error.strerror}") from error
    return paths


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Open stdout (None), or a file that takes its name only when the transcript is complete.

    Raises:
        ConfigError: the file cannot be written.
    """
    if path is None:
        yield sys.stdout
        return
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("w", encoding="utf-8") as out:
            yield out
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another --output-dir") from error
    finally:
        unfinished.unlink(missing_ok=True)
