"""make bench: speed and memory, streaming, soak, WER, enrollment, graphs, then docs/benchmarks.md; a process each.

    python tests/bench/run.py [--quick] [--bundle DIR] [--output DIR --page FILE]

--quick takes a few clips only, to see that it works; its figures go to a temporary folder, never to results/.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import DEFAULT_BUNDLE, DEFAULT_SPEECH, RESULTS
from page import PAGE

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the scripts; the exit status is the first one that is not 0."""
    parser = argparse.ArgumentParser(description="all benchmarks")
    parser.add_argument("--quick", action="store_true", help="a few clips, results thrown away")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--source", default="tiny.en")
    parser.add_argument("--speech", type=Path, default=DEFAULT_SPEECH, help="folder of the manifests")
    parser.add_argument("--rivals-python", default=sys.executable)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    if not (args.bundle / "manifest.json").is_file():
        raise SystemExit(f"{args.bundle}: no bundle there; run make bundle or pass --bundle DIR")
    if not args.speech.is_dir():
        raise SystemExit(
            f"{args.speech}: no such folder; pass --speech DIR with librispeech-other-dev.jsonl and its audio"
        )
    with tempfile.TemporaryDirectory() as scratch:
        if args.quick:
            args.output, args.page = Path(scratch), Path(scratch) / "benchmarks.md"
        speed_args = [
            "--rivals-python",
            args.rivals_python,
            "--speech",
            str(args.speech / "librispeech-other-dev.jsonl"),
        ]
        wer_args = ["--speech", str(args.speech), "--output", str(args.output)]
        if args.bundle != DEFAULT_BUNDLE:  # else every packaged one
            wer_args += ["--bundle", str(args.bundle)]
        live = ["--bundle", str(args.bundle), "--output", str(args.output)]
        stream_args, soak_args = ["--speech", str(args.speech)], ["--speech", str(args.speech)]
        enroll_args = ["--speech", str(args.speech), "--fresh"]
        if args.quick:
            speed_args += ["--clips", "2", "--repeats", "2"]
            wer_args += ["--limit", "3"]
            stream_args += ["--limit", "1", "--sets", "accented-check", "--threads", "2"]
            soak_args += ["--hours", "0.05"]
            enroll_args += ["--limit", "1"]
        steps = [
            ["speed.py", *live, "--source", args.source, *speed_args],
            ["stream.py", *live, *stream_args],
            ["soak.py", *live, *soak_args],
            ["wer.py", *wer_args],
            ["enroll.py", *live, *enroll_args],
            ["graphs.py", str(args.bundle), "--random", "--output", str(args.output)],
            ["page.py", "--results", str(args.output), "--page", str(args.page)],
        ]
        statuses = [subprocess.run([sys.executable, str(HERE / script), *rest]).returncode for script, *rest in steps]
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
