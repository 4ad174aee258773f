# Each target works on a machine that has only git, make and python3 (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin
# Python itself compiles the files that are imported, a few of those that are installed.
INSTALL := pip install --quiet --no-compile
export TF_CPP_MIN_LOG_LEVEL ?= 3

# `pip install torch` brings CUDA. Any torch will do: make test-all TORCH=torch
TORCH ?= torch==2.13.0
# Two processes at a time, each one's output in one piece where make can do that.
JOBS ?= 2
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# What neither the backend nor a version changes runs once, in `make test`: these files,
# and the tests that are marked so. The others run on every backend in `make test-all`.
# A core of them runs on JAX and torch in `make ci` too, and with the oldest versions: what
# is most likely to notice a change in Keras or in a backend.
ONCE := ablations benchmarks docs examples examples_scores examples_training fuzz \
	image_folder plotting programs resumed_data tiny_imagenet xla
CORE := callbacks contract datasets distribution keras_conventions losses saving training
CORE_FILES := $(CORE:%=tests/test_%.py)
NOT_ONCE := $(ONCE:%=--ignore=tests/test_%.py)
ON_BACKENDS := $(NOT_ONCE)
OLDEST := $(shell grep -oE '"(keras|tensorflow)>=[^"]+"' pyproject.toml | sed 's/>/=/')

# Suites that run at once wait until torch and JAX are installed too; lint and site do not.
ENV := .venv/installed
AT_ONCE = $(MAKE) --jobs=$(JOBS) $(SYNC) ENV=.venv/backends
SUITES := test-others test-once test-core test-jax test-torch

.PHONY: demo test test-all ci lint site $(SUITES) test-oldest fuzz figures package

demo: .venv/installed  ## train three ways on wrong labels, two minutes; see runs/quickstart
	$(BIN)/python examples/quickstart.py

test: lint test-core test-others test-once  ## lint, types and all tests, on TensorFlow

test-all:  ## all on every backend, and with the oldest versions
	+$(AT_ONCE) test-oldest $(SUITES) lint

ci:  ## all on TensorFlow, the core on JAX and torch, package, site: .ci/run
	+$(AT_ONCE) ON_BACKENDS="$(CORE_FILES)" $(SUITES) lint site package

test-once: $(ENV)
	$(BIN)/python -m pytest $(ONCE:%=tests/test_%.py)

test-core: $(ENV)
	$(BIN)/python -m pytest $(CORE_FILES)

test-others: $(ENV)
	$(BIN)/python -m pytest $(NOT_ONCE) $(CORE_FILES:%=--ignore=%)

test-jax test-torch: test-%: .venv/backends
	KERAS_BACKEND=$* $(BIN)/python -m pytest -m "not once and not one_backend" $(ON_BACKENDS)

test-oldest: .venv-oldest/installed  ## TensorFlow tests with the oldest versions admitted
	.venv-oldest/bin/python -m pytest -m "not once" $(CORE_FILES)

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

package: $(ENV)  ## build sdist and wheel into dist/, and try the wheel
	rm -rf dist .venv/wheel
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m $(INSTALL) --no-deps --target .venv/wheel dist/*.whl
	PYTHONPATH=.venv/wheel $(BIN)/python tests/wheel.py

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "keras_mixavg needs Python 3.10 or newer. Set one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m $(INSTALL) --upgrade pip  # old ones search for hours
	$(BIN)/python -m $(INSTALL) --editable ".[dev]"
	@touch $@

.venv/backends: .venv/installed
	$(BIN)/python -m $(INSTALL) $(TORCH)
	$(BIN)/python -m $(INSTALL) jax grain
	@touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m $(INSTALL) --upgrade pip
	.venv-oldest/bin/python -m $(INSTALL) $(OLDEST) "pytest>=8" hypothesis scikit-learn
	.venv-oldest/bin/python -m $(INSTALL) --no-deps --editable .
	@touch $@
