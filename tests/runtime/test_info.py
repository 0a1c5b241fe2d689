import io
from pathlib import Path

from rich.console import Console

from whisperfold.runtime.info import print_bundle

MANIFEST = {
    "format": 1,
    "name": "tiny.en",
    "source": {"name": "tiny.en", "sha256": "ab12", "licence": "MIT"},
    "dims": {"n_audio_layer": 2, "n_text_layer": 1},
    "widths": {
        "encoder": [{"qk": 32, "vo": 56, "ffn": 1024}, {"qk": 24, "vo": 64, "ffn": 1536}],
        "decoder": [{"self_qk": 32, "self_vo": 64, "cross_qk": 40, "cross_vo": 64, "ffn": 1536}],
    },
    "window": {"kind": "short", "tail_s": 0.5, "min_s": 1.0, "max_s": 20.0},
    "precision": "int8",
    "bytes": {"encoder layers": 5_000_000, "token embedding": 20_000_000},
    "results": {"librispeech-other-dev": {"wer": 0.10243}, "bundle_hash": "ff"},
    "files": {"encoder.onnx": {"bytes": 5_000_000, "sha256": ""}, "decoder.onnx": {"bytes": 21_500_000}},
}


def printed(manifest) -> str:
    out = io.StringIO()
    print_bundle(Path("/some/bundle"), manifest, Console(file=out, width=120))
    return out.getvalue()


def test_ranks_window_bytes_and_results():
    text = printed(MANIFEST)
    for expected in (
        "26.50 MB",
        "short: the audio + 0.5 s, 1.0 to 20.0 s",
        "1024",
        "cross qk",
        "80.0 %",
        "0.1024",
    ):
        assert expected in text
    assert text.index("token embedding") < text.index("encoder layers"), "largest first"
    assert "librispeech-other-dev.wer" in text


def test_a_manifest_with_little_in_it():
    text = printed({"format": 1, "window": {"kind": "full"}})
    assert "full: always 30 s" in text and "bundle bundle" in text
    assert "results" not in text and "bytes are" not in text
