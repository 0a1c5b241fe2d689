"""One set of weights for many clients: audio in, text out, on worker threads, with a bounded queue.

    transcribe  a clip            -> Transcription
    segments    blocks of a file  -> segments as they are recognised
    open_stream live audio        -> LiveStream: push / finish -> StreamEvent

Weights are loaded by the first work, dropped when nothing has run for idle_unload_s, and exchanged by
`reload`: work that has begun ends on the old ones. Methods belong to one event loop; the model never runs on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from whisperfold.runtime.bundle import Bundle, default_bundle
from whisperfold.runtime.errors import BundleError, BusyError, ConfigError
from whisperfold.runtime.live_stream import LiveStream
from whisperfold.runtime.memory import give_back
from whisperfold.runtime.recording import Recording, close_blocks
from whisperfold.runtime.session import DEFAULT_PROVIDERS
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.transcript import Segment, Transcription
from whisperfold.runtime.workers import BULK, FINAL, Workers

if TYPE_CHECKING:
    from whisperfold.runtime.metrics import Metrics
    from whisperfold.runtime.stream import StreamingSession, StreamOptions

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_HANGS_S = 600.0
"""No run takes this long: the longest is the search for speech in two hours of silence, minutes on a Pi."""


class Recognizer:
    """Speech recognition as a shared service."""

    def __init__(
        self,
        bundle: Path | None = None,
        threads: int = 0,
        workers: int = 1,
        max_waiting: int = 64,
        idle_unload_s: float | None = None,
        metrics: Metrics | None = None,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
    ) -> None:
        """Read the bundle's manifest; the weights come with the first work.

        Args:
            bundle: its directory; None is the packaged one.
            threads: CPU threads of one run; 0 takes the CPUs of this process, at most 4.
            workers: runs at the same time.
            max_waiting: clips, files and streams beyond those that run; more are refused.
            idle_unload_s: drop the weights after this long without work; None keeps them.
            metrics: where work is counted.
            providers: onnxruntime's execution providers, the preferred one first.

        Raises:
            BundleError: the bundle is missing, incomplete or too new.
            ConfigError: workers or max_waiting is out of range.
        """
        if workers < 1 or max_waiting < 0:
            raise ConfigError(f"workers={workers}, max_waiting={max_waiting}: expected at least 1 and 0")
        self._path = bundle or default_bundle()
        self._bundle = Bundle.open(self._path, check=False)
        self._threads, self._n_workers, self._max_waiting = threads, workers, max_waiting
        self._providers = tuple(providers)
        self._idle_unload_s = idle_unload_s
        self._metrics = metrics
        self._workers = Workers(workers)
        self._transcriber: Transcriber | None = None
        self._loading = asyncio.Lock()
        self._load_error: str | None = None
        self._is_checked = False
        self._admitted = 0  # clips and files that run or wait
        self._streams = 0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def name(self) -> str:
        """Name of the bundle, e.g. tiny.en."""
        return self._bundle.name

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the bundle knows."""
        tokens = self._bundle.tokens
        return tuple(tokens.languages) if tokens.multilingual else ("en",)

    @property
    def bundle(self) -> Bundle:
        """The bundle that new work runs on."""
        return self._bundle

    def status(self) -> dict[str, Any]:
        """Return what /health and the logs tell: loaded, waiting, running, streams, error of the last load."""
        return {
            "bundle": self.name,
            "loaded": self._transcriber is not None,
            "error": self._load_error,
            "workers": self._n_workers,
            "running": self._workers.running,
            "waiting": self._workers.waiting,
            "max_waiting": self._max_waiting,
            "streams": self._streams,
        }

    def is_alive(self) -> bool:
        """False when a run hangs: for the watchdog."""
        return self._workers.longest_s < _HANGS_S

    def check_room(self) -> None:
        """Tell early whether a recording would be refused.

        Raises:
            BusyError: too many are waiting.
        """
        self._refuse_if(self._admitted >= self._n_workers + self._max_waiting)

    async def load(self) -> Transcriber:
        """Return the weights, loading them if they are not there.

        Raises:
            BundleError: the bundle is damaged or cannot be loaded.
        """
        async with self._loading:
            if self._transcriber is None:
                self._transcriber = await self._open(self._path, check=not self._is_checked)
                self._bundle = self._transcriber.bundle
                self._start_idle_timer()
            return self._transcriber

    async def transcribe(self, samples: np.ndarray, **options: Any) -> Transcription:
        """Transcribe a clip; arguments and errors as `Transcriber.transcribe`.

        Raises:
            BusyError: too many are waiting.
        """
        with self._admission():
            transcriber = await self.load()

            def work() -> tuple[Transcription, float]:
                """The transcript and the seconds it took, without those in the queue."""
                started_s = time.monotonic()
                return transcriber.transcribe(samples, **options), time.monotonic() - started_s

            result, busy_s = await self.run(FINAL, work)
            if self._metrics is not None:
                self._metrics.observe_clip(result.duration_s, busy_s)
            return result

    async def segments(self, blocks: Iterable[np.ndarray], **options: Any) -> AsyncIterator[Segment]:
        """Transcribe a recording while it is read; arguments and errors as `Transcriber.transcribe_blocks`.

        Windows of several recordings take turns. Leaving the iteration early stops the work after the window
        that runs; blocks, if it is a generator, is closed in any case.

        Raises:
            BusyError: too many are waiting.
        """
        work: Recording | None = None
        try:
            with self._admission():
                transcriber = await self.load()
                work = Recording(blocks, self._workers.give_way)
                work.start(transcriber, options)
                while (segment := await self.run(BULK, work.next_segment)) is not None:
                    yield segment
                if self._metrics is not None:
                    self._metrics.observe_clip(work.read_s, work.busy_s)
        finally:
            if work is None:
                close_blocks(blocks)
            else:
                work.stop.set()
                with suppress(BusyError):  # the threads have left: nobody else holds the file
                    self._workers.submit(BULK, work.close)

    async def open_stream(self, options: StreamOptions | None = None, **decoding: Any) -> LiveStream:
        """Open a live stream; end it with `finish` or `abandon`.

        Args:
            options: thresholds of streaming.
            **decoding: fields of `DecodingOptions`.

        Raises:
            BusyError: too much work is waiting already.
            ConfigError: unknown or impossible option.
        """
        self._refuse_if(self._workers.waiting > self._max_waiting)
        self._streams += 1
        self._stop_idle_timer()
        try:
            transcriber = await self.load()
            session = await self.run(FINAL, lambda: transcriber.stream(options, **decoding))
        except BaseException:
            self._leave_stream()
            raise

        def renew(always: bool) -> StreamingSession | None:
            """A session on the newest weights; None if that is what the stream has, unless always."""
            nonlocal transcriber
            newest = self._transcriber or transcriber
            if newest is transcriber and not always:
                return None
            transcriber = newest
            return transcriber.stream(options, **decoding)

        return LiveStream(session, self.run, renew, self._leave_stream, self._metrics)

    async def reload(self, bundle: Path | None = None) -> None:
        """Take a bundle (None: the same directory, read again) for new work; running work ends on the old one.

        Raises:
            BundleError: it cannot be loaded; the old one stays in use.
        """
        path = bundle or self._path
        async with self._loading:
            fresh = await self._open(path, check=True)
            self._path, self._bundle, self._transcriber = path, fresh.bundle, fresh
        give_back()
        self._start_idle_timer()

    async def run(self, priority: int, function: Callable[[], _Result]) -> _Result:
        """Run a function on a worker thread."""
        return await asyncio.wrap_future(self._workers.submit(priority, function))

    async def close(self) -> None:
        """Refuse new work, finish what was accepted, stop the threads."""
        self._is_closed = True
        self._stop_idle_timer()
        await asyncio.to_thread(self._workers.close)
        self._transcriber = None

    async def _open(self, path: Path, check: bool) -> Transcriber:
        """Load weights on a thread of their own: the workers may be busy with the old ones."""
        started_s = time.monotonic()
        try:
            fresh = await asyncio.to_thread(Transcriber.open, path, self._threads, check, self._providers)
        except BundleError as error:
            self._load_error = str(error)
            raise
        self._load_error, self._is_checked = None, True
        _LOG.info("event=loaded bundle=%s load_s=%.3f", fresh.bundle.name, time.monotonic() - started_s)
        return fresh

    @contextmanager
    def _admission(self) -> Iterator[None]:
        """A place among the clips and files that run or wait."""
        self.check_room()
        self._admitted += 1
        self._stop_idle_timer()
        try:
            yield
        finally:
            self._admitted -= 1
            self._start_idle_timer()

    def _refuse_if(self, is_full: bool) -> None:
        """Raise BusyError when there is no place."""
        if self._is_closed:
            raise BusyError("the server is stopping; try again in a moment", reason="stopping")
        if is_full:
            raise BusyError(
                f"{self._admitted} recordings and {self._workers.waiting} live chunks are waiting, "
                f"max_waiting is {self._max_waiting}; try again in a moment",
                reason="queue",
            )

    def _leave_stream(self) -> None:
        """A stream has ended."""
        self._streams -= 1
        self._start_idle_timer()

    def _start_idle_timer(self) -> None:
        """Nothing may be running: count down to the unload."""
        if self._idle_unload_s is None or self._admitted or self._streams or self._is_closed:
            return
        self._stop_idle_timer()
        self._idle_timer = asyncio.get_running_loop().call_later(self._idle_unload_s, self._unload)

    def _stop_idle_timer(self) -> None:
        """Work has come."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _unload(self) -> None:
        """Drop the weights; the next work loads them again."""
        if self._loading.locked() or self._transcriber is None:
            return
        self._transcriber = None
        give_back()
        _LOG.info("event=unloaded bundle=%s idle_s=%.0f", self.name, self._idle_unload_s or 0.0)
