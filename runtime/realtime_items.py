"""Stream events -> OpenAI's realtime events: what is spoken becomes an item, its text arrives in deltas.

    start    input_audio_buffer.speech_started
    partial  ....input_audio_transcription.delta (what was newly committed), whisperfold.tentative (what may change)
    final    speech_stopped, committed, conversation.item.added / .created / .done, the last delta, .completed

With turn detection an item is an utterance; without it, everything up to the client's commit. Deltas are committed
text: joined, they are the transcript of `completed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from whisperfold.runtime.stream_event import StreamEvent

Record = dict[str, Any]
_TEXT = "conversation.item.input_audio_transcription"


@dataclass
class _Item:
    """The item that is being spoken."""

    item_id: str
    start_s: float
    end_s: float
    sent: str = ""
    """Deltas so far."""
    before: str = ""
    """Text of the item's utterances that are final."""


class RealtimeItems:
    """Follows one stream."""

    def __init__(self) -> None:
        self._item: _Item | None = None
        self._previous_id: str | None = None

    def event_records(self, event: StreamEvent, is_manual: bool) -> Iterator[Record]:
        """Yield what the client is told about an event.

        Args:
            event: of the stream, in order.
            is_manual: an item ends at a commit, not with its utterance.
        """
        if event.kind == "start" and self._item is not None and not is_manual:
            yield from self._dropped(self._item)
        if self._item is None:
            self._item = _Item(_new_id("item"), event.start_s, event.end_s)
            if not is_manual:
                yield self._record("input_audio_buffer.speech_started", audio_start_ms=_ms(event.start_s))
        item = self._item
        item.end_s = max(item.end_s, event.end_s)
        if event.kind == "start":
            return
        if event.kind == "final" and not is_manual:
            yield self._stopped(item)
            yield from self._committed(item)
        yield from self._delta(item, event.committed)
        if event.kind == "partial":
            yield self._record(
                "whisperfold.tentative",
                content_index=0,
                tentative=event.tentative,
                audio_start_ms=_ms(item.start_s),
                audio_end_ms=_ms(event.end_s),
                lag_ms=_ms(event.lag_s),
            )
        elif is_manual:
            item.before = item.sent
        else:
            yield self._completed(item)

    def commit_records(self, heard_s: float) -> Iterator[Record]:
        """Yield the end of the open item at a client's commit; an item without text if none is open."""
        item = self._item
        if item is None:
            self._item = item = _Item(_new_id("item"), heard_s, heard_s)
        yield from self._committed(item)
        yield self._completed(item)

    def forget(self) -> None:
        """The client has cleared its buffer."""
        self._item = None

    @property
    def is_open(self) -> bool:
        """Whether an item has begun and not ended."""
        return self._item is not None

    def _dropped(self, item: _Item) -> Iterator[Record]:
        """What began as speech was none."""
        yield self._stopped(item)
        yield self._record("whisperfold.tentative", content_index=0, tentative="")
        yield self._completed(item)

    def _delta(self, item: _Item, committed: str) -> Iterator[Record]:
        """Text that was committed since the last delta."""
        whole = f"{item.before} {committed}" if item.before and committed else item.before + committed
        if len(whole) > len(item.sent):
            delta, item.sent = whole[len(item.sent) :], whole
            yield self._record(f"{_TEXT}.delta", content_index=0, delta=delta)

    def _stopped(self, item: _Item) -> Record:
        """The speaker pauses."""
        return self._record("input_audio_buffer.speech_stopped", audio_end_ms=_ms(item.end_s))

    def _committed(self, item: _Item) -> Iterator[Record]:
        """The audio has become a conversation item; GA and beta names for it."""
        content = [{"type": "input_audio", "transcript": None}]
        record = {
            "id": item.item_id,
            "object": "realtime.item",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": content,
        }
        yield self._record("input_audio_buffer.committed", previous_item_id=self._previous_id)
        for name in ("added", "created", "done"):
            yield new_event(f"conversation.item.{name}", previous_item_id=self._previous_id, item=record)
        self._previous_id = item.item_id

    def _completed(self, item: _Item) -> Record:
        """The whole text; the item is over."""
        record = self._record(
            f"{_TEXT}.completed",
            content_index=0,
            transcript=item.sent,
            audio_start_ms=_ms(item.start_s),
            audio_end_ms=_ms(item.end_s),
            usage={"type": "duration", "seconds": round(item.end_s - item.start_s, 3)},
        )
        self._item = None
        return record

    def _record(self, kind: str, **values: Any) -> Record:
        """An event about the open item."""
        assert self._item is not None
        return new_event(kind, item_id=self._item.item_id, **values)


def new_event(kind: str, **values: Any) -> Record:
    """A server event with its id."""
    return {"type": kind, "event_id": _new_id("event"), **values}


def error_event(
    message: str, code: str, client_event: str | None = None, kind: str = "invalid_request_error"
) -> Record:
    """An error that leaves the session open."""
    details = {"type": kind, "code": code, "message": message, "param": None, "event_id": client_event}
    return new_event("error", error=details)


def new_session_id() -> str:
    """A session's id."""
    return _new_id("sess")


def _new_id(kind: str) -> str:
    """OpenAI's kind of ids."""
    return f"{kind}_{uuid4().hex[:21]}"


def _ms(seconds: float) -> int:
    """Whole milliseconds."""
    return round(seconds * 1000)
