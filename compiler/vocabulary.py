"""A vocabulary cut to some languages: the tokens that their words need, and a tokenizer that knows no others.

    words by frequency (wordfreq) -> tokens they are written with -> and the tokens these were merged from -> kept

Half of a small Whisper's bytes, and a third of a decoder step, are rows of the token embedding. A text whose tokens are
all kept is encoded as before; any other text is written with smaller tokens, down to single bytes: nothing cannot be
said. The order of the ids stays, and so do special tokens and times behind the text; a multilingual checkpoint loses
the tokens of the languages that it is not to speak.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from whisperfold.compiler.blocks import Blocks
from whisperfold.compiler.teacher import Lesson
from whisperfold.models.dims import ModelDimensions
from whisperfold.models.low_rank import from_state
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import ConfigError

ALL = "all"
N_WORDS, N_CAPITALISED, N_BARE = 30_000, 15_000, 1_000
"""Most frequent words of a language that are kept after a space, so with a capital, and without a space."""
N_NUMBERS, N_BARE_NUMBERS = 2100, 100
N_ACRONYMS = 10_000
"""Of so many words the form in capitals is kept where it is one token."""
N_BYTES = 256
_ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_MARKS = (
    "...",
    "…",
    '."',
    ',"',
    '?"',
    '!"',
    ".'",
    ",'",
    "?'",
    "!'",
    ").",
    "),",
    " -",
    "--",
    " --",
    "-",
    " '",
    ' "',
    "%",
)
_TABLE = "decoder.token_embedding.weight"


@dataclass(frozen=True)
class Vocabulary:
    """The ids that stay, in order; their place in the list is their new id."""

    kept: tuple[int, ...]
    tokenizer: Path
    """The tokenizer of the new ids."""

    @cached_property
    def new(self) -> dict[int, int]:
        """New ids by the old ones."""
        return {old: i for i, old in enumerate(self.kept)}

    def checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return a checkpoint with these tokens only."""
        return replace(
            checkpoint,
            path=self.tokenizer.parent,
            dims=self._dims(checkpoint.dims),
            state=self._state(checkpoint.state),
            tokens={name: _renumbered(value, self.new) for name, value in checkpoint.tokens.items()},
        )

    def model(self, model: Whisper) -> Whisper:
        """Return a model with these tokens only."""
        return from_state(self._dims(model.dims), self._state(model.state_dict()), model.widths)

    def blocks(self, blocks: Blocks) -> Blocks:
        """Return the 4-bit embedding of these tokens only."""
        rows = list(self.kept)
        return Blocks(blocks.packed[rows], blocks.scale[rows], blocks.columns)

    def lessons(self, lessons: list[Lesson]) -> list[Lesson]:
        """Return the lessons that are written in these tokens only, renumbered."""
        new = self.new
        return [
            replace(lesson, sequences=[(torch.tensor([new[int(t)] for t in ids]), h) for ids, h in lesson.sequences])
            for lesson in lessons
            if all(int(token) in new for ids, _ in lesson.sequences for token in ids)
        ]

    def _dims(self, dims: ModelDimensions) -> ModelDimensions:
        return replace(dims, n_vocab=len(self.kept))

    def _state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return state | {_TABLE: state[_TABLE][list(self.kept)]}


def cut_vocabulary(checkpoint: Checkpoint, languages: str, spoken: Iterable[int], folder: Path) -> Vocabulary:
    """Choose the tokens to keep and write their tokenizer.

    Args:
        checkpoint: whose vocabulary it is.
        languages: codes with commas: en,de.
        spoken: ids that stay in any case.
        folder: gets tokenizer.json.

    Raises:
        ConfigError: no word list of a language, or the checkpoint does not know it.
    """
    spoken = set(spoken)
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    tokenizer.no_padding()
    eot = int(checkpoint.tokens["eot"])
    codes = codes_of(languages)
    others = _other_languages(checkpoint, codes) - spoken
    texts, acronyms = _texts(codes)
    encoded, short = (tokenizer.encode_batch(group, add_special_tokens=False) for group in (texts, acronyms))
    chosen = {*range(N_BYTES), *spoken, *(i for text in encoded for i in text.ids)}
    chosen |= {text.ids[0] for text in short if len(text.ids) == 1}
    description = json.loads(checkpoint.tokenizer.read_text("utf-8"))
    chosen = _with_parents({i for i in chosen if i < eot}, description["model"])
    kept = (*sorted(chosen), *(i for i in range(eot, checkpoint.dims.n_vocab) if i not in others))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(_cut_tokenizer(description, kept), ensure_ascii=False), "utf-8")
    return Vocabulary(kept, path)


def codes_of(languages: str) -> list[str]:
    """Return the codes in "en,de".

    Raises:
        ConfigError: no word list of a language.
    """
    from wordfreq import available_languages

    known = available_languages()
    codes = [code.strip() for code in languages.split(",")]
    for code in codes:
        if code not in known:
            raise ConfigError(f"vocabulary {code!r}: no word list; expected all, or of {', '.join(sorted(known))}")
    return codes


def _other_languages(checkpoint: Checkpoint, codes: list[str]) -> set[int]:
    """Return the tokens of the languages that a multilingual checkpoint is not to speak any more."""
    if not checkpoint.tokens["multilingual"]:
        return set()
    known: dict[str, int] = checkpoint.tokens["languages"]
    for code in codes:
        if code not in known:
            raise ConfigError(f"vocabulary {code!r}: {checkpoint.name} knows {', '.join(sorted(known))}")
    return {i for code, i in known.items() if code not in codes}


def _texts(languages: list[str]) -> tuple[list[str], list[str]]:
    """Return what has to be written with few tokens (words as they come in sentences, numbers, marks), and acronyms."""
    from wordfreq import top_n_list

    texts = [*_ENDINGS, *_MARKS, *(f"{first}{mark}" for mark in string.punctuation for first in ("", " "))]
    texts += [f" {number}" for number in range(N_NUMBERS)] + [str(number) for number in range(N_BARE_NUMBERS)]
    acronyms = []
    for language in languages:
        words = top_n_list(language, N_WORDS)
        texts += [f" {word}" for word in words]
        texts += [f" {word.capitalize()}" for word in words[:N_CAPITALISED]]
        texts += words[:N_BARE]
        texts += [word for word in words[N_BARE:] if word.upper() == word.lower() and not word.isascii()]  # no spaces
        acronyms += [f" {word.upper()}" for word in words[:N_ACRONYMS]]
    return texts, acronyms


def _with_parents(ids: set[int], model: dict[str, Any]) -> set[int]:
    """Return ids and all from which their tokens are merged."""
    vocabulary = model["vocab"]
    parents = {vocabulary["".join(pair)]: [vocabulary[part] for part in pair] for pair in map(_pair, model["merges"])}
    found, left = set(ids), list(ids)
    while left:
        new = set(parents.get(left.pop(), ())) - found
        found |= new
        left += new
    return found


def _pair(merge: Any) -> tuple[str, str]:
    """A merge of either form of tokenizer.json: "a b" or ["a", "b"]."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _cut_tokenizer(description: dict[str, Any], kept: tuple[int, ...]) -> dict[str, Any]:
    """Return a tokenizer.json of the kept ids, renumbered."""
    new = {old: i for i, old in enumerate(kept)}
    model = description["model"]
    vocabulary = {token: new[i] for token, i in model["vocab"].items() if i in new}
    merges = [m for m in model["merges"] if all(part in vocabulary for part in (*_pair(m), "".join(_pair(m))))]
    added = [token | {"id": new[token["id"]]} for token in description["added_tokens"] if token["id"] in new]
    processor = description.get("post_processor") or {}
    special = {
        name: token | {"ids": [new[i] for i in token["ids"]]}
        for name, token in (processor.get("special_tokens") or {}).items()
    }
    return description | {
        "model": model | {"vocab": vocabulary, "merges": merges},
        "added_tokens": added,
        "post_processor": (processor | {"special_tokens": special}) if special else description.get("post_processor"),
    }


def _renumbered(value: Any, new: dict[int, int]) -> Any:
    """Renumber the ids in a value of Checkpoint.tokens; those that went are left out of lists and tables."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return new[value]
    if isinstance(value, dict):
        return {name: new[i] for name, i in value.items() if i in new}
    return [new[i] for i in value if i in new]
