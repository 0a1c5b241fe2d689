"""A decoder without weights that says what it is told to."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from whisperfold.runtime.manifest import Tokens
from whisperfold.runtime.session import CrossCache, KVCache

EOT, SOT, NO_SPEECH, NO_TIMESTAMPS, BEGIN, N_VOCAB = 50, 51, 55, 56, 60, 160
TOKENS = Tokens(
    sot=SOT,
    eot=EOT,
    transcribe=52,
    translate=53,
    sot_prev=54,
    sot_lm=57,
    no_speech=NO_SPEECH,
    no_timestamps=NO_TIMESTAMPS,
    timestamp_begin=BEGIN,
    multilingual=False,
    suppress=(7, 8),
    suppress_begin=(0, EOT),
)


class ScriptedEngine:
    """A decoder that says `script` token by token; certainty is the logit of the scripted token."""

    def __init__(self, script: list[int], certainty: float = 12.0, no_speech: float = -20.0) -> None:
        self.script, self.certainty, self.no_speech = script, certainty, no_speech
        self.tokens = TOKENS
        self.dims = SimpleNamespace(n_text_ctx=448, n_vocab=N_VOCAB)
        self.bundle = SimpleNamespace(name="scripted", alignment_heads=[])
        self.tokenizer = SimpleNamespace(
            sot_sequence=lambda language, task, timestamps=False: [SOT] + [NO_TIMESTAMPS] * (not timestamps),
            decode=lambda tokens: " ".join(f"w{token}" for token in tokens if token < EOT),
            encode=lambda text: [int(word) for word in text.split()],
        )
        self.fed: list[list[int]] = []
        self.n_initial = 0

    def new_cache(self, cross: CrossCache) -> KVCache:
        return KVCache(cross, [])

    def reorder(self, cache: KVCache, rows: np.ndarray) -> KVCache:
        return KVCache(cache.cross, [], cache.length)

    def step(
        self, tokens: np.ndarray, cache: KVCache, positions: Any = None, attention: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        self.fed.append(tokens[0].tolist())
        if cache.length == 0 and positions is not None:  # not when a finished transcript is replayed
            self.n_initial = tokens.shape[1]
        said = cache.length + tokens.shape[1] - self.n_initial
        cache.length += tokens.shape[1]
        logits = np.zeros((tokens.shape[0], 1 if positions is None else len(positions), N_VOCAB), np.float32)
        logits[:, -1, self.script[said] if said < len(self.script) else EOT] = self.certainty
        if logits.shape[1] == 2:
            logits[:, 0, NO_SPEECH] = self.no_speech
        weights = np.full((tokens.shape[0], 2, tokens.shape[1], 50), 0.02, np.float32)
        return logits, weights if attention else None
