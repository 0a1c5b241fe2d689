"""A vocabulary cut to a language: what it keeps is written as before, nothing becomes unsayable, logits stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from whisperfold.compiler import vocabulary
from whisperfold.compiler.blocks import quantize_blocks
from whisperfold.compiler.teacher import Lesson
from whisperfold.compiler.vocabulary import Vocabulary, cut_vocabulary
from whisperfold.models.low_rank import LowRankWidths, replace_matrices
from whisperfold.models.sources import Checkpoint
from whisperfold.models.whisper import Whisper
from whisperfold.runtime.errors import ConfigError

COMMON = " And so, my fellow Americans: ask not what your country can do for you. It's 1961, isn't it?"
RARE = " heinous juveniles Zwölfeinhalb 日本語 floccinaucinihilipilification {x} 🎉\n"


@pytest.fixture(autouse=True, scope="module")
def few_words() -> Iterator[None]:
    """The packaged tokenizer is cut already: fewer words cut it further."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "N_WORDS", 3000)
        yield


@pytest.fixture(scope="module")
def english(few_words: None, tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return cut_vocabulary(tiny, "en", [], tmp_path_factory.mktemp("vocabulary"))


def test_what_is_common_is_written_as_before(tiny: Checkpoint, english: Vocabulary) -> None:
    old, new = (Tokenizer.from_file(str(path)) for path in (tiny.tokenizer, english.tokenizer))
    ids = new.encode(COMMON, add_special_tokens=False).ids
    assert [english.kept[i] for i in ids] == old.encode(COMMON, add_special_tokens=False).ids
    assert new.decode(ids) == COMMON


def test_what_is_rare_can_still_be_written(tiny: Checkpoint, english: Vocabulary) -> None:
    old, new = (Tokenizer.from_file(str(path)) for path in (tiny.tokenizer, english.tokenizer))
    ids = new.encode(RARE, add_special_tokens=False).ids
    assert new.decode(ids) == RARE
    assert len(ids) > len(old.encode(RARE, add_special_tokens=False).ids)


def test_it_is_smaller_and_special_tokens_are_the_same(tiny: Checkpoint, english: Vocabulary) -> None:
    cut = english.checkpoint(tiny)
    lost = tiny.dims.n_vocab - cut.dims.n_vocab
    assert lost > 10_000 and cut.tokens["timestamp_begin"] == tiny.tokens["timestamp_begin"] - lost
    tokenizer = Tokenizer.from_file(str(cut.tokenizer))
    for name, token in (
        ("eot", "<|endoftext|>"),
        ("sot", "<|startoftranscript|>"),
        ("no_timestamps", "<|notimestamps|>"),
    ):
        assert cut.tokens[name] == tokenizer.token_to_id(token)
        assert english.kept[cut.tokens[name]] == tiny.tokens[name]
    assert cut.tokens["languages"].keys() == tiny.tokens["languages"].keys()
    assert cut.tokens["multilingual"] is tiny.tokens["multilingual"]
    assert {english.kept[i] for i in cut.tokens["suppress"]} <= set(tiny.tokens["suppress"])
    assert tokenizer.encode("yes").ids[0] == cut.tokens["sot"]


def test_logits_of_the_kept_tokens_are_the_same(tiny: Checkpoint, english: Vocabulary) -> None:
    model = Whisper.from_state(tiny.dims, tiny.state).eval()
    mel, ids = torch.randn(1, 80, 60), torch.tensor([[english.kept.index(token) for token in tiny_prompt(tiny)]])
    with torch.no_grad():
        expected = model(mel, torch.tensor([tiny_prompt(tiny)]))[..., list(english.kept)]
        found = english.model(model).eval()(mel, ids)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


def tiny_prompt(tiny: Checkpoint) -> list[int]:
    return [tiny.tokens["sot"], tiny.tokens["no_timestamps"], 262]


def test_factored_matrices_and_dropped_layers_stay_as_they_are(tiny: Checkpoint, english: Vocabulary) -> None:
    model = Whisper.from_state(tiny.dims, tiny.state)
    layer, *others = model.encoder.layers
    ranks = LowRankWidths(**asdict(model.widths.encoder[0]), q=8, k=8, v=8, out=8, fc1=8, fc2=0)
    replace_matrices(layer, ranks)
    model.encoder.layers = nn.ModuleList([layer])
    model.widths = replace(model.widths, encoder=(ranks,))
    assert others, "nothing would be dropped"
    cut = english.model(model)
    expected = model.encoder.state_dict()
    assert cut.widths == model.widths and cut.encoder.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in cut.encoder.state_dict().items())


def test_blocks_keep_their_rows() -> None:
    blocks = quantize_blocks(torch.randn(10, 128), torch.eye(128))
    cut = Vocabulary((1, 4, 9), Path()).blocks(blocks)
    np.testing.assert_array_equal(cut.dequantized(), blocks.dequantized()[[1, 4, 9]])


def test_lessons_are_renumbered_and_those_in_lost_tokens_left_out() -> None:
    hidden = torch.zeros(1, 4)

    def lesson(*ids: int) -> Lesson:
        return Lesson(SimpleNamespace(), np.zeros(1, np.float32), hidden, [(torch.tensor(ids), hidden)])  # type: ignore[arg-type]

    found = Vocabulary((1, 4, 9), Path()).lessons([lesson(1, 9), lesson(1, 2), lesson(4)])
    assert [item.sequences[0][0].tolist() for item in found] == [[0, 2], [1]]


def test_what_was_said_stays(tiny: Checkpoint, tmp_path: Path) -> None:
    ids = Tokenizer.from_file(str(tiny.tokenizer)).encode(RARE, add_special_tokens=False).ids
    kept = cut_vocabulary(tiny, "en", ids, tmp_path)
    new = Tokenizer.from_file(str(kept.tokenizer))
    assert [kept.kept[i] for i in new.encode(RARE, add_special_tokens=False).ids] == ids


def test_two_languages_keep_more(tiny: Checkpoint, english: Vocabulary, tmp_path: Path) -> None:
    both = cut_vocabulary(tiny, "en,de", [], tmp_path)
    assert set(english.kept) < set(both.kept)


def test_a_multilingual_checkpoint_loses_the_other_languages(tiny: Checkpoint, tmp_path: Path) -> None:
    old = Tokenizer.from_file(str(tiny.tokenizer))
    languages = {code: old.token_to_id(f"<|{code}|>") for code in ("en", "de", "fr")}
    polyglot = replace(tiny, tokens=tiny.tokens | {"multilingual": True, "languages": languages})
    kept = cut_vocabulary(polyglot, "en", [languages["fr"]], tmp_path)  # fr was heard in the lessons
    cut = kept.checkpoint(polyglot)
    new = Tokenizer.from_file(str(cut.tokenizer))
    assert cut.tokens["languages"] == {code: new.token_to_id(f"<|{code}|>") for code in ("en", "fr")}
    assert new.token_to_id("<|de|>") is None
    assert kept.kept[cut.tokens["timestamp_begin"]] == tiny.tokens["timestamp_begin"]
    with pytest.raises(ConfigError, match="vocabulary 'nl': .* knows de, en, fr"):
        cut_vocabulary(polyglot, "nl", [], tmp_path)


def test_unknown_language(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocabulary 'xx': no word list; expected all, or of ar"):
        cut_vocabulary(tiny, "xx", [], tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
