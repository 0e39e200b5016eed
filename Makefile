# Everything a person does here. Each target makes .venv/ first, or brings it up to date when pyproject.toml has changed.
# `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The Python (3.10 or newer) that .venv/ is made with.
PYTHON ?= python3
# The tested version. Another build (a CUDA version, the CPU) is installed as PyTorch's install page says, with the same
# variables of pip, for example: PIP_EXTRA_INDEX_URL=... make setup TORCH="torch==2.13.0+cpu"
TORCH ?= torch==2.13.0

exp := digits_gated
# Further arguments, as typed after the command: args="backbone.depth=8 data.root='my pictures'"
args :=
run :=
runs :=

VENV := .venv
STAMP := $(VENV)/.stamp
PY := $(VENV)/bin/python
# $(value ...): what stands in a shell's ${...} or $... is the shell's, not make's.
ARGS = $(value args)

# A run that is resumed knows its experiment.
EXP = $(if $(and $(filter file,$(origin exp)),$(findstring resume=,$(ARGS))),,exp=$(exp))

.PHONY: help setup prepare preview encode stats train sweep sample evaluate lens report test test-full lint bench clean

help: ## list the targets
	@awk 'BEGIN { FS = ": .*## " } /^[a-z-]+:.*## / { sub(/:.*/, "", $$1); printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: exp=EXPERIMENT (digits_gated), args="KEY=VALUE ...", run=DIR, runs=DIR-OR-GLOB, PYTHON=, TORCH='

setup: $(STAMP) ## make .venv/ and install the project into it

prepare: $(STAMP) ## check a data set: args="data=ucf101 data.root=DIR"
	$(PY) -m neural_rdm.prepare $(ARGS)

preview: $(STAMP) ## look at a data set as training sees it: args="data=coco data.root=DIR"
	$(PY) -m neural_rdm.preview $(ARGS)

encode: $(STAMP) ## latents made once: args="exp=dit_xl_gated data.root=DIR"
	$(PY) -m neural_rdm.encode $(ARGS)

stats: $(STAMP) ## statistics of real samples for evaluate: args="data=imagenet data.root=DIR"
	$(PY) -m neural_rdm.stats $(ARGS)

train: $(STAMP) ## train exp= (digits_gated: two minutes on a CPU); more in args="..."
	$(PY) -m neural_rdm.train $(EXP) $(ARGS)

sweep: $(STAMP) ## one run for each combination of values, then their comparison: args="residual=gated,resnet"
	$(PY) -m neural_rdm.sweep exp=$(exp) $(ARGS)

sample: $(STAMP) ## samples from run=DIR (run=last: the newest)
	$(PY) -m neural_rdm.sample $(if $(run),run='$(value run)' )$(ARGS)

evaluate: $(STAMP) ## measure run=DIR, or args="samples=FILE.npz metric=images metric.reference=FILE"
	$(PY) -m neural_rdm.evaluate $(if $(run),run='$(value run)' )$(ARGS)

lens: $(STAMP) ## what run=DIR would predict if it stopped at each of its units
	$(PY) -m neural_rdm.lens $(if $(run),run='$(value run)' )$(ARGS)

report: $(STAMP) ## the comparison of runs=DIR, or of a glob
	$(PY) -m neural_rdm.report $(if $(runs),runs='$(value runs)' )$(ARGS)

test: $(STAMP) ## the tests
	$(PY) -m pytest -n 2 --dist loadfile -m "not full" $(ARGS)

test-full: $(STAMP) ## the tests with their full bounds
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(STAMP) ## style, formatting and types
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/mypy

bench: $(STAMP) ## the benchmarks; results go to benchmarks/results/
	$(PY) -m benchmarks $(ARGS)

clean: ## remove caches and build leftovers; outputs/, data/ and .venv/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: after an interrupted installation the next call goes on where it stopped.
$(STAMP): pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo "making $(VENV)/ with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH) and the project into $(VENV)/ (the first time this takes minutes)"
	@set -o pipefail; $(PY) -m pip install --disable-pip-version-check "$(TORCH)" -e ".[dev]" \
	  | awk '/^ *(Collecting|Downloading|Building|Installing|Successfully)/ { print substr($$0, 1, 100); fflush() }'
	@touch $@
