"""One set of weights for many clients: audio in, text out, on worker threads, with a bounded queue.

    transcribe  a clip            -> Transcription
    segments    blocks of a file  -> segments as they are recognised
    open_stream live audio        -> LiveStream: push / finish -> StreamEvent

Weights (weights.py) are loaded by the first work, dropped when nothing has run for idle_unload_s, and exchanged by
`reload` and `use`: a clip that has begun ends on the old ones, a stream goes over between two utterances. Methods
belong to one event loop; the model never runs on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BusyError, ConfigError
from whisperfold.runtime.following import FollowingSession
from whisperfold.runtime.live_stream import LiveStream
from whisperfold.runtime.profile import Profile
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.recording import Recording, close_blocks
from whisperfold.runtime.session import DEFAULT_PROVIDERS
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.transcript import Segment, Transcription
from whisperfold.runtime.weights import Weights
from whisperfold.runtime.workers import BULK, FINAL, Workers

if TYPE_CHECKING:
    from whisperfold.runtime.metrics import Metrics
    from whisperfold.runtime.stream_options import StreamOptions

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
        profiles: Path | None = None,
        speaker: str | None = None,
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
            profiles: where profiles are; None is the user's own store.
            speaker: whose profile; "none": the bundle as it is; None: the one in use, also when that changes.

        Raises:
            BundleError: the bundle is missing, incomplete or too new.
            ConfigError: workers or max_waiting is out of range.
            ProfileError: the speaker's profile is missing or damaged.
        """
        if workers < 1 or max_waiting < 0:
            raise ConfigError(f"workers={workers}, max_waiting={max_waiting}: expected at least 1 and 0")
        self._weights = Weights(bundle, profiles, speaker, threads, providers, idle_unload_s)
        self._n_workers, self._max_waiting = workers, max_waiting
        self._metrics = metrics
        self._workers = Workers(workers)
        self._admitted = 0  # clips and files that run or wait
        self._streams = 0
        self._is_closed = False

    @property
    def name(self) -> str:
        """Name of the bundle, e.g. tiny.en."""
        return self.bundle.name

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the bundle knows."""
        tokens = self.bundle.tokens
        return tuple(tokens.languages) if tokens.multilingual else ("en",)

    @property
    def bundle(self) -> Bundle:
        """The bundle that new work runs on."""
        return self._weights.bundle

    @property
    def store(self) -> ProfileStore:
        """The profiles for this bundle."""
        return self._weights.store

    @property
    def profile(self) -> Profile | None:
        """Whose voice new work is heard with; None is the bundle as it is."""
        return self._weights.profile

    def status(self) -> dict[str, Any]:
        """Return what /health tells: weights, profile, waiting, running, streams, error of the last load.

        "held_back" is the profile or bundle that the error is about, if older weights go on without it.
        """
        profile = self.profile
        return {
            "bundle": self.name,
            "profile": {"name": profile.name, "version": profile.version} if profile else None,
            "loaded": self._weights.is_loaded,
            "error": self._weights.error,
            "held_back": self._weights.held_back,
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
        """Return the weights of now, loading them if they are not there.

        Raises:
            BundleError: the bundle is damaged or cannot be loaded.
            ProfileError: the speaker's profile is damaged.
        """
        transcriber = await self._weights.get()
        self._rest()
        return transcriber

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

    async def aside(self, work: Callable[[Transcriber], _Result]) -> _Result:
        """Run a function with the weights of now in the place of a clip, when nothing more urgent waits.

        Raises:
            BusyError: too many are waiting.
        """
        with self._admission():
            transcriber = await self.load()
            return await self.run(BULK, lambda: work(transcriber))

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
        self._weights.wake()
        try:
            transcriber = await self.load()
            session = await self.run(
                FINAL, lambda: FollowingSession(transcriber, self._weights.newest, options, **decoding)
            )
        except BaseException:
            self._leave_stream()
            raise
        return LiveStream(session, self.run, self._leave_stream, self._metrics)

    async def reload(self, bundle: Path | None = None) -> None:
        """Take a bundle (None: the same directory, read again) for new work; running work ends on the old one.

        Raises:
            BundleError: it cannot be loaded; the old one stays in use.
            ProfileError: the speaker has no profile for it; the old one stays in use.
        """
        await self._weights.reload(bundle)
        self._rest()

    async def use(self, name: str | None) -> None:
        """Put a profile in use (None: the bundle as it is), for new work here and after a restart.

        Raises:
            ProfileError: no such profile, it is damaged, or this recogniser is for one speaker.
        """
        await self._weights.use(name)
        self._rest()

    async def run(self, priority: int, function: Callable[[], _Result]) -> _Result:
        """Run a function on a worker thread."""
        return await asyncio.wrap_future(self._workers.submit(priority, function))

    async def close(self) -> None:
        """Refuse new work, finish what was accepted, stop the threads."""
        self._is_closed = True
        self._weights.wake()
        await asyncio.to_thread(self._workers.close)
        self._weights.drop()

    @contextmanager
    def _admission(self) -> Iterator[None]:
        """A place among the clips and files that run or wait."""
        self.check_room()
        self._admitted += 1
        self._weights.wake()
        try:
            yield
        finally:
            self._admitted -= 1
            self._rest()

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
        self._rest()

    def _rest(self) -> None:
        """Nothing may be running: the weights may go."""
        if not (self._admitted or self._streams or self._is_closed):
            self._weights.rest()
