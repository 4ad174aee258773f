"""MixAvg as a layer: on arrays, on datasets, and beside other layers."""

import concurrent.futures

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_batches import LABELS, unique_batch
from small_models import to_numpy
from tolerances import assert_close

from keras_mixavg import MixAvg

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32"])
def test_without_training_only_the_labels_are_encoded(rng, dtype):
    x = rng.integers(0, 9, size=(6, 2, 2, 1)).astype(dtype)
    y = np.array([0, 1, 2, 3, 0, 1])
    mixed, labels = to_numpy(MixAvg(num_classes=4)(x, y, training=False))
    assert mixed.dtype == ("uint8" if dtype == "uint8" else "float32")
    np.testing.assert_array_equal(mixed, x)
    np.testing.assert_array_equal(labels, LABELS)


def test_a_lone_sample_stays_as_it_is():
    x, y = to_numpy(MixAvg(rate=1.0, num_classes=4)(np.array([[7.0]]), np.array([2])))
    np.testing.assert_array_equal(x, [[7.0]])
    np.testing.assert_array_equal(y, [[0, 0, 1, 0]])


# --- In tf.data ----------------------------------------------------------------------


def batches_of(dataset):
    return [
        keras.tree.map_structure(np.asarray, b) for b in dataset.as_numpy_iterator()
    ]


@pytest.mark.parametrize("drop_remainder", [True, False])
@pytest.mark.parametrize("samples", [7, 8, 9])  # the last batch: 3, none or a lone one
def test_a_dataset_map_equals_the_direct_calls(rng, samples, drop_remainder):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the random streams of two backends differ")
    x = rng.integers(-99, 99, size=(samples, 3)).astype("float32")
    y = rng.integers(0, 5, size=samples)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4, drop_remainder)
    mapped = batches_of(dataset.map(MixAvg(0.7, 5, seed=1)))
    layer = MixAvg(0.7, 5, seed=1)
    direct = [to_numpy(layer(batch)) for batch in dataset]
    assert len(mapped) == len(direct)
    for one, other in zip(mapped, direct, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("drop_remainder, size", [(True, 4), (False, None)])
def test_static_shapes_and_dtypes_survive_a_map(rng, drop_remainder, size):
    images = rng.integers(0, 9, size=(9, 8, 8, 3), dtype="uint8")
    dataset = tf.data.Dataset.from_tensor_slices((images, np.zeros((9, 1), "int64")))
    x, y = dataset.batch(4, drop_remainder).map(MixAvg(num_classes=5)).element_spec
    assert x == tf.TensorSpec((size, 8, 8, 3), "uint8")
    assert y == tf.TensorSpec((size, 5), "float32")


@pytest.mark.parametrize("way", ["map", "apply"])
def test_a_mapped_batch_is_made_of_its_own_samples(way):
    images, labels, weights = unique_batch(50)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels, weights)).batch(16)
    seen = 0
    for x, y, w in batches_of(getattr(dataset, way)(MixAvg(rate=0.7))):
        members = range(seen, seen + len(x))
        for i, label in enumerate(y):
            pair = np.flatnonzero(label)
            assert seen + i in pair and set(pair) <= set(members)
            np.testing.assert_allclose(x[i], images[pair].mean(axis=0))
            np.testing.assert_allclose(w[i], weights[pair].mean())
        seen += len(x)
    assert seen == 50


def test_a_mapped_dict_keeps_strings_and_integers(rng):
    ids = np.arange(6, dtype="int64")
    batch = {
        "images": rng.normal(size=(6, 2)).astype("float32"),
        "labels": np.array([0, 1, 2, 3, 0, 1]),
        "id": ids,
        "name": [f"sample {i}" for i in ids],
    }
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(6)
    mapped = dataset.map(MixAvg(num_classes=4))
    assert mapped.element_spec["name"].dtype == tf.string
    (result,) = batches_of(mapped)
    np.testing.assert_array_equal(result["id"], ids)
    assert result["id"].dtype == "int64"
    assert result["name"].tolist() == [f"sample {i}".encode() for i in ids]


def test_xla_compiles_it():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.function is TensorFlow's")
    compiled = tf.function(MixAvg(rate=1.0, num_classes=32), jit_compile=True)
    images, _, _ = unique_batch(32)
    labels = np.arange(32)
    for _ in range(2):
        x, y = to_numpy(compiled(images, labels))
        pairs = np.argsort(y)[:, -2:]
        np.testing.assert_array_equal((y == 0.5).sum(axis=1), 2)
        np.testing.assert_allclose(x, images[pairs].mean(axis=1))


def test_it_works_in_a_keras_pipeline(rng):
    pipeline = keras.layers.Pipeline(
        [keras.layers.RandomFlip(seed=1), MixAvg(rate=1.0, num_classes=4, seed=1)]
    )
    batch = {
        "images": rng.uniform(size=(6, 4, 4, 3)).astype("float32"),
        "labels": np.array([0, 1, 2, 3, 0, 1]),
    }
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(6).map(pipeline)
    ((_, labels),) = [(b["images"], b["labels"]) for b in batches_of(dataset)]
    np.testing.assert_array_equal(labels.sum(axis=1), np.ones(6))
    assert np.all((labels == 0.5).sum(axis=1) + 2 * (labels == 1).sum(axis=1) == 2)


def assert_made_of_its_own_samples(batch, samples):
    """Images, labels and weights come from the same one or two of `samples`."""
    images, labels, weights = unique_batch(samples)
    x, y, w = batch
    shares = y.sum(axis=1)
    np.testing.assert_allclose(shares, 1)
    np.testing.assert_array_equal(x, y @ images)
    np.testing.assert_array_equal(w, y @ weights)


def unique_dataset(samples):
    return tf.data.Dataset.from_tensor_slices(unique_batch(samples)).shuffle(samples)


@pytest.mark.once
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("seed", [None, 1])
def test_parallel_maps_never_mix_up_pairs(deterministic, seed):
    dataset = (
        unique_dataset(256)
        .batch(16)
        .map(
            MixAvg(rate=1.0, seed=seed),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=deterministic,
        )
    )
    for _ in range(5):
        batches = batches_of(dataset)
        for batch in batches:
            assert_made_of_its_own_samples(batch, 256)
        total = sum(batch[1].sum(axis=0) for batch in batches)
        np.testing.assert_allclose(total, 1)  # every sample counts once an epoch


def test_two_iterators_and_two_datasets_share_a_layer_without_mixing():
    layer = MixAvg(seed=1)
    one = unique_dataset(64).batch(8).map(layer, num_parallel_calls=2)
    other = unique_dataset(48).batch(6).map(layer, num_parallel_calls=2)
    iterators = [one.as_numpy_iterator() for _ in range(2)]
    iterators.append(other.as_numpy_iterator())
    for batches in zip(*iterators, strict=True):
        for batch, samples in zip(batches, (64, 64, 48), strict=True):
            assert_made_of_its_own_samples(batch, samples)


def test_threads_that_call_one_layer_never_mix_up_pairs():
    layer = MixAvg(seed=1)
    batch = unique_batch(32)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: to_numpy(layer(batch)), range(64)))
    for result in results:
        assert_made_of_its_own_samples(result, 32)


def test_a_seed_fixes_the_pairs_of_a_sequential_map():
    def labels():
        data = tf.data.Dataset.from_tensor_slices(unique_batch(64)).batch(8)
        mapped = data.map(MixAvg(seed=3))
        return [[batch[1] for batch in mapped.as_numpy_iterator()] for _ in range(2)]

    first, second = labels()
    assert not np.array_equal(first, second)  # new pairs each epoch
    np.testing.assert_array_equal(labels(), [first, second])


@pytest.mark.once
@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_it_works_beside_keras_cv_layers_in_one_map(rng, first):
    """Averages of flips and flips of averages; the ids do not change."""
    keras_cv = pytest.importorskip("keras_cv")
    theirs = keras_cv.layers.RandomFlip(seed=1)
    ours = MixAvg(rate=1.0, num_classes=4, seed=1)
    layers = [theirs, ours] if first == "theirs" else [ours, theirs]
    numbers = rng.integers(0, 4, size=8)
    flat = rng.integers(0, 255, size=(8, 1, 1, 3))  # flips do not show: colours do
    batch = {
        "images": np.broadcast_to(flat, (8, 6, 6, 3)).astype("float32"),
        "labels": np.eye(4, dtype="float32")[numbers],
    }
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(8)
    dataset = dataset.map(lambda b: layers[1](layers[0](b)))
    (result,) = batches_of(dataset)
    assert result["images"].shape == (8, 6, 6, 3)
    labels = result["labels"]
    assert labels.dtype == "float32"
    np.testing.assert_allclose(labels.sum(axis=0), batch["labels"].sum(axis=0))
    for image, label in zip(result["images"], labels, strict=True):
        pairs = [
            (i, j)
            for i in range(8)
            for j in range(i)
            if np.allclose(image, (flat[i] + flat[j]) / 2)
            and np.allclose(label, (np.eye(4)[numbers[[i, j]]]).mean(axis=0))
        ]
        assert pairs  # every image is the average of two flat ones


def test_it_works_between_keras_layers_in_one_map(rng):
    images = rng.integers(0, 255, size=(6, 4, 4, 3)).astype("float32")
    before, after = keras.layers.Rescaling(2.0), keras.layers.Rescaling(0.5, offset=1.0)
    layer = MixAvg(rate=1.0, num_classes=6, seed=1)

    def mapped(x, y):
        x, y = layer(before(x), y)
        return after(x), y

    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(6))).batch(6)
    ((x, y),) = batches_of(dataset.map(mapped))
    pairs = np.argsort(y)[:, -2:]
    assert_close(x, images[pairs].mean(axis=1) + 1)


@pytest.mark.parametrize("integer_labels", [True, False])
def test_the_backends_own_tensors_come_back_as_such(integer_labels):
    images, labels, weights = unique_batch(8)
    if integer_labels:
        labels = np.arange(8)
    tensors = [keras.ops.convert_to_tensor(v) for v in (images, labels, weights)]
    layer = MixAvg(rate=1.0, num_classes=8, seed=1)
    result = layer(tuple(tensors))
    assert all(type(r) is type(tensors[0]) for r in result)
    x, y, w = to_numpy(result)
    pairs = np.argsort(y)[:, -2:]
    np.testing.assert_array_equal(x, images[pairs].mean(axis=1))
    np.testing.assert_array_equal(w, weights[pairs].mean(axis=1))


def test_it_works_in_a_grain_map_on_numpy_batches():
    grain = pytest.importorskip("grain")
    images, labels, weights = unique_batch(10)
    samples = list(zip(images, labels, weights, strict=True))
    dataset = grain.MapDataset.source(samples).batch(4)
    dataset = dataset.map(MixAvg(rate=1.0, seed=1))
    sizes = []
    for batch in dataset:
        x, y, w = to_numpy(batch)
        pairs = np.argsort(y)[:, -2:]
        np.testing.assert_array_equal(x, images[pairs].mean(axis=1))
        np.testing.assert_array_equal(w, weights[pairs].mean(axis=1))
        sizes.append(len(x))
    assert sizes == [4, 4, 2]
