"""One speech recogniser in its own process: JSON requests on stdin, JSON answers on stdout.

    start     python worker.py '{"system": "whisperfold", "model": PATH, "threads": 2, ...}'
    answer    {"ready": true, "versions": {...}, "rss_bytes": n}
    request   {"audio": PATH}
    answer    {"seconds": wall, "cpu_seconds": of all threads, "text": "..."}
    request   {"quit": true}
    answer    {"peak_rss_bytes": n}

Reading the file is not timed, everything after that is (speech detector, mel, encoder, decoder, text).
All run greedy: one beam, temperature 0 without fallback, no timestamps, no text from the clip before.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

Transcribe = Callable[[np.ndarray], str]
SAMPLE_RATE = 16_000
WINDOW_S, WINDOW_POSITIONS, SPARE_POSITIONS = 30, 1500, 128
"""Whisper's window in seconds and encoder positions, and what whisper.cpp's users add to a shortened one."""


def open_whisperfold(options: dict[str, Any]) -> Transcribe:
    """Our runtime as a user gets it, speech detector included."""
    from whisperfold.runtime.transcribe import Transcriber

    transcriber = Transcriber.open(options["model"], threads=options["threads"])
    decoding = {k: tuple(v) if isinstance(v, list) else v for k, v in options.get("decoding", {}).items()}
    return lambda samples: transcriber.transcribe(samples, **decoding).text


def open_faster_whisper(options: dict[str, Any]) -> Transcribe:
    """CTranslate2 with int8 weights."""
    from faster_whisper import WhisperModel

    model = WhisperModel(
        options["model"], device="cpu", compute_type="int8", cpu_threads=options["threads"], num_workers=1,
        local_files_only=True,
    )  # fmt: skip

    def transcribe(samples: np.ndarray) -> str:
        segments, _ = model.transcribe(
            samples, language="en", beam_size=1, temperature=0.0, without_timestamps=True,
            condition_on_previous_text=False, vad_filter=False,
        )  # fmt: skip
        return "".join(segment.text for segment in segments).strip()

    return transcribe


def open_whisper_cpp(options: dict[str, Any]) -> Transcribe:
    """whisper.cpp; with "audio_ctx": true the encoder knows the clip's length, as its streaming users do."""
    from pywhispercpp.model import Model

    model = Model(
        options["model"], n_threads=options["threads"], language="en", temperature=0.0, temperature_inc=0.0,
        no_timestamps=True, no_context=True, print_progress=False, print_realtime=False,
    )  # fmt: skip

    def transcribe(samples: np.ndarray) -> str:
        audio_ctx = 0
        if options.get("audio_ctx"):
            seconds = len(samples) / SAMPLE_RATE
            audio_ctx = min(WINDOW_POSITIONS, int(seconds / WINDOW_S * WINDOW_POSITIONS + SPARE_POSITIONS))
        return " ".join(s.text for s in model.transcribe(samples, audio_ctx=audio_ctx)).strip()

    return transcribe


SYSTEMS: dict[str, tuple[Callable[[dict[str, Any]], Transcribe], tuple[str, ...]]] = {
    "whisperfold": (open_whisperfold, ("whisperfold", "onnxruntime", "numpy")),
    "faster-whisper": (open_faster_whisper, ("faster-whisper", "ctranslate2", "numpy")),
    "whisper.cpp": (open_whisper_cpp, ("pywhispercpp", "numpy")),
}


def memory_bytes(field: str) -> int:
    """Read VmRSS or VmHWM of this process.

    The kernel's VmHWM starts anew with the program; getrusage's ru_maxrss, used where there is no /proc, also
    counts the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def main() -> None:
    """Open the system and answer until told to quit."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    options = json.loads(sys.argv[1])
    open_system, packages = SYSTEMS[options["system"]]
    started = time.perf_counter()
    transcribe = open_system(options)
    load_s = time.perf_counter() - started
    versions = {package: version(package) for package in packages}
    answer({"ready": True, "versions": versions, "load_s": load_s, "rss_bytes": memory_bytes("VmRSS")})
    for line in sys.stdin:
        request = json.loads(line)
        if "quit" in request:
            answer({"peak_rss_bytes": memory_bytes("VmHWM")})
            return
        samples, rate = soundfile.read(request["audio"], dtype="float32")
        if rate != SAMPLE_RATE or samples.ndim != 1:
            raise ValueError(f"{request['audio']}: {rate} Hz, shape {samples.shape}; expected 16 kHz mono")
        wall, cpu = time.perf_counter(), time.process_time()
        text = transcribe(samples)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer({"seconds": wall, "cpu_seconds": cpu, "text": text})


if __name__ == "__main__":
    main()
