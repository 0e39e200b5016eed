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
seeds :=
jobs :=
peer :=

# Which targets take which variables; a variable that every target of a command line would ignore is refused below.
takes_exp := encode plan train sweep
takes_run := sample evaluate lens demo convert deepen
takes_runs := report
takes_seeds := sweep
takes_jobs := sweep
takes_peer := bench
takes_args := prepare preview encode stats plan train sweep sample evaluate lens demo inspect report deepen convert test test-full bench
else_exp := a data set is chosen with args="data=NAME", and a run knows its experiment
else_run := training goes on with make train args="resume=DIR", runs are compared with make report runs=DIR
else_runs := one run is sampled, evaluated or looked into with run=DIR
else_seeds := one run has one seed, args="seed=N"
else_jobs := one job runs at a time
else_peer := it is the checkout of an official repository that the benchmarks race against
else_args := this target has no arguments

VENV := .venv
STAMP := $(VENV)/.stamp
PY := $(VENV)/bin/python
# $(value ...): what stands in a shell's ${...} or $... is the shell's, not make's.
ARGS = $(value args)

# A run that is resumed knows its experiment.
EXP = $(if $(and $(filter file,$(origin exp)),$(findstring resume=,$(ARGS))),,exp=$(exp))

# Whether a variable was typed after `make`.
typed = $(filter command,$(firstword $(origin $1)))
GOALS := $(or $(MAKECMDGOALS),help)
$(foreach name,exp run runs seeds jobs peer args,$(if $(call typed,$(name)),$(if $(filter $(takes_$(name)),$(GOALS)),,\
  $(error make $(GOALS) takes no $(name)=: it goes with $(takes_$(name)); $(else_$(name))))))
# The keys of the configuration are written in small letters, the variables of make and of the environment are not.
small := a b c d e f g h i j k l m n o p q r s t u v w x y z + ~
keys := $(filter-out exp run runs seeds jobs peer args,$(filter $(addsuffix %,$(small)),$(.VARIABLES)))
$(foreach name,$(keys),$(if $(call typed,$(name)),\
  $(error make knows no $(name)=: a key of the configuration goes into args="$(name)=$(value $(name))")))

.PHONY: help setup prepare preview encode stats plan train sweep sample evaluate lens demo inspect report deepen convert test test-full lint docs bench clean

help: ## list the targets
	@awk 'BEGIN { FS = ": .*## " } /^[a-z-]+:.*## / { sub(/:.*/, "", $$1); printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: exp=EXPERIMENT (digits_gated), args="KEY=VALUE ...", run=DIR, runs=DIR-OR-GLOB, seeds=N, jobs=N, peer=DIR,'
	@echo '  PYTHON=, TORCH='

setup: $(STAMP) ## make .venv/ and install the project into it
	@echo "$(VENV)/ is ready. A first run, two minutes on a CPU: make train"
	@echo "Without make: source $(VENV)/bin/activate, then neural-rdm train exp=digits_gated; neural-rdm lists the commands"

prepare: $(STAMP) ## check a data set: args="data=ucf101 data.root=DIR"
	$(PY) -m neural_rdm.prepare $(ARGS)

preview: $(STAMP) ## look at a data set as training sees it: args="data=coco data.root=DIR"
	$(PY) -m neural_rdm.preview $(ARGS)

encode: $(STAMP) ## latents made once, as exp= trains on them: exp=dit_xl_gated args="data.root=DIR"
	$(PY) -m neural_rdm.encode $(if $(call typed,exp),exp=$(exp) )$(ARGS)

stats: $(STAMP) ## statistics of real samples for evaluate: args="data=imagenet data.root=DIR"
	$(PY) -m neural_rdm.stats $(ARGS)

plan: $(STAMP) ## the memory that training exp= would take: exp=dit_xl_gated args="devices=1,8 memory=80"
	$(PY) -m neural_rdm.plan exp=$(exp) $(ARGS)

train: $(STAMP) ## train exp= (digits_gated: two minutes on a CPU); more in args="..."
	$(PY) -m neural_rdm.train $(EXP) $(ARGS)

sweep: $(STAMP) ## a run for each job of a study, or of lists of values (args="residual=gated,resnet"), then their comparison
	$(PY) -m neural_rdm.sweep exp=$(exp) $(if $(seeds),seeds='$(value seeds)' )$(if $(jobs),jobs='$(value jobs)' )$(ARGS)

sample: $(STAMP) ## samples from run=DIR (run=last: the newest)
	$(PY) -m neural_rdm.sample $(if $(run),run='$(value run)' )$(ARGS)

evaluate: $(STAMP) ## measure run=DIR, or args="samples=FILE.npz metric=images metric.reference=FILE"
	$(PY) -m neural_rdm.evaluate $(if $(run),run='$(value run)' )$(ARGS)

lens: $(STAMP) ## what run=DIR would predict if it stopped at each of its units
	$(PY) -m neural_rdm.lens $(if $(run),run='$(value run)' )$(ARGS)

inspect: $(STAMP) ## a network of diffusers, unit by unit: args="model=FOLDER images=PICTURES"
	$(PY) -m neural_rdm.inspect $(ARGS)

demo: $(STAMP) ## a page to play with run=DIR (run=last: the newest), for browsers of this machine
	$(PY) -m neural_rdm.demo $(if $(run),run='$(value run)' )$(ARGS)

report: $(STAMP) ## the comparison of runs=DIR, or of a glob
	$(PY) -m neural_rdm.report $(if $(runs),runs='$(value runs)' )$(ARGS)

deepen: $(STAMP) ## run=DIR made deeper, its output the same: args="depth=56"
	$(PY) -m neural_rdm.deepen $(if $(run),checkpoint='$(value run)' )$(ARGS)

convert: $(STAMP) ## run=DIR in the layouts of the official code or of diffusers: args="to=diffusers"
	$(PY) -m neural_rdm.convert $(if $(run),run='$(value run)' )$(ARGS)

test: $(STAMP) ## the tests
	$(PY) -m pytest -n 2 --dist loadfile --max-worker-restart 1 -m "not full" $(ARGS)

test-full: $(STAMP) ## the tests with their full bounds
	$(PY) -m pytest -n 2 --dist loadfile --max-worker-restart 1 -o faulthandler_timeout=3600 $(ARGS)

lint: $(STAMP) ## style, formatting and types
	$(VENV)/bin/ruff check src tests benchmarks examples
	$(VENV)/bin/ruff format --check src tests benchmarks examples
	$(VENV)/bin/mypy

docs: $(STAMP) ## the pages of docs/ as a site in build/site/
	$(VENV)/bin/mkdocs build --strict --quiet
	@echo "wrote build/site/index.html"

bench: $(STAMP) ## the benchmarks; results go to benchmarks/results/; peer=DIR races an official repository
	$(PY) -m benchmarks $(if $(peer),peer='$(value peer)' )$(ARGS)

clean: ## remove caches and build leftovers; outputs/, data/ and .venv/ stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A newer pip counts bytes for whoever asks (raw): of large files every tenth part is shown.
# The stamp is written last: after an interrupted installation the next call goes on where it stopped.
$(STAMP): pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo "making $(VENV)/ with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH) and the project into $(VENV)/ (the first time this takes minutes)"
	@bar=$$($(PY) -m pip install --help 2>/dev/null | grep -q 'off, raw' && echo --progress-bar=raw || true); \
	set -o pipefail; $(PY) -m pip install --disable-pip-version-check "$(TORCH)" -e ".[dev]" $$bar \
	  | awk '/^ *(Collecting|Downloading|Building|Installing|Successfully)/ { print substr($$0, 1, 100); shown = 0 } \
	    /^Progress / && $$4 > 5e7 && $$2 / $$4 >= shown + 0.1 { \
	      shown = $$2 / $$4; printf "    %d %% of %d MB\n", 100 * shown, $$4 / 1e6 } { fflush() }'
	@$(PY) -c "from neural_rdm.core import shims; shims.make_permanent()"
	@touch $@
