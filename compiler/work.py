"""The work folder of a compile: one artefact per stage, kept with the hash of what it was made from.

A stage whose inputs have not changed is skipped, so a killed compile goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]


@dataclass(frozen=True)
class StageResult:
    """A finished stage."""

    key: str
    """Hash of the stage's inputs."""
    seconds: float
    facts: dict[str, Any]


class Work:
    """Artefacts and their keys in one folder; progress on the console."""

    def __init__(self, path: Path, console: Console) -> None:
        """Open or make the folder."""
        self.path, self.console = path, console
        path.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        """Return the path of an artefact."""
        return self.path / name

    def stage(
        self, name: str, inputs: Any, run: Callable[[str], dict[str, Any] | None], *artefacts: str
    ) -> StageResult:
        """Run a stage unless its artefacts were made from the same inputs.

        Args:
            name: the stage's name; its record is NAME.json.
            inputs: anything JSON can hold; its hash is the stage's key.
            run: does the work and returns facts for the report; it gets the key, for its own checkpoints.
            artefacts: files that must exist for the stage to count as done.
        """
        key = hashlib.sha256(json.dumps([name, inputs], sort_keys=True, default=str).encode()).hexdigest()[:16]
        record = self.file(f"{name}.json")
        if record.exists() and all(self.file(artefact).exists() for artefact in artefacts):
            done = json.loads(record.read_text())
            if done["key"] == key:
                self.console.print(f"[dim]{name}: unchanged, skipped[/dim]")
                return StageResult(key, done["seconds"], done["facts"])
        record.unlink(missing_ok=True)
        begin = time.monotonic()
        facts = run(key) or {}
        seconds = round(time.monotonic() - begin, 1)
        scratch = record.with_suffix(".tmp")
        scratch.write_text(json.dumps({"key": key, "seconds": seconds, "facts": facts}, indent=1))
        os.replace(scratch, record)
        self.console.print(f"{name}: {seconds:.1f} s")
        return StageResult(key, seconds, facts)

    def bar(self, title: str, total: int) -> _Bar:
        """Return a progress bar as a context manager; calling it advances it by one."""
        return _Bar(self.console, title, total)


class _Bar:
    """A rich progress bar; off a terminal it prints a line now and then instead, for log files."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        self._progress = Progress(*self._columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=total, note="")
        self._console, self._title, self._total, self._done = console, title, total, 0

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def total(self, total: int) -> None:
        """Set how many steps there are."""
        self._total = total
        self._progress.update(self._task, total=total)

    def __call__(self, note: str = "", done: int | None = None) -> None:
        """Advance by one, or to done."""
        self._done = self._done + 1 if done is None else done
        self._progress.update(self._task, completed=self._done, note=note)
        every = max(1, self._total // 10)
        if not self._console.is_terminal and (self._done % every == 0 or self._done == self._total):
            self._console.print(f"{self._title} {self._done}/{self._total} {note}")
