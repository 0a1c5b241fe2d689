"""What waits between a realtime client and the recogniser."""

from __future__ import annotations

import asyncio

import numpy as np

from whisperfold.runtime.realtime_inbox import Inbox, Step


def audio(value: float, n: int = 100) -> Step:
    return Step("audio", np.full(n, value, np.float32))


def test_a_clear_leaves_what_a_commit_has_claimed() -> None:
    async def run() -> list[Step]:
        inbox = Inbox(max_samples=1000)
        for step in (audio(1.0), audio(2.0), Step("commit"), audio(3.0)):
            await inbox.put(step)
        inbox.drop_audio()
        await inbox.put(Step("clear"))
        return [await inbox.get() for _ in range(3)]

    spoken, commit, clear = asyncio.run(run())
    assert spoken.samples.tolist() == [1.0] * 100 + [2.0] * 100
    assert (commit.kind, clear.kind) == ("commit", "clear")


def test_a_clear_makes_room() -> None:
    async def run() -> None:
        inbox = Inbox(max_samples=100)
        await inbox.put(audio(1.0))
        inbox.drop_audio()
        await asyncio.wait_for(inbox.put(audio(2.0)), 1.0)
        assert (await inbox.get()).samples[0] == 2.0

    asyncio.run(run())


def test_audio_that_waits_comes_as_one_and_too_much_waits() -> None:
    async def run() -> None:
        inbox = Inbox(max_samples=150)
        await inbox.put(audio(1.0))
        await inbox.put(audio(2.0))
        late = asyncio.create_task(inbox.put(audio(3.0)))
        await asyncio.sleep(0)
        assert not late.done()
        assert (await inbox.get()).samples.size == 200
        await late

    asyncio.run(run())
