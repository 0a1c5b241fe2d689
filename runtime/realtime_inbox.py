"""What a realtime client has sent and no worker has taken: steps in order, bounded by seconds of audio."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from whisperfold.runtime.realtime_settings import RealtimeSettings


@dataclass(frozen=True)
class Step:
    """Something to do, in order with the audio."""

    kind: Literal["audio", "commit", "clear", "configure", "end"]
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Of "audio": float32 (n,) at 16 kHz."""
    settings: RealtimeSettings | None = None
    """Of "configure"."""


class Inbox:
    """A queue with one reader of the socket before it, and one user of the recogniser behind it."""

    def __init__(self, max_samples: int, max_steps: int = 1000) -> None:
        self._max_samples, self._max_steps = max_samples, max_steps
        self._steps: deque[Step] = deque()
        self._n_samples = 0
        self._changed = asyncio.Condition()

    async def put(self, step: Step) -> None:
        """Append a step; waits while too much audio is there. The last step, "end", never waits."""
        async with self._changed:
            while step.kind != "end" and (self._n_samples >= self._max_samples or len(self._steps) >= self._max_steps):
                await self._changed.wait()
            self._steps.append(step)
            self._n_samples += step.samples.size
            self._changed.notify_all()

    async def get(self) -> Step:
        """Take the next step; audio that waits comes as one."""
        async with self._changed:
            while not self._steps:
                await self._changed.wait()
            step = self._steps.popleft()
            if step.kind == "audio":
                parts = [step.samples]
                while self._steps and self._steps[0].kind == "audio":
                    parts.append(self._steps.popleft().samples)
                step = Step("audio", np.concatenate(parts))
            self._n_samples -= step.samples.size
            self._changed.notify_all()
            return step

    def drop_audio(self) -> None:
        """Forget the audio that waits and that no commit has claimed."""
        steps = list(self._steps)
        claimed = max((i + 1 for i, step in enumerate(steps) if step.kind == "commit"), default=0)
        self._steps = deque(step for i, step in enumerate(steps) if i < claimed or step.kind != "audio")
        self._n_samples = sum(step.samples.size for step in self._steps)
