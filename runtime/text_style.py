"""A transcript without capitals and punctuation -> the same words in the model's own style.

Learning "we call it bear" would teach the model to write without capitals; what it heard, "We call it a bear.", shows
how it writes the words that are right. A transcript that has capitals or punctuation stays as it is.
"""

from __future__ import annotations

import difflib

from whisperfold.runtime.error_rate import normalised_words


def in_style_of(text: str, heard: str) -> str:
    """Return text with the spelling of heard where their words agree; the words are always those of text."""
    if text != text.lower() or any(mark in text for mark in ",.?!;:"):
        if text != text.upper():
            return text
    words, model_words = text.lower().split(), heard.split()
    keys = [" ".join(normalised_words(word)) for word in words]
    model_keys = [" ".join(normalised_words(word)) for word in model_words]
    styled = list(words)
    for a, b, size in difflib.SequenceMatcher(None, keys, model_keys, autojunk=False).get_matching_blocks():
        styled[a : a + size] = model_words[b : b + size]
    if styled and model_words and model_words[0][:1].isupper():
        styled[0] = styled[0][:1].upper() + styled[0][1:]
    return " ".join(styled)
