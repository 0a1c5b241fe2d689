# whisperfold: one entry point for everything a person or CI does.
#
#   make run      .venv with the runtime only (no torch), transcript of the packaged sample; ARGS="clip.wav --format srt"
#   make test     adds the [compiler,serve,dev] extras to .venv; system packages, ruff, mypy, pytest -m "not slow"
#   make lint     ruff and mypy only
#   make bench    speed beside faster-whisper and whisper.cpp, streaming, soak, WER, enrollment, graphs; docs/benchmarks.md
#   make study    ways of cutting the encoder, before and after healing (hours; resumes); docs/study.md and .html
#   make bundle   make a bundle anew (about an hour; resumes): runtime/bundles/tiny.en, or MODEL=base, MODEL=distil.base
#
# One .venv, two stamps: `run` asks for the runtime stamp and never installs torch; `test` asks for the dev stamp,
# which adds to it. Editable installs follow the sources, so a stamp is stale only when a requirement changed.
# A different place: make VENV=.venv-pi run

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
ARGS ?= runtime/samples/jfk.flac
MODEL ?= tiny.en
BUNDLE_DIR ?= runtime/bundles/$(MODEL)
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint bench bundle study clean

help:
	@sed -n '3,8s/^# *//p' Makefile

run: $(VENV)/.stamp-runtime
	@$(BIN)/whisperfold transcribe $(ARGS)

test: $(VENV)/.stamp-dev
	@deploy/system-packages.sh --test
	@$(MAKE) --no-print-directory lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -m "not slow" --timeout 300

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.stamp-bench
	$(BIN)/python tests/bench/run.py $(BENCH_ARGS)

study: $(VENV)/.stamp-dev
	$(BIN)/whisperfold study --config compiler/configs/study.tiny.en.toml -o docs --work .work/study

bundle: $(VENV)/.stamp-dev
	$(BIN)/whisperfold compile --config compiler/configs/$(MODEL).toml -o $(BUNDLE_DIR) --work .work/$(MODEL)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "whisperfold needs Python 3.11 or newer, found " + sys.version.split()[0] + "; run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# A dev venv already holds the runtime: its stamp is written together with the dev stamp.
$(VENV)/.stamp-runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[compiler,serve,dev]'
	@touch $(VENV)/.stamp-runtime $@

$(VENV)/.stamp-bench: $(VENV)/.stamp-dev
	$(PIP) --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
