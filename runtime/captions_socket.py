"""WebSocket /v1/captions: what the device's own microphone hears, as JSON records.

MicrophoneSource.subscribe() --records--> client: level, status, start, partial, final
"""

from __future__ import annotations

import asyncio
import json

from starlette.websockets import WebSocket, WebSocketDisconnect

from whisperfold.runtime.access import accepted_subprotocol
from whisperfold.runtime.microphone_source import MicrophoneSource
from whisperfold.runtime.realtime import CLOSE_GOING_AWAY, CLOSE_TRY_LATER, close_socket

CLOSE_NO_MICROPHONE = 4404


async def captions(socket: WebSocket) -> None:
    """Serve one follower; whatever it sends is ignored."""
    state = socket.app.state
    await socket.accept(accepted_subprotocol(socket.scope))
    if state.microphone is None:
        reason = "no microphone is configured; start the server with --microphone"
        await close_socket(socket, CLOSE_NO_MICROPHONE, reason)
        return
    relay = asyncio.create_task(_relay(socket, state.microphone))
    leave = asyncio.create_task(_until_gone(socket))
    tasks = (relay, leave)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if relay.done():
            relay.result()
            if state.stopping.is_set():
                await close_socket(socket, CLOSE_GOING_AWAY, "the server is stopping")
            else:
                await close_socket(socket, CLOSE_TRY_LATER, "too slow to follow")
    except (WebSocketDisconnect, RuntimeError):  # RuntimeError: starlette's for a socket that is closed
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _relay(socket: WebSocket, microphone: MicrophoneSource) -> None:
    """Send every record."""
    async with microphone.subscribe() as records:
        async for record in records:
            await socket.send_text(json.dumps(record, ensure_ascii=False))


async def _until_gone(socket: WebSocket) -> None:
    """Return when the client has left."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
