"""Settings and data that several test files share."""

import gc
import os
import shutil
import sys
import tempfile

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER")  # its name, if pytest-xdist started it


def usable_cores():
    """The cores that this process may use, fewer than all under `taskset`."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Not what keras.json in the user's home says, nor limits of another training.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if not WORKER:
    os.environ["KERAS_HOME"] = tempfile.mkdtemp(prefix="keras")
for name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
    os.environ.pop(name, None)
if sys.platform == "darwin":  # whose GPU has no float64
    os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")  # JAX
if WORKER:  # workers share the cores, and so do the processes that a test starts
    share = usable_cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for name in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "TF_NUM_INTRAOP"):
        os.environ.setdefault(f"{name}_THREADS", str(max(1, share)))

# JAX compiles each model of each test; many are the same, and none runs for long. Its
# files are not written at once, so no two workers may share a folder.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    OWN_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax")
elif WORKER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{WORKER}"


def pytest_unconfigure():
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)
    if not WORKER:
        shutil.rmtree(os.environ["KERAS_HOME"], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """`-n auto`: one more than cores, since tests also wait for files and processes.

    Each takes two gigabytes of memory.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(usable_cores() + 1, 8, memory // 2**31))


def pytest_configure(config):
    """Load Keras, except in a process that only hands out tests to workers."""
    if getattr(config.option, "numprocesses", None) and not WORKER:
        return
    import keras  # noqa: F401
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    if "OPTIMIZE_GRAPHS" not in os.environ:
        # A fifth of all time, more than it saves in the few steps of a test. The
        # processes that tests start optimize their graphs, and so does processors.py.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    gc.freeze()  # what is imported stays: no collection need go through all of it
    gc.disable()  # see below


def pytest_collection_modifyitems(items):
    """Tests that start processes come first: one worker, one forkserver has them."""
    items.sort(key=lambda item: item.get_closest_marker("new_process") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """Collect what a test and its fixtures leave behind, and freeze the rest.

    No later collection then goes through it. An iterator of tf.data that is collected
    late waits for its autotuning thread, whose pauses grow: one collection took 13 s.
    """
    result = yield
    gc.collect()
    gc.freeze()
    return result


@pytest.fixture(autouse=True)
def seeded():
    import keras

    keras.utils.set_random_seed(0)
    yield
    gc.collect()  # while pytest still takes what is closed too late for this test's


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)


@pytest.fixture
def eagerly():
    """TensorFlow without graphs, which cost more than the few steps of a test."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def few_steps(eagerly):
    """Limit each `fit` to two epochs of two steps, to check only that code runs."""
    import keras

    keras.config.set_max_epochs(2)
    keras.config.set_max_steps_per_epoch(2)
    yield
    keras.config.set_max_steps_per_epoch(None)
    keras.config.set_max_epochs(None)


@pytest.fixture
def blank_pictures():
    """Save each figure as one pixel, until the test calls this."""
    from matplotlib import figure
    from small_models import save_one_pixel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure.Figure, "savefig", save_one_pixel)
        yield patch.undo
