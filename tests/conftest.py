"""Settings and data that several test files share."""

import gc
import importlib
import os
import shutil
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")  # JAX

# JAX compiles each model of each test; many are the same, and none runs for long.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import numpy as np
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

gc.freeze()  # what is imported stays: no collection need go through all of it

TOLERANCES = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
"""Relative error of one rounding or a few, per dtype."""


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def eagerly():
    """TensorFlow without graphs: one costs more than the few steps of a test."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def few_steps(eagerly):
    """Two epochs of three steps in each `fit`: whether code runs, not how well."""
    keras.config.set_max_epochs(2)
    keras.config.set_max_steps_per_epoch(3)
    yield
    keras.config.set_max_steps_per_epoch(None)
    keras.config.set_max_epochs(None)


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """How much of the contract list ran, and on what."""
    passed = sum(
        report.when == "call" and "test_contract.py" in report.nodeid
        for report in terminalreporter.stats.get("passed", [])
    )
    if not passed:
        return
    backend = keras.backend.backend()
    version = importlib.import_module(backend).__version__
    terminalreporter.write_line(
        f"{passed} contract checks passed on {backend} {version}, keras "
        f"{keras.__version__}"
    )
