"""MixAvg in the threads and worker processes of data loaders.

Every sample has its own label, so the labels of a batch identify its pairs.
"""

import concurrent.futures
import copy
import multiprocessing
import pickle
import threading

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf

from keras_mixavg import MixAvg

X, Y = np.arange(8, dtype="float32")[:, None], np.arange(8)
SAMPLES = list(zip(X, Y, strict=True))


def pairs(batch):
    """The averaged labels of a batch, as bytes. Checks the averages first."""
    x, y = (np.asarray(part) for part in batch)
    np.testing.assert_array_equal(y.sum(axis=1), 1)
    np.testing.assert_allclose(x, y @ X)
    return y.tobytes()


def layer(seed=None):
    return MixAvg(num_classes=8, seed=seed)


# --- Calls on arrays ------------------------------------------------------------------


def test_arrays_come_back_as_arrays_of_their_library():
    torch = pytest.importorskip("torch")
    x, y = layer(1)(X, Y)
    assert type(x) is np.ndarray and type(y) is np.ndarray
    x, y = layer(1)(torch.from_numpy(X), torch.from_numpy(Y))
    assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
    assert x.dtype == torch.float32
    pairs((x.cpu(), y.cpu()))  # which checks that they are averages
    x, y = layer(1)(tf.constant(X), tf.constant(Y))
    pairs((x, y))
    if keras.backend.backend() != "tensorflow":
        assert isinstance(x, tf.Tensor) or isinstance(x, type(keras.ops.zeros(1)))


def test_a_seed_repeats_calls_on_arrays_and_every_call_differs():
    one, other = layer(3), layer(3)
    run = [pairs(one(X, Y)) for _ in range(20)]
    assert run == [pairs(other(X, Y)) for _ in range(20)]
    assert len(set(run)) > 15
    assert [pairs(layer()(X, Y)) for _ in range(5)] != run[:5]


@pytest.mark.parametrize("ours", [False, True], ids=["arrays", "backend's tensors"])
def test_no_two_threads_draw_the_same_pairs(ours):
    many = np.arange(64)
    x = many.astype("float32")[:, None]
    if ours:
        x = keras.ops.convert_to_tensor(x)
    one, start = MixAvg(num_classes=64), threading.Barrier(8)

    def call(_):
        start.wait()
        return keras.ops.convert_to_numpy(one(x, many)[1]).tobytes()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(call, range(64)))
    assert len(set(drawn)) == 64


def test_a_generator_of_the_caller_fixes_the_pairs():
    def rng():
        return np.random.default_rng([1, 2, 3])

    one = layer()
    drawn = pairs(one(X, Y, rng=rng()))
    assert pairs(one((X, Y), rng())) == drawn == pairs(one(X, Y, rng()))
    assert pairs(one(X, Y, rng=np.random.default_rng(9))) != drawn
    partners = one.draw(8, rng())
    assert pairs(one.apply((X, Y), partners)) == drawn


def test_a_generator_in_a_graph_is_refused():
    data = tf.data.Dataset.from_tensors((X, Y))
    with pytest.raises(ValueError, match="`rng` draws once, when a graph is made"):
        data.map(lambda *batch: layer()(batch, rng=np.random.default_rng(0)))


@pytest.mark.parametrize(
    "remake", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_in_this_process_draw_as_a_new_layer_does(remake):
    one = MixAvg(0.7, {"a": 8}, seed=3, name="pairs")
    other = remake(one)
    assert other.get_config() == one.get_config()
    first = one(X, {"a": Y})[1]["a"]
    np.testing.assert_array_equal(other(X, {"a": Y})[1]["a"], first)


# --- grain ----------------------------------------------------------------------------


def grain_batches(mixed):
    grain = pytest.importorskip("grain")
    source = grain.MapDataset.source(SAMPLES * 16).seed(5).batch(8)
    return mixed(source).to_iter_dataset()


def test_threads_of_grain_draw_their_own_pairs():
    drawn = [pairs(b) for b in grain_batches(lambda data: data.map(layer()))]
    assert len(set(drawn)) == len(drawn) == 16


def test_random_map_of_grain_repeats_the_run():
    one = layer()
    runs = [
        [pairs(b) for b in grain_batches(lambda data: data.random_map(one))]
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and len(set(runs[0])) == 16


# --- Worker processes -----------------------------------------------------------------

GRAIN = """
import numpy as np
from absl import flags
import grain
from keras_mixavg import MixAvg

class Both:
    def __init__(self):
        self.given, self.own = MixAvg(num_classes=8), MixAvg(num_classes=8, seed=1)
    def __call__(self, batch, rng):
        return self.given(batch, rng)[1], self.own(batch)[1]

def drawn(data):
    return [[labels.tobytes() for labels in each] for each in zip(*data, strict=True)]

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    samples = list(zip(np.arange(8.0)[:, None], np.arange(8), strict=True)) * 8
    data = grain.MapDataset.source(samples).seed(5).batch(8).random_map(Both())
    data = data.to_iter_dataset()
    here, _ = drawn(data)
    given, own = drawn(data.mp_prefetch(grain.MultiprocessingOptions(num_workers=2)))
    assert given == here and len(set(given)) == 8, "random_map"
    assert len(set(own)) == 8, "map"
    print("all differ")
"""

TORCH = """
import multiprocessing, random
import numpy as np, torch
from torch.utils.data import DataLoader, default_collate
from keras_mixavg import MixAvg

SAMPLES = list(zip(torch.arange(8.0)[:, None], torch.arange(8), strict=True)) * 4

class Collate:
    def __init__(self, seed):
        self.mix = MixAvg(num_classes=8, seed=seed)
    def __call__(self, samples):
        return self.mix(default_collate(samples))

def epochs(seed, context, persistent):
    loader = DataLoader(SAMPLES, 8, collate_fn=Collate(seed), num_workers=2,
                        multiprocessing_context=context, persistent_workers=persistent)
    return [y.numpy().tobytes() for _ in range(2) for _, y in loader]

if __name__ == "__main__":
    random.seed(0)  # from which a layer without a seed draws its own
    multiprocessing.set_forkserver_preload(["torch", "keras_mixavg"])
    for case in CASES:
        first, second = (epochs(1, *case) for _ in range(2))
        assert first == second, (case, "a seed repeats the run")
        assert len(set(first)) == 8, (case, "workers and epochs differ")
        other = epochs(None, *case)
        assert len(set(other)) == 8 and set(other) != set(first), (case, "no seed")
    print("all differ")
"""


# In new processes: workers of pytest's own process would be pytest too. They are the
# same whatever the backend here, so each runs once.
ON_JAX = pytest.mark.skipif(keras.backend.backend() != "jax", reason="runs with JAX")
ON_TORCH = pytest.mark.skipif(keras.backend.backend() != "torch", reason="with torch")


@ON_JAX
def test_worker_processes_of_grain_draw_their_own_pairs(tmp_path):
    pytest.importorskip("grain")
    assert "all differ" in processes.run_program(GRAIN, tmp_path, "numpy")


# --- Without TensorFlow ---------------------------------------------------------------

WITHOUT = """
import importlib.machinery, sys
class WithoutTensorFlow(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, *args):
        hidden = name.partition(".")[0] == "tensorflow"
        return None if hidden else super().find_spec(name, *args)
sys.meta_path.remove(importlib.machinery.PathFinder)
sys.meta_path.append(WithoutTensorFlow)
import keras, numpy as np
before = set(sys.modules)  # torch imports matplotlib if it is there
from keras_mixavg import MixAvg
assert "matplotlib" not in set(sys.modules) - before
x, y = np.arange(8.0, dtype="float32")[:, None], np.arange(8)
for batch in ((x, y), (keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y))):
    mixed, labels = MixAvg(1.0, 8, seed=1)(batch)
    mixed, labels = map(keras.ops.convert_to_numpy, (mixed, labels))
    assert ((labels == 0.5).sum(axis=1) == 2).all()
    np.testing.assert_allclose(mixed, labels @ x)
assert not any(name.startswith("tensorflow") for name in sys.modules)
print("averaged")
"""


@ON_JAX
def test_arrays_and_tensors_are_averaged_where_there_is_no_tensorflow(tmp_path):
    """The next test does it on torch."""
    assert "averaged" in processes.run_program(WITHOUT, tmp_path, "jax")


@ON_TORCH
@pytest.mark.parametrize(
    "backend, before, cases",
    [("numpy", "", [("fork", False), ("forkserver", True)])]
    + [("torch", WITHOUT, [("fork", False)])],
    ids=["numpy", "torch, without TensorFlow"],
)
def test_workers_of_a_torch_data_loader_draw_their_own_pairs(
    tmp_path, backend, before, cases
):
    """Forked, or unpickled as with `spawn`, but imported only once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    program = before + TORCH.replace("CASES", repr(cases))
    said = processes.run_program(program, tmp_path, backend)
    assert "all differ" in said and ("averaged" in said or not before)
