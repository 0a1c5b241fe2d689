"""The adaptation that a server runs for its web page: a process of its own, one at a time.

    start(name) -> enroll_worker.py, niced -> a line per step -> JobState -> `follow`, for whoever watches

Captions go on beside it, and if it dies (memory, a bug, a cancel) the server does not; what it has learned so far is in
its checkpoint, and `start` goes on there. The server takes over a better profile by itself (weights.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from whisperfold.runtime.enroll_options import EnrollOptions
from whisperfold.runtime.http_errors import RequestError
from whisperfold.runtime.recognizer import Recognizer

_LOG = logging.getLogger(__name__)
_WORKER = "whisperfold.runtime.enroll_worker"


@dataclass(frozen=True)
class JobState:
    """Where the adaptation of a person is."""

    state: str
    """idle, running, done, cancelled or failed."""
    progress: dict[str, Any] | None = None
    """stage, share, remaining_s and loss, while it runs."""
    message: str = ""
    """Why it has failed, and what to do."""


class EnrollJob:
    """Adaptations, one at a time; methods belong to the server's event loop."""

    def __init__(self, recognizer: Recognizer, options: EnrollOptions | None = None, nice: int = 10) -> None:
        """Nothing runs yet.

        Args:
            recognizer: its bundle is adapted, its store takes the profile.
            options: how; the language is given to `start`.
            nice: priority of the process, 0 to 19.
        """
        self._recognizer, self._options, self._nice = recognizer, options or EnrollOptions(), nice
        self._states: dict[str, JobState] = {}
        self._running: tuple[str, asyncio.subprocess.Process] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        self._starting = asyncio.Lock()
        self._changed = asyncio.Condition()

    @property
    def is_running(self) -> bool:
        """Whether there is one."""
        return self._running is not None

    def state(self, name: str) -> JobState:
        """Return where the adaptation of a person is, or how the last one ended."""
        return self._states.get(name, JobState("idle"))

    async def start(self, name: str, language: str | None = None) -> None:
        """Begin, or go on where the last one stopped.

        Raises:
            RequestError: 409, one is running.
        """
        async with self._starting:
            if self._running is not None:
                raise RequestError(409, "busy", "an adaptation is running; wait for its end, or cancel it")
            order = {
                "name": name,
                "bundle": str(self._recognizer.bundle.path),
                "profiles": str(self._recognizer.store.folder.parent),
                "nice": self._nice,
                "options": asdict(replace(self._options, language=language)),
            }
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(sys.executable, "-m", _WORKER, stdin=pipe, stdout=pipe)
            assert process.stdin is not None
            process.stdin.write(json.dumps(order).encode() + b"\n")
            self._running, self._is_cancelled = (name, process), False
            await self._tell(name, JobState("running"))
            self._task = asyncio.create_task(self._watch(name, process))
        _LOG.info("event=adaptation_started pid=%d", process.pid)

    async def cancel(self, name: str) -> None:
        """End the adaptation of a person; its checkpoint stays.

        Raises:
            RequestError: 409, it is not running.
        """
        if self._running is None or self._running[0] != name:
            raise RequestError(409, "idle", "no adaptation of this person is running: nothing to cancel")
        await self.close()

    async def close(self) -> None:
        """End what runs, and wait for its end."""
        if self._running is not None and self._task is not None:
            self._is_cancelled = True
            with contextlib.suppress(ProcessLookupError):
                self._running[1].terminate()
            await asyncio.wait({self._task})

    async def follow(self, name: str, stop: asyncio.Event) -> AsyncIterator[JobState]:
        """Yield the state of a person's adaptation whenever it changes, until it has ended or the server stops."""
        told = None
        while not stop.is_set():
            if (state := self.state(name)) != told:
                told = state
                yield state
                if state.state != "running":
                    return
            with contextlib.suppress(TimeoutError):  # a second: the server may be stopping
                async with asyncio.timeout(1.0), self._changed:
                    if self.state(name) == told:
                        await self._changed.wait()

    async def _watch(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Read what the process says, until it ends; one that is not understood is ended."""
        assert process.stdout is not None
        end: JobState | None = None
        try:
            async for line in process.stdout:
                record = json.loads(line)
                kind = record.pop("type")
                if kind == "progress":
                    await self._tell(name, JobState("running", record))
                else:
                    end = JobState("done") if kind == "done" else JobState("failed", None, record["message"])
        except (ValueError, KeyError, AttributeError):
            _LOG.exception("event=adaptation_not_understood")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        code = await process.wait()
        if end is None:
            why = f"signal {-code}, perhaps for want of memory" if code < 0 else f"exit code {code}, see the log"
            message = f"the adaptation was ended ({why}); start it again, it goes on where it was"
            end = JobState("cancelled") if self._is_cancelled else JobState("failed", None, message)
        self._running = None
        await self._tell(name, end)
        _LOG.info("event=adaptation_ended state=%s code=%d", end.state, code)

    async def _tell(self, name: str, state: JobState) -> None:
        """Keep a state, and wake who follows."""
        async with self._changed:
            self._states[name] = state
            self._changed.notify_all()
