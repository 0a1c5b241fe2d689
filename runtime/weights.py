"""The weights of a running server: loaded when they are needed, dropped when idle, exchanged while work goes on.

    get()      for a clip: the newest, after loading them if there are none or somebody put another profile in use
    newest()   for a stream, from a worker thread: what is there; newer ones are loaded beside it and come later
    reload()   the bundle again, or another one
    use()      another profile
    rest()     nothing runs: they are dropped unless wake() comes first

Another process changes the profile by changing two small files (profiles.py), which are read again for each clip and
chunk: no signal, no thread that waits. Whoever holds a Transcriber ends on it; nothing here is taken away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BundleError, ProfileError
from whisperfold.runtime.memory import give_back
from whisperfold.runtime.packaged import default_bundle
from whisperfold.runtime.profile import Profile
from whisperfold.runtime.profiles import ProfileStore
from whisperfold.runtime.speaker import Speaker
from whisperfold.runtime.transcribe import Transcriber

_LOG = logging.getLogger(__name__)


class Weights:
    """One bundle, one speaker; methods belong to one event loop, but for `newest`."""

    def __init__(
        self,
        bundle: Path | None,
        profiles: Path | None,
        speaker: str | None,
        threads: int,
        providers: Sequence[str],
        idle_unload_s: float | None = None,
    ) -> None:
        """Read the manifest.

        Args:
            bundle: its directory; None is the packaged one.
            profiles: where profiles are; None is the user's own store.
            speaker: whose profile, as in speaker.py.
            threads: CPU threads of a run; 0 takes the CPUs there are, at most 4.
            providers: onnxruntime's execution providers, the preferred one first.
            idle_unload_s: how long a rest may be, seconds; None keeps the weights.

        Raises:
            BundleError: the bundle is missing, incomplete or too new.
            ProfileError: a profile that was named is missing or damaged.
        """
        self._path, self._profiles = bundle or default_bundle(), profiles
        self._threads, self._providers = threads, tuple(providers)
        self.bundle = Bundle.open(self._path, check=False)
        self._speaker = Speaker(ProfileStore(self.bundle, profiles), speaker)
        if speaker is not None:
            self._speaker.profile()
        self.error: str | None = None  # of the last load
        self.held_back: str | None = None  # "profile" or "bundle": it could not be loaded, and the old one goes on
        self._loaded: Transcriber | None = None
        self._seen = self._speaker.in_use()  # when the weights were loaded
        self._is_checked = False
        self._loading = asyncio.Lock()
        self._idle_unload_s = idle_unload_s
        self._idle_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._refresh: asyncio.Task[Transcriber] | None = None

    @property
    def store(self) -> ProfileStore:
        """The profiles for this bundle."""
        return self._speaker.store

    @property
    def profile(self) -> Profile | None:
        """Whose voice new work is heard with; None is the bundle as it is."""
        if self._loaded is not None and self._seen == self._speaker.in_use():
            return self._loaded.profile
        try:
            return self._speaker.profile()
        except ProfileError:
            return None  # as it will be loaded

    @property
    def is_loaded(self) -> bool:
        """Whether they are in memory."""
        return self._loaded is not None

    async def get(self) -> Transcriber:
        """Return what new work runs on.

        Raises:
            BundleError: nothing is loaded, and the bundle cannot be.
            ProfileError: nothing is loaded, and the profile that the server was started with cannot be.
        """
        async with self._loading:
            self._loop = asyncio.get_running_loop()
            if self._loaded is None:
                await self._load(self._path)
            elif self._is_stale():
                try:
                    await self._load(self._path)
                except (BundleError, ProfileError) as error:  # tried; again when the files change
                    self._seen = self._speaker.in_use()
                    _LOG.error("event=profile_not_loaded error=%s", error)
            assert self._loaded is not None
            return self._loaded

    def newest(self) -> Transcriber | None:
        """Return what is loaded, at once; if it is not what it should be, loading begins beside the work."""
        if self._loop is not None and self._loaded is not None and self._is_stale():
            self._loop.call_soon_threadsafe(self._start_refresh)
        return self._loaded

    async def reload(self, bundle: Path | None = None) -> None:
        """Take a bundle (None: the same directory, read again) for new work.

        Raises:
            BundleError, ProfileError: it cannot be loaded; the old one stays in use.
        """
        async with self._loading:
            self._is_checked = False
            await self._load(bundle or self._path)

    async def use(self, name: str | None) -> None:
        """Put a profile in use for everybody, None: the bundle as it is; and load it.

        Raises:
            ProfileError: no such profile, it is damaged, or the server was started for one speaker.
        """
        if self._speaker.name is not None:
            raise ProfileError(
                f"this server was started for speaker {self._speaker.name!r}; start it without one to switch profiles"
            )
        await asyncio.to_thread(self.store.use, name)
        await self.get()

    def rest(self) -> None:
        """Count down to the unload."""
        self.wake()
        if self._idle_unload_s is not None:
            self._idle_timer = asyncio.get_running_loop().call_later(self._idle_unload_s, self._unload)

    def wake(self) -> None:
        """Work has come."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def drop(self) -> None:
        """Forget the weights; who holds them goes on."""
        self.wake()
        self._loaded = None
        give_back()

    def _unload(self) -> None:
        """The rest was long enough; the next work loads them again."""
        if self._loaded is not None and not self._loading.locked():
            self.drop()
            _LOG.info("event=unloaded bundle=%s idle_s=%.0f", self.bundle.name, self._idle_unload_s or 0.0)

    def _is_stale(self) -> bool:
        """Whether the store names another profile or version than the one that was loaded."""
        return self._seen != self._speaker.in_use()

    def _start_refresh(self) -> None:
        """On the event loop: load newer weights, one task at a time."""
        if self._refresh is None:
            self._refresh = asyncio.ensure_future(self.get())
            self._refresh.add_done_callback(self._end_refresh)

    def _end_refresh(self, _: asyncio.Task[Transcriber]) -> None:
        """On the event loop: the next one may start."""
        self._refresh = None

    async def _load(self, path: Path) -> None:
        """Load on a thread of its own: the workers may be busy with the old weights."""
        started_s = time.monotonic()
        try:
            bundle, speaker, seen, fresh = await asyncio.to_thread(self._read, path)
        except (BundleError, ProfileError) as error:
            self.error = str(error)
            if self._loaded is None:
                self.held_back = None
            else:
                self.held_back = "profile" if isinstance(error, ProfileError) else "bundle"
            raise
        self._path, self.bundle, self._speaker = path, bundle, speaker
        self._loaded, self._seen, self._is_checked = fresh, seen, True
        self.error = self.held_back = None
        give_back()
        _LOG.info(
            "event=loaded bundle=%s profile=%s load_s=%.3f",
            bundle.name,
            fresh.profile.version if fresh.profile else "none",
            time.monotonic() - started_s,
        )

    def _read(self, path: Path) -> tuple[Bundle, Speaker, tuple[str, str], Transcriber]:
        """The bundle, its store, what the store named before reading, and the weights."""
        bundle = Bundle.open(path, check=not self._is_checked)
        store = ProfileStore(bundle, self._profiles)
        speaker = self._speaker if store.folder == self.store.folder else Speaker(store, self._speaker.name)
        seen = speaker.in_use()
        return bundle, speaker, seen, speaker.load(bundle, self._threads, self._providers)
