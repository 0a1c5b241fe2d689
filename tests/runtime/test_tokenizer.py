"""Token ids <-> text."""

from pathlib import Path

import pytest

from whisperfold.runtime.bundle import Bundle
from whisperfold.runtime.errors import BundleError, ConfigError
from whisperfold.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer(bundle)


@pytest.fixture(scope="module")
def multilingual(bundle: Bundle) -> Tokenizer:
    """The same vocabulary with a multilingual model's start sequence."""
    changes = {"multilingual": True, "languages": {"en": 50259, "de": 50261}}
    tokens = {**bundle.manifest["tokens"], **changes}
    return Tokenizer(Bundle(bundle.path, {**bundle.manifest, "tokens": tokens}))


@pytest.mark.parametrize("text", [" Hello, world.", " It's 3,5 % of 10 €", " Straße", " 日本語", " 🎉 done", ""])
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert all(token < tokenizer.tokens.eot for token in tokens)
    assert tokenizer.decode(tokens) == text
    assert "".join(word for word, _ in tokenizer.split_words(tokens)) == text


def test_special_tokens_are_not_text(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokens
    text = tokenizer.encode(" yes")
    noisy = [
        tokens.sot,
        tokens.no_timestamps,
        tokens.timestamp_begin,
        *text,
        tokens.timestamp_begin + 50,
        tokens.eot,
    ]
    assert tokenizer.decode(noisy) == " yes"


def test_timestamps(tokenizer: Tokenizer) -> None:
    begin = tokenizer.tokens.timestamp_begin
    assert tokenizer.is_timestamp(begin) and not tokenizer.is_timestamp(begin - 1)
    assert tokenizer.timestamp_s(begin + 60) == pytest.approx(1.2)


def test_sot_sequence_english_only(bundle: Bundle, tokenizer: Tokenizer) -> None:
    if bundle.tokens.multilingual:
        pytest.skip("the bundle under test is multilingual")
    assert tokenizer.sot_sequence() == [bundle.tokens.sot, bundle.tokens.no_timestamps]
    assert tokenizer.sot_sequence("en", timestamps=True) == [bundle.tokens.sot]
    with pytest.raises(ConfigError, match="language 'de'.*English-only"):
        tokenizer.sot_sequence("de")
    with pytest.raises(ConfigError, match="translate.*English-only"):
        tokenizer.sot_sequence("en", "translate")


def test_sot_sequence_multilingual(multilingual: Tokenizer) -> None:
    tokens = multilingual.tokens
    assert multilingual.sot_sequence("de") == [tokens.sot, 50261, tokens.transcribe, tokens.no_timestamps]
    assert multilingual.sot_sequence("de", "translate", True) == [tokens.sot, 50261, tokens.translate]
    with pytest.raises(ConfigError, match="language 'xx': expected one of de, en"):
        multilingual.sot_sequence("xx")
    with pytest.raises(ConfigError, match="language None"):
        multilingual.sot_sequence()


def test_unknown_task(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="task 'sing'"):
        tokenizer.sot_sequence("en", "sing")


def test_words_keep_their_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(" And unbelievably, yes.")
    words = tokenizer.split_words(tokens)
    assert [word for word, _ in words] == [" And", " unbelievably", ",", " yes", "."]
    assert [token for _, ids in words for token in ids] == tokens


def test_words_without_spaces(tokenizer: Tokenizer) -> None:
    words = tokenizer.split_words(tokenizer.encode("日本語"), "ja")
    assert [word for word, _ in words] == ["日", "本", "語"]


def test_unfinished_character_is_kept(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(" 日本")[:-1]
    assert [token for _, ids in tokenizer.split_words(tokens) for token in ids] == tokens


def test_not_a_tokenizer(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="tokenizer.json: not a tokenizer"):
        Tokenizer(Bundle(tmp_path, {**bundle.manifest, "files": {"tokenizer.json": {}}}))
