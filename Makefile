# Each target works on a machine that has only git, make and python3 (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

# `pip install torch` brings CUDA. Any torch will do: make test-all TORCH=torch
TORCH ?= torch==2.13.0
# Two test processes at a time, each one's output in one piece where make can do that.
JOBS ?= 2
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# What does not depend on the backend or its version runs once, in `make test`: these
# files, and the tests that are marked so.
ONCE := ablations benchmarks docs examples examples_scores examples_training fuzz \
	image_folder plotting programs tiny_imagenet
CORE := -m "not once" $(ONCE:%=--ignore=tests/test_%.py)
OLDEST := $(shell grep -oE '"(keras|tensorflow)>=[^"]+"' pyproject.toml | sed 's/>/=/')

.PHONY: demo test test-all test-tensorflow test-jax test-torch test-oldest fuzz lint \
	figures site package

demo: .venv/installed  ## train three ways on wrong labels, two minutes; see runs/quickstart
	$(BIN)/python examples/quickstart.py

test: lint test-tensorflow  ## lint, types and all tests, on TensorFlow

test-all:  ## on every backend, oldest versions too
	$(MAKE) --jobs=$(JOBS) .venv/backends .venv-oldest/installed
	$(MAKE) lint
	$(MAKE) --jobs=$(JOBS) $(SYNC) test-tensorflow test-jax test-torch test-oldest

test-tensorflow: .venv/installed
	$(BIN)/python -m pytest

test-jax test-torch: test-%: .venv/backends
	KERAS_BACKEND=$* $(BIN)/python -m pytest $(CORE)

test-oldest: .venv-oldest/installed  ## TensorFlow tests with the oldest versions admitted
	.venv-oldest/bin/python -m pytest $(CORE)

fuzz: .venv/installed  ## three fuzz tests, five minutes each; on any KERAS_BACKEND
	FUZZ_SECONDS=300 $(BIN)/python -m pytest tests/test_fuzz.py

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

figures: .venv/installed  ## draw all pictures and write all tables from results anew
	$(BIN)/python examples/quickstart.py --runs 3 --out benchmarks/results/quickstart
	$(BIN)/python -m benchmarks.report
	PYTHONPATH=. $(BIN)/python docs/_site/photographs.py
	PYTHONPATH=. $(BIN)/python docs/_site/notebooks.py

site: .venv/installed  ## build the documentation into site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: .venv/installed  ## build sdist and wheel into dist/, and try the wheel
	rm -rf dist .venv/wheel
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/wheel dist/*.whl
	PYTHONPATH=.venv/wheel $(BIN)/python tests/wheel.py

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "keras_mixavg needs Python 3.10 or newer. Set one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip  # old ones search for hours
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

.venv/backends: .venv/installed
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet jax grain
	@touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --quiet $(OLDEST) "pytest>=8" hypothesis scikit-learn
	.venv-oldest/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@
