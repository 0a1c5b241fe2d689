"""Filters, guards and the search loop, on a scripted decoder (no weights) and on the bundle."""

from typing import Any

import numpy as np
import pytest
from scripted_engine import BEGIN, EOT, N_VOCAB, NO_TIMESTAMPS, SOT, TOKENS, ScriptedEngine

from whisperfold.runtime.decoding import decode, detect_language
from whisperfold.runtime.decoding_options import DecodingOptions
from whisperfold.runtime.errors import ConfigError
from whisperfold.runtime.filters import LogitFilter, log_sum_exp
from whisperfold.runtime.guards import compression_ratio, find_loop, max_tokens
from whisperfold.runtime.mel import log_mel
from whisperfold.runtime.session import CrossCache
from whisperfold.runtime.transcribe import Transcriber
from whisperfold.runtime.windows import pad

CROSS = CrossCache([], 1, 500)


def run(engine: ScriptedEngine, audio_s: float = 10.0, **options: Any) -> Any:
    return decode(engine, CROSS, DecodingOptions(**options), audio_s)  # type: ignore[arg-type]


class TestFilters:
    def test_suppressed_tokens(self) -> None:
        logits = LogitFilter(TOKENS, N_VOCAB).apply(np.zeros(N_VOCAB, np.float32), [1])
        forbidden = set(np.flatnonzero(np.isneginf(logits)).tolist())
        assert forbidden == {7, 8, 51, 52, 53, 54, 55, 56, 57, *range(BEGIN, N_VOCAB)}

    def test_blank_at_the_beginning(self) -> None:
        logits = LogitFilter(TOKENS, N_VOCAB).apply(np.zeros(N_VOCAB, np.float32), [])
        assert np.isneginf(logits[[0, EOT]]).all() and logits[1] == 0

    def allowed(self, sampled: list[int], favour: int | None = None, audio_s: float = 1.5) -> set[int]:
        logits = np.zeros(N_VOCAB, np.float32)
        if favour is not None:
            logits[favour] = 20.0
        LogitFilter(TOKENS, N_VOCAB, True, audio_s=audio_s).apply(logits, sampled)
        return set(np.flatnonzero(logits > -np.inf).tolist())

    def test_timestamps_come_first_and_early(self) -> None:
        assert self.allowed([]) == set(range(BEGIN, BEGIN + 51))

    def test_text_after_an_opening_timestamp(self) -> None:
        assert max(self.allowed([BEGIN])) < BEGIN
        assert max(self.allowed([BEGIN, 1, BEGIN + 5, BEGIN + 5])) < BEGIN

    def test_a_closed_pair_is_followed_by_eot_or_a_timestamp(self) -> None:
        assert self.allowed([BEGIN, 1, BEGIN + 5], favour=EOT) >= {EOT, BEGIN + 5}
        assert 1 not in self.allowed([BEGIN, 1, BEGIN + 5])

    def test_time_never_goes_back_nor_past_the_audio(self) -> None:
        times = {token for token in self.allowed([BEGIN + 3, 1], favour=1) if token >= BEGIN}
        assert times == set(range(BEGIN + 4, BEGIN + 76))

    def test_likelier_timestamps_win(self) -> None:
        assert min(self.allowed([BEGIN, 1])) > BEGIN  # 75 equal timestamps outweigh any one word
        assert 2 in self.allowed([BEGIN, 1], favour=2)

    def test_log_sum_exp(self) -> None:
        logits = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 10
        assert log_sum_exp(logits) == pytest.approx(float(np.log(np.exp(logits.astype(np.float64)).sum())), abs=1e-5)


class TestGuards:
    def test_compression_ratio(self) -> None:
        assert compression_ratio("") == 0.0
        assert compression_ratio("the cat sat on the mat") < 1.5
        assert compression_ratio("thank you. " * 20) > 2.4

    @pytest.mark.parametrize(
        ("tokens", "kept"),
        [
            ([], None),
            ([1, 2, 3] * 3, None),  # three times is speech
            ([1, 2, 3] * 4, 3),
            ([9, 8, *[1, 2, 3] * 5], 5),
            ([9, 8, *[1, 2, 3] * 5, 1], 5),
            ([5] * 11, None),
            ([4, *[5] * 12], 2),
            ([1, 2] * 6, 2),
            (list(range(40)), None),
            ([*range(20)] * 4, 20),
            ([*[1, 2, 3] * 6, 7], None),  # the loop is over
        ],
    )
    def test_find_loop(self, tokens: list[int], kept: int | None) -> None:
        assert find_loop(tokens) == kept

    def test_max_tokens(self) -> None:
        assert max_tokens(2.0, 10.0, 8, 224) == 28
        assert max_tokens(60.0, 10.0, 8, 224) == 224
        assert max_tokens(0.0, 10.0, 0, 224) == 1


class TestSearch:
    def test_says_the_script(self) -> None:
        engine = ScriptedEngine([1, 2, 3])
        result = run(engine)
        assert result.tokens == (1, 2, 3) and result.text == "w1 w2 w3" and result.stop == "eot"
        assert result.temperature == 0.0 and result.language == "en"
        assert len(result.token_logprobs) == 3 and -0.01 < result.avg_logprob < 0
        assert engine.fed == [[SOT, NO_TIMESTAMPS], [1], [2], [3]]  # two rows first, then one token a step

    def test_suppressed_tokens_are_never_said(self) -> None:
        assert 7 not in run(ScriptedEngine([1, 7, 2]), temperatures=(0.0,)).tokens

    def test_token_rate(self) -> None:
        script = np.random.default_rng(0).permutation(40).tolist() * 5
        result = run(ScriptedEngine(script), audio_s=1.0, temperatures=(0.0,), compression_ratio_threshold=99.0)
        assert len(result.tokens) == 18 and result.stop == "limit"

    @pytest.mark.parametrize("beam_size", [1, 3])
    def test_where_nothing_is_heard_nothing_is_searched(self, beam_size: int) -> None:
        engine = ScriptedEngine([])
        result = run(engine, beam_size=beam_size)
        assert (result.tokens, result.text, result.stop) == ((), "", "silence") and len(engine.fed) == 1

    @pytest.mark.parametrize("beam_size", [1, 3])
    def test_loops_stop_early_and_are_cut(self, beam_size: int) -> None:
        engine = ScriptedEngine([9, *[1, 2, 3] * 60])
        result = run(engine, audio_s=20.0, temperatures=(0.0,), beam_size=beam_size)
        assert result.tokens == (9, 1, 2, 3) and result.stop == "loop"
        assert len(engine.fed) == 13
        kept = run(ScriptedEngine([9, *[1, 2, 3] * 20]), audio_s=20.0, temperatures=(0.0,), loop_guard=False)
        assert len(kept.tokens) == 61

    def test_words_that_are_all_improbable_are_no_text(self) -> None:
        guessed = ScriptedEngine([1, 2, 3], certainty=2.0)  # log probability about -2
        assert (run(guessed, temperatures=(0.0,)).tokens, run(guessed, temperatures=(0.0,)).stop) == ((), "silence")
        assert run(guessed, temperatures=(0.0,), gibberish_threshold=-3.0).tokens == (1, 2, 3)
        assert run(ScriptedEngine([3], certainty=2.0), temperatures=(0.0,), prefix=(1, 2)).tokens == (1, 2, 3)

    def test_fallback_until_a_temperature_passes(self) -> None:
        doubtful = ScriptedEngine([1, 2, 3], certainty=4.0)  # log probability about -1
        result = run(doubtful, logprob_threshold=-0.1, temperatures=(0.0, 0.2, 0.4))
        assert result.temperature == 0.0  # none passes: the likeliest stays
        assert sum(len(tokens) == 2 for tokens in doubtful.fed) == 1  # the start sequence runs once
        assert run(ScriptedEngine([1, 2], certainty=30.0), temperatures=(0.4,)).temperature == 0.4

    def test_sampling_is_seeded(self) -> None:
        def sample(seed: int) -> Any:
            return run(ScriptedEngine([1, 2, 3], 2.0), temperatures=(1.0,), gibberish_threshold=-9.0, seed=seed).tokens

        assert sample(1) == sample(1) != sample(2)

    def test_no_speech(self) -> None:
        quiet = ScriptedEngine([1, 2, 3], certainty=2.0, no_speech=12.0)
        result = run(quiet)
        assert result.text == "" and result.tokens == () and result.stop == "silence"
        assert result.no_speech_prob > 0.9 and sum(len(tokens) == 2 for tokens in quiet.fed) == 1
        assert run(ScriptedEngine([1, 2, 3], no_speech=12.0)).text == "w1 w2 w3"  # sure of its words

    def test_empty_transcript(self) -> None:
        result = run(ScriptedEngine([EOT], certainty=20.0), attention=True)
        assert result.text == "" and result.stop == "silence" and result.cross_attention is None

    def test_prefix_is_forced(self) -> None:
        engine = ScriptedEngine([3])
        result = run(engine, prefix="4 5")
        assert engine.fed[0] == [SOT, NO_TIMESTAMPS, 4, 5]
        assert result.tokens == (4, 5, 3) and result.token_logprobs[:2] == (0.0, 0.0)

    def test_prompt_goes_before(self) -> None:
        engine = ScriptedEngine([3])
        assert run(engine, prompt="4 5").tokens == (3,)
        assert engine.fed[0] == [TOKENS.sot_prev, 4, 5, SOT, NO_TIMESTAMPS]

    def test_a_long_prompt_keeps_its_end(self) -> None:
        engine = ScriptedEngine([3])
        run(engine, prompt=" ".join(["1"] * 500 + ["2"]))
        assert len(engine.fed[0]) == 223 + 3 and engine.fed[0][-3] == 2

    @pytest.mark.parametrize("script", [[1, 2, 3], [5]])
    def test_attention_has_a_row_per_token_and_eot(self, script: list[int]) -> None:
        for options in ({}, {"beam_size": 3}, {"prefix": "4"}, {"prompt": "4 4"}):
            result = run(ScriptedEngine(script), attention=True, **options)
            assert result.cross_attention.shape == (2, len(result.tokens) + 1, 50)

    def test_beams_find_the_script(self) -> None:
        result = run(ScriptedEngine([1, 2, 3]), beam_size=4)
        assert result.tokens == (1, 2, 3) and result.stop == "eot"

    def test_beams_obey_the_limit(self) -> None:
        script = np.random.default_rng(0).permutation(40).tolist()
        result = run(ScriptedEngine(script), beam_size=3, audio_s=1.0, temperatures=(0.0,))
        assert result.tokens == tuple(script[:18]) and result.stop == "limit"


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperatures": ()}, "temperatures"),
            ({"temperatures": (-0.1,)}, "temperatures"),
            ({"beam_size": 0}, "beam_size=0"),
            ({"max_tokens_per_s": 0.0}, "max_tokens_per_s"),
            ({"extra_tokens": -1}, "extra_tokens"),
        ],
    )
    def test_impossible(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            DecodingOptions(**options)

    def test_unknown_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="'temprature': unknown, the nearest is 'temperatures'"):
            DecodingOptions().changed(temprature=0.0)

    def test_one_temperature_is_enough(self) -> None:
        assert DecodingOptions().changed(temperatures=0).temperatures == (0.0,)


class TestBundle:
    def test_greedy_beams_and_timestamps_agree(self, transcriber: Transcriber, jfk: np.ndarray) -> None:
        mel = log_mel(pad(jfk, transcriber.bundle.window), transcriber.engine.dims.n_mels)
        cross = transcriber.engine.encode(mel)
        greedy = decode(transcriber.engine, cross, DecodingOptions(attention=True), 11.0)
        beams = decode(transcriber.engine, cross, DecodingOptions(beam_size=4, attention=True), 11.0)
        assert "ask what you can do for your country" in greedy.text.lower()
        assert "you can do for your country" in beams.text.lower()
        assert greedy.cross_attention is not None and beams.cross_attention is not None
        assert greedy.cross_attention.shape[1] == len(greedy.tokens) + 1
        assert np.allclose(greedy.cross_attention.sum(axis=-1), 1.0, atol=1e-3)
        if greedy.tokens == beams.tokens:
            assert np.abs(greedy.cross_attention - beams.cross_attention).max() < 0.05
        assert beams.avg_logprob >= greedy.avg_logprob - 0.02

    def test_cached_steps_equal_one_run(self, transcriber: Transcriber, jfk: np.ndarray) -> None:
        engine = transcriber.engine
        cross = engine.encode(log_mel(pad(jfk, transcriber.bundle.window), engine.dims.n_mels))
        tokens = np.array([[engine.tokens.sot, engine.tokens.no_timestamps, 843, 523, 616, 5891]], np.int64)
        whole, _ = engine.step(tokens, engine.new_cache(cross), np.arange(6, dtype=np.int64))
        cache, rows = engine.new_cache(cross), []
        for position in range(6):
            rows.append(engine.step(tokens[:, position : position + 1], cache)[0][0, 0])
        assert cache.length == 6
        exact = transcriber.bundle.precision == "fp32"
        assert np.abs(whole[0] - np.stack(rows)).max() < (1e-3 if exact else 2.0)  # int8 scales differ by shape

    def test_language_detection_needs_languages(self, transcriber: Transcriber) -> None:
        if transcriber.engine.tokens.multilingual:
            pytest.skip("the bundle under test is multilingual")
        cross = transcriber.engine.encode(np.zeros((transcriber.engine.dims.n_mels, 100), np.float32))
        with pytest.raises(ConfigError, match="English-only, cannot detect"):
            detect_language(transcriber.engine, cross)
