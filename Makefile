# Each target works on a machine that has only git, make and python3 (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin
# Python compiles what is imported, a small part of what is installed.
INSTALL := pip install --quiet --no-compile
# A process that has finished its tests takes over some of the others'.
PYTEST := -m pytest -n auto --dist worksteal
export TF_CPP_MIN_LOG_LEVEL ?= 3
unexport PYTHONDONTWRITEBYTECODE  # without bytecode each `import keras` takes 7 s longer

# `pip install torch` brings CUDA. Any torch will do: make test-all TORCH=torch
TORCH ?= torch==2.13.0
OLDEST := $(shell grep -oE '"(keras|tensorflow)>=[^"]+"' pyproject.toml | sed 's/>/=/')

.NOTPARALLEL:  # each target uses all cores
.PHONY: demo test test-all ci lint site test-jax test-torch contract-jax contract-torch \
	test-processors test-oldest fuzz figures package

demo: .venv/installed  ## train three ways on wrong labels, two minutes; see runs/quickstart
	$(BIN)/python examples/quickstart.py

test: .venv/installed  ## all tests, on TensorFlow
	$(BIN)/python $(PYTEST)

# Also on the other backends, as other processors, and with the oldest versions.
test-all: .venv/backends lint test test-jax test-torch test-processors test-oldest

ci: lint test site package contract-jax contract-torch  ## .ci/run

test-jax test-torch: test-%: .venv/backends  ## all that a backend may change
	KERAS_BACKEND=$* $(BIN)/python $(PYTEST) -m "not once and not one_backend"

contract-jax contract-torch: contract-%: .venv/backends  ## what every component promises
	KERAS_BACKEND=$* $(BIN)/python -m pytest tests/test_contract.py tests/test_training.py

test-processors: .venv/backends  ## as processors with fewer instructions or cores
	$(BIN)/python tests/processors.py

test-oldest: .venv-oldest/installed  ## the core, with the oldest versions admitted
	.venv-oldest/bin/python $(PYTEST) -m "core and not once"

fuzz: .venv/installed  ## three fuzz tests, five minutes each; on any KERAS_BACKEND
	FUZZ_SECONDS=300 $(BIN)/python -m pytest tests/test_fuzz.py

lint: .venv/installed  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

figures: .venv/installed  ## update all pictures and tables
	$(BIN)/python benchmarks/accuracy/demo.py
	$(BIN)/python -m benchmarks.report
	PYTHONPATH=. $(BIN)/python docs/_site/photographs.py
	PYTHONPATH=. $(BIN)/python docs/_site/notebooks.py

site: .venv/installed  ## build the documentation into site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: .venv/installed  ## build sdist and wheel into dist/, and try the wheel
	rm -rf dist .venv/wheel
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m $(INSTALL) --no-deps --target .venv/wheel dist/*.whl
	PYTHONPATH=.venv/wheel $(BIN)/python tests/check_wheel.py

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "keras_mixavg needs Python 3.10 or newer. Set one with make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m $(INSTALL) --upgrade pip  # old ones search for hours
	$(BIN)/python -m $(INSTALL) --editable ".[dev]"
	@touch $@

.venv/backends: .venv/installed
	$(BIN)/python -m $(INSTALL) $(TORCH) jax grain
	@touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m $(INSTALL) --upgrade pip
	.venv-oldest/bin/python -m $(INSTALL) $(OLDEST) "pytest>=8" pytest-xdist hypothesis scikit-learn
	.venv-oldest/bin/python -m $(INSTALL) --no-deps --editable .
	@touch $@
