# Each target works on a machine that has only git, make and python3 (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test lint docs

demo: .venv/installed  ## train on real images three ways, one minute; see runs/quickstart
	$(BIN)/python examples/quickstart.py

test: lint  ## lint, types and all tests
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/installed  ## draw the pictures and make the figures of README.md anew
	$(BIN)/python examples/quickstart.py --runs 5 --out benchmarks/results/quickstart

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "keras_mixavg needs Python 3.10 or newer. Set one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip  # old ones search for hours
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@
