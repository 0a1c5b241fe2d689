"""Clips of LibriSpeech -> runtime/canary: the other speakers that an enrollment must not harm, with transcripts.

    python -m whisperfold.compiler.canary librispeech-train.jsonl runtime/canary

One of a speaker, none of whom is in compiler/data. The transcripts are those of the original multilingual base at 30 s.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import soundfile as sf

from whisperfold.compiler.manifests import Item, read_items
from whisperfold.compiler.reference import OriginalTranscriber
from whisperfold.models.sources import load_source
from whisperfold.runtime.audio import SAMPLE_RATE

N_SPREAD = 56
LENGTH_S = (7.0, 16.0)
MIN_WORDS_PER_S = 1.5
"""Clips with fewer words are dropped: `base` stopped after the chapter's title."""
CALIBRATION = Path(__file__).parent / "data" / "calibration.jsonl"


def choose(items: list[Item]) -> list[Item]:
    """Return the clips, spread over the manifest, one of a speaker."""
    used = {json.loads(line)["speaker"] for line in CALIBRATION.read_text(encoding="utf-8").splitlines()}
    free = [i for i in items if i.speaker not in used and i.duration_s and LENGTH_S[0] <= i.duration_s <= LENGTH_S[1]]
    free = list({item.speaker: item for item in free}.values())
    spread = [free[i * len(free) // N_SPREAD] for i in range(N_SPREAD)]
    return [*spread[1:40:2], *spread[40:]]  # the others were rehearsed once: without them the canary is what it was


def main(manifest: Path, target: Path) -> None:
    """Write the clips and canary.jsonl."""
    original = OriginalTranscriber(load_source("base"))
    (target / "audio").mkdir(parents=True, exist_ok=True)
    lines = []
    for item in choose(read_items(manifest)):
        samples = item.load()
        text = original.transcribe_window(samples)
        if len(text.split()) < MIN_WORDS_PER_S * samples.size / SAMPLE_RATE:
            continue
        file = f"audio/{Path(item.audio).stem}.opus"
        sf.write(target / file, samples, SAMPLE_RATE, format="OGG", subtype="OPUS")
        facts = {"audio": file, "duration_s": item.duration_s, "speaker": item.speaker}
        lines.append(json.dumps({**facts, "text": text}, ensure_ascii=False) + "\n")
    (target / "canary.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
