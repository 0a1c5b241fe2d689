"""What a realtime client configures: session.update (GA) and transcription_session.update (beta) -> settings.

    GA    {"session": {"type": "transcription", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000},
           "transcription": {"model", "language", "prompt"}, "turn_detection": {...} or null}}}}
    beta  {"session": {"input_audio_format": "pcm16", "input_audio_transcription": {...}, "turn_detection": ...}}

Shapes: openai/types/realtime of the official client. Extension: rates other than 24000, in both shapes
("input_audio_rate" in the beta's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from whisperfold.runtime.errors import ConfigError

RATES_HZ = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_MAX_PROMPT_CHARS = 4_000


@dataclass(frozen=True)
class RealtimeSettings:
    """One client's session."""

    rate_hz: int = 24_000
    """Of the PCM16 that comes, mono."""
    language: str | None = None
    """Whisper's code; None detects it."""
    prompt: str | None = None
    """Text that sets style and spelling."""
    is_manual: bool = False
    """turn_detection is null: an item ends at the client's commit, not at a pause."""

    @property
    def decoding(self) -> dict[str, Any]:
        """Fields of DecodingOptions."""
        given = {"language": self.language, "prompt": self.prompt}
        return {name: value for name, value in given.items() if value}

    def updated(self, session: Any, languages: tuple[str, ...]) -> RealtimeSettings:
        """Return the settings after an update; what it does not mention stays.

        Args:
            session: the client's object.
            languages: codes that the bundle knows.

        Raises:
            ConfigError: something in it is wrong; nothing is changed then.
        """
        session = _mapping(session, "session")
        kind = session.get("type", "transcription")
        if kind != "transcription":
            raise ConfigError(f"session.type={str(kind)[:20]!r}: this server transcribes only, expected transcription")
        given = _mapping(_mapping(session.get("audio"), "audio").get("input"), "audio.input")
        settings = self._with_format(given.get("format"), session)
        transcription = _mapping(given.get("transcription", session.get("input_audio_transcription")), "transcription")
        settings = settings._with_transcription(transcription, languages)
        for place in (given, session):
            if "turn_detection" in place:
                settings = replace(settings, is_manual=place["turn_detection"] is None)
        return settings

    def record(self, session_id: str, model: str) -> dict[str, Any]:
        """The session as the server reports it: the GA shape, with the beta's names beside."""
        transcription = {"model": model, "language": self.language, "prompt": self.prompt or ""}
        turn_detection = None if self.is_manual else {"type": "server_vad"}
        return {
            "id": session_id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": self.rate_hz},
                    "transcription": transcription,
                    "turn_detection": turn_detection,
                    "noise_reduction": None,
                }
            },
            "include": [],
            "input_audio_format": "pcm16",
            "input_audio_transcription": transcription,
            "turn_detection": turn_detection,
        }

    def _with_format(self, audio_format: Any, session: Mapping[str, Any]) -> RealtimeSettings:
        """The audio format, of either shape."""
        kind, rate_hz = session.get("input_audio_format", "pcm16"), session.get("input_audio_rate", self.rate_hz)
        if audio_format is not None:
            audio_format = _mapping(audio_format, "format")
            kind, rate_hz = audio_format.get("type", "audio/pcm"), audio_format.get("rate", self.rate_hz)
        if kind not in ("pcm16", "audio/pcm"):
            raise ConfigError(f"audio format {str(kind)[:20]!r} is not supported; send pcm16 (audio/pcm), mono")
        if type(rate_hz) is not int or rate_hz not in RATES_HZ:
            raise ConfigError(f"rate={str(rate_hz)[:20]}: expected one of {', '.join(map(str, RATES_HZ))}")
        return replace(self, rate_hz=rate_hz)

    def _with_transcription(self, given: Mapping[str, Any], languages: tuple[str, ...]) -> RealtimeSettings:
        """Language and prompt; the model is the bundle, whatever name it is asked for by."""
        language, prompt = given.get("language", self.language), given.get("prompt", self.prompt)
        for name, value in (("language", language), ("prompt", prompt)):
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"transcription.{name}: expected text")
        if prompt and len(prompt) > _MAX_PROMPT_CHARS:
            raise ConfigError(f"transcription.prompt: {len(prompt)} characters, expected at most {_MAX_PROMPT_CHARS}")
        if language:
            language = language.replace("_", "-").split("-")[0].lower()
            if language not in languages:
                raise ConfigError(f"transcription.language={language[:20]!r}: expected one of {', '.join(languages)}")
        return replace(self, language=language or None, prompt=prompt or None)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    """An object of the client's; missing or null is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected an object")
    return value
