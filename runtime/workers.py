"""Worker threads with priorities: functions in, futures out; what ends an utterance overtakes what guesses.

    FINAL    the end of an utterance: somebody waits for it
    PARTIAL  a chunk of live audio: text that may be late
    BULK     one window of a recording

Within one priority the order is that of arrival.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from whisperfold.runtime.errors import BusyError

FINAL, PARTIAL, BULK = 0, 1, 2
_STOP = 3
"""Lower than any work: a worker leaves when nothing is left."""


class Workers:
    """A fixed number of threads with one queue."""

    def __init__(self, n_threads: int) -> None:
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[], Any], Future[Any]]]
        self._queue = queue.PriorityQueue()
        self._number = itertools.count()
        self._started_s: dict[int, float] = {}  # by number of the function
        self._lock = threading.Lock()
        self._is_closed = False
        self._threads = [threading.Thread(target=self._work, name=f"worker-{i}", daemon=True) for i in range(n_threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Functions that no thread has taken yet."""
        return self._queue.qsize()

    @property
    def running(self) -> int:
        """Functions that run now."""
        return len(self._started_s)

    @property
    def longest_s(self) -> float:
        """How long the oldest of them has been running, seconds."""
        with self._lock:
            return time.monotonic() - min(self._started_s.values(), default=time.monotonic())

    def submit(self, priority: int, function: Callable[[], Any]) -> Future[Any]:
        """Queue a function; cancelling the future helps until a thread has taken it.

        Raises:
            BusyError: the threads are leaving.
        """
        if self._is_closed:
            raise BusyError("the server is stopping; try again in a moment", reason="stopping")
        future: Future[Any] = Future()
        self._queue.put((priority, next(self._number), function, future))
        return future

    def close(self) -> None:
        """Take no more, let the threads leave when the queue is empty, and wait for them."""
        self._is_closed = True
        for _ in self._threads:
            self._queue.put((_STOP, next(self._number), _nothing, Future()))
        for thread in self._threads:
            thread.join()

    def give_way(self) -> None:
        """For a long BULK function: run what is more urgent now, in its thread."""
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if item[0] >= BULK:
                self._queue.put(item)
                return
            self._run(*item[1:])

    def _work(self) -> None:
        """Serve one function after the other."""
        while True:
            item = self._queue.get()
            if item[0] == _STOP:
                return
            self._run(*item[1:])
            del item  # a waiting thread must not keep weights or audio alive

    def _run(self, number: int, function: Callable[[], Any], future: Future[Any]) -> None:
        """Run one function; its exception belongs to its future."""
        if not future.set_running_or_notify_cancel():
            return
        with self._lock:
            self._started_s[number] = time.monotonic()
        try:
            result = function()
        except BaseException as error:
            self._done(number)
            future.set_exception(error)
        else:
            self._done(number)
            future.set_result(result)

    def _done(self, number: int) -> None:
        """One function has ended; counted before its future tells anybody."""
        with self._lock:
            del self._started_s[number]


def _nothing() -> None:
    """What a stop carries."""
