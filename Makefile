# Two commands are enough: `make reproduce` and `make test`. Both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
EXTRAS := batch,book,fetch,test
SMOKE := results/smoke/provenance.json
BOOK := book/_build/html/index.html
PAGES := _config.yml _toc.yml $(shell find book medq results/published -type f -not -path '*/_build/*' -not -path '*/__pycache__/*' 2>/dev/null | grep -v ' ')

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLBACKEND := Agg

.PHONY: help setup reproduce smoke book test test-all book-check peers lab bench lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

setup: .venv/.installed  ## the virtual environment with pinned packages
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@echo "Setting up .venv (packages are downloaded once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[$(EXTRAS)]"
	@touch $@

reproduce: setup  ## the smoke batch through papermill, its results, and the book built on them
	@$(MAKE) --no-print-directory smoke
	@if $(MAKE) --no-print-directory --question $(BOOK); then echo "The book is up to date: $(BOOK)"; \
	else $(MAKE) --no-print-directory $(BOOK); fi

smoke: setup
	@$(BIN)/medq batch params/smoke.yaml --jobs $(JOBS)

$(BOOK): $(PAGES) $(SMOKE)
	@MEDQ_RESULTS=smoke $(BIN)/jupyter-book build book/
	@touch $@
	@echo "The book: $(BOOK)"

$(SMOKE):
	@$(MAKE) --no-print-directory smoke

book: setup  ## the book on the committed results
	@$(BIN)/jupyter-book build book/

test: setup  ## the test suite (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not browser"

test-all: setup  ## the long tests too
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not browser"

book-check: setup  ## every page of the built book in Chromium
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[$(EXTRAS),browser]"
	@$(BIN)/python -m pytest -m browser

peers: setup  ## ONNX Runtime, OpenVINO with NNCF, and torchao, for the comparison of runtimes
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[$(EXTRAS),peers]"

lab: setup  ## JupyterLab on the notebooks
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[$(EXTRAS),lab]"
	@$(BIN)/jupyter lab notebooks

bench: setup  ## the benchmarks, each against a named alternative (pixels: MEDQ_DATA; timings of models: latency.py)
	@for name in bootstrap batch fake gpu memory pixels; do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

lock: setup  ## pin what is installed now
	@$(BIN)/python scripts/lock.py

clean:  ## remove what builds and batches wrote (not results/reference)
	@rm -rf book/_build results/smoke runs/smoke
