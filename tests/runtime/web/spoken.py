"""The words of the packaged clip, and how far a transcript is from them."""

from __future__ import annotations

import difflib
import re

SPEECH = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def n_different_words(text: str, reference: str) -> int:
    """Words to insert, delete or replace."""
    matcher = difflib.SequenceMatcher(None, words(text), words(reference), autojunk=False)
    return sum(max(b - a, d - c) for tag, a, b, c, d in matcher.get_opcodes() if tag != "equal")


def cue_times(text: str) -> list[float]:
    """All times of srt or vtt text, seconds."""
    found = re.findall(r"(\d\d):(\d\d):(\d\d)[.,](\d{3})", text)
    return [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in found]
