# Two commands matter: `make book` (run what is stale, build the book) and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
PROFILE ?= laptop
# Notebooks at once, one core each; a GPU is filled by one.
JOBS ?= $(if $(filter gpu-%,$(PROFILE)),1,2)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PALIMPSEST := $(BIN)/palimpsest
# Test files side by side, one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup fetch book html test check lab bench batch contract gpucheck rehearse torture lock clean lint notebooks

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {v.major}.{v.minor}; call make with PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

setup: $(READY) ## make .venv from requirements.lock

fetch: $(READY) ## download and verify the embedded model and texts, once
	$(PALIMPSEST) fetch

book: fetch ## run stale notebooks under PROFILE (default laptop), build the HTML book
	$(PALIMPSEST) run-all --profile $(PROFILE) --jobs $(JOBS)
	$(PALIMPSEST) render --profile $(PROFILE) --jobs 2
	$(PALIMPSEST) book --profile $(PROFILE)

html: $(READY) ## build the book from the records the repository carries; computes nothing
	$(PALIMPSEST) render --profile $(PROFILE) --jobs 2
	$(PALIMPSEST) book --profile $(PROFILE)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint ## the inner loop, a minute and a half: linters, types, fast tests without shape checks
	PALIMPSEST_QUICK=1 $(PYTEST) -q -m "not slow and not model and not nightly"

notebooks: fetch ## every notebook once, at smoke size, against the values that are carried
	$(PALIMPSEST) check-notebooks --jobs 2

test: fetch lint ## everything, about half an hour on two cores
	@mkdir -p build
	$(PYTEST) -m "not nightly" | tee build/pytest.log
	$(MAKE) notebooks
	$(MAKE) html PROFILE=laptop
	@status=0; $(PALIMPSEST) check-book --profile laptop > build/browser.log || status=$$?; \
	cat build/browser.log; \
	echo "pytest:        $$(tail -n 1 build/pytest.log)"; \
	echo "browser check: $$(tail -n 1 build/browser.log)"; \
	test $$status = 0 -o $$status = 3

lab: fetch ## Jupyter Lab with a kernel that sees the package
	$(BIN)/python -m ipykernel install --prefix $(VENV) --name python3 --display-name "Python 3 (Palimpsest)"
	$(BIN)/jupyter lab --config config/jupyter_lab_config.py $$(test "$$(id -u)" != 0 || echo --allow-root) notebooks

contract: $(READY) ## every editor on every family: the record and the README's table, a quarter of an hour
	@mkdir -p build
	status=0; $(PYTEST) -q -m "slow or nightly or not slow" --dist load --junitxml build/contract.xml tests/editors/test_properties.py || status=$$?; \
	$(BIN)/python scripts/contract_table.py build/contract.xml && exit $$status

bench: fetch ## speed and memory against plain twins and the machine, written to results/bench.json
	TQDM_DISABLE=1 $(BIN)/python -m benchmarks

batch: $(READY) ## run what is due of config/batch.yaml: models x seeds x pages; ENGINE=slurm, DRY=1
	$(PALIMPSEST) batch --profile $(or $(ENGINE),node) $(if $(DRY),--dry-run)

gpucheck: fetch ## checks of a machine with a GPU, under eight minutes, to results/gpu_check.json
	PYTHON=$(BIN)/python scripts/gpu_check.sh

rehearse: fetch ## every page of the GPU profiles on tiny models and a stand-in for the GPU, about half an hour
	PYTHONPATH=.:src $(BIN)/python scripts/rehearse.py --out results/rehearsal.json

torture: fetch ## kill commands at random moments on the real model, KILLS times (default 100, over an hour)
	PYTHONPATH=.:src $(BIN)/python scripts/torture.py --kills $(or $(KILLS),100)

lock: $(READY) ## rewrite requirements.lock and environment.yml; UPGRADE=1 takes newer versions
	@if [ -n "$(UPGRADE)" ]; then $(BIN)/python -m pip install --upgrade --upgrade-strategy eager -e '.[dev]'; fi
	$(BIN)/python scripts/lock.py
	touch $(READY)

clean: ## remove what can be made again, but not .venv and the cache of downloads
	rm -rf build book/_pages book/_generated results/*/*.tmp.*
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
