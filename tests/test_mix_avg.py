import collections
import concurrent.futures

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from small_models import to_numpy
from tolerances import assert_close

from keras_mixavg import MixAvg


def drawn(layer, batch_size):
    return keras.ops.convert_to_numpy(layer.draw(batch_size))


def unique_batch(batch_size):
    """Every sample has its own image, label and weight, which identify it."""
    numbers = np.arange(batch_size, dtype="float32")
    images = np.stack([numbers, 100 - numbers], axis=1)
    return images, np.eye(batch_size, dtype="float32"), 2 + numbers


# --- Pairing: equation (1), and the rate of equation (2) -----------------------------


@pytest.mark.parametrize("batch_size", [2, 3, 7, 128])
def test_over_many_draws_nobody_meets_itself_and_everyone_is_partner_once(batch_size):
    layer = MixAvg(rate=1.0, seed=1)
    for _ in range(40):
        partners = drawn(layer, batch_size)
        assert not np.any(partners == np.arange(batch_size))
        np.testing.assert_array_equal(np.sort(partners), np.arange(batch_size))


def test_a_pairing_is_one_circle():
    partners = drawn(MixAvg(rate=1.0, seed=1), 128)
    visited, sample = [], 0
    for _ in range(128):
        visited.append(sample)
        sample = partners[sample]
    assert sample == 0 and len(set(visited)) == 128


def test_all_cyclic_orders_of_four_are_about_equally_often():
    layer = MixAvg(rate=1.0, seed=1)
    counts = collections.Counter(tuple(drawn(layer, 4)) for _ in range(240))
    assert len(counts) == 6  # (4 - 1)!
    chi_square = sum((count - 40) ** 2 / 40 for count in counts.values())
    assert chi_square < 20.5  # five degrees of freedom, p = 0.001


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_averaged_share_is_the_rate_within_binomial_bounds(rate):
    layer = MixAvg(rate=rate, seed=1)
    draws = 20 * 640
    averaged = sum(np.sum(drawn(layer, 640) != np.arange(640)) for _ in range(20))
    assert abs(averaged - draws * rate) <= 4 * np.sqrt(draws * rate * (1 - rate))


def test_each_sample_is_averaged_or_not_on_its_own():
    layer = MixAvg(rate=0.5, seed=1)
    first, second = np.array([drawn(layer, 2) != [0, 1] for _ in range(200)]).T
    for one in (True, False):
        for other in (True, False):
            share = np.mean((first == one) & (second == other))
            assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 200)


def test_images_labels_and_weights_share_one_pairing():
    images, labels, weights = unique_batch(32)
    x, y, w = to_numpy(MixAvg(rate=0.5, seed=1)(images, labels, weights))
    for i in range(32):
        members = np.flatnonzero(y[i])
        assert i in members and 1 <= len(members) <= 2
        np.testing.assert_allclose(y[i, members], 1 / len(members))
        np.testing.assert_allclose(x[i], images[members].mean(axis=0))
        np.testing.assert_allclose(w[i], weights[members].mean())
    sizes = (y > 0).sum(axis=1)
    assert {1, 2} == set(sizes)


# --- Application: equations (2) and (3), for a pairing passed in ---------------------

PARTNERS = np.array([2, 0, 1, 3, 5, 4])  # a circle of three, one alone, a pair
LABELS = reference.one_hot([0, 1, 2, 3, 0, 1], 4).astype("float32")
IMAGES = np.zeros((6, 4, 4, 3), "float32")
NUMBERS = np.array([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 3), (6, 4, 4, 3), (6, 2, 4, 4, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_float_inputs_keep_their_dtype_and_are_averaged_exactly(rng, dtype, shape):
    x = tf.cast(rng.normal(size=shape), dtype).numpy()
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only when asked")
    mixed, _ = MixAvg().apply((x, LABELS), PARTNERS)
    assert keras.backend.standardize_dtype(mixed.dtype) == dtype
    if dtype == "bfloat16":
        mixed = keras.ops.cast(mixed, "float32")
    mixed, expected = to_numpy(mixed), reference.averaged(x, PARTNERS)
    assert_close(mixed, expected, dtype)
    np.testing.assert_array_equal(mixed[3], x[3].astype(mixed.dtype))


def test_the_largest_float16_values_do_not_overflow():
    x = np.full((6, 2), 65504, "float16")
    mixed, _ = to_numpy(MixAvg().apply((x, LABELS), PARTNERS))
    np.testing.assert_array_equal(mixed, x)


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 4, 3)])
def test_uint8_stays_uint8_within_half_a_level(rng, shape):
    x = rng.integers(0, 256, size=shape, dtype="uint8")
    x[:2] = 255
    mixed, _ = to_numpy(MixAvg().apply((x, LABELS), PARTNERS))
    assert mixed.dtype == "uint8"
    error = mixed.astype("float64") - reference.averaged(x, PARTNERS)
    assert np.abs(error).max() <= 0.5
    np.testing.assert_array_equal(mixed[3], x[3])


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint16", "bool"])
def test_other_integers_become_float32(rng, dtype):
    x = rng.integers(0, 2, size=(6, 4, 4, 3)).astype(dtype)
    for partners in (PARTNERS, None):
        mixed, _ = to_numpy(MixAvg().apply((x, LABELS), partners))
        assert mixed.dtype == "float32"
        expected = reference.averaged(x, partners if partners is not None else range(6))
        np.testing.assert_array_equal(mixed, expected)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32", "float16"])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_class_numbers_become_averaged_one_hot_labels(shape, dtype):
    y = np.array([0, 1, 2, 3, 0, 1], dtype).reshape(shape)
    _, mixed = to_numpy(MixAvg(num_classes=4).apply((LABELS, y), PARTNERS))
    assert mixed.dtype == "float32"
    expected = reference.averaged(reference.one_hot(y, 4), PARTNERS)
    np.testing.assert_array_equal(mixed, expected)


@pytest.mark.parametrize("kind", ["one-hot", "soft", "multi-label", "one column"])
@pytest.mark.parametrize("num_classes", [None, "given"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bool"])
def test_encoded_labels_are_averaged_and_never_below_float32(
    rng, kind, num_classes, dtype
):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only when asked")
    y = {
        "one-hot": LABELS,
        "soft": rng.dirichlet(np.ones(4), size=6),
        "multi-label": rng.integers(0, 2, size=(6, 4)),
        "one column": 3 * rng.uniform(size=(6, 1)),
    }[kind]
    y = y.astype(dtype)
    if num_classes:
        num_classes = y.shape[1]
    elif kind == "one column":
        pytest.skip("refused, since it may be class numbers")
    layer = MixAvg(num_classes=num_classes)
    _, mixed = to_numpy(layer.apply((LABELS, y), PARTNERS))
    assert mixed.dtype == ("float64" if dtype == "float64" else "float32")
    assert_close(mixed, reference.averaged(y, PARTNERS))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_sample_weights_are_averaged_likewise(rng, shape, dtype):
    w = rng.integers(0, 9, size=shape).astype(dtype)
    for batch in ((LABELS, LABELS, w), {"images": LABELS, "labels": LABELS}):
        if isinstance(batch, dict):
            batch["sample_weights"] = w
        mixed = to_numpy(MixAvg().apply(batch, PARTNERS))
        mixed = mixed["sample_weights"] if isinstance(batch, dict) else mixed[2]
        assert mixed.dtype == "float32"
        np.testing.assert_array_equal(mixed, reference.averaged(w, PARTNERS))


def test_dicts_keep_their_other_keys_untouched():
    extra = {"id": np.arange(6, dtype="int16"), "name": np.array(list("abcdef"))}
    batch = {"images": LABELS, "labels": LABELS, "targets": 2 * LABELS, **extra}
    before = {key: value.copy() for key, value in batch.items()}
    mixed = MixAvg().apply(batch, PARTNERS)
    assert list(mixed) == list(batch)
    assert mixed["id"] is batch["id"] and mixed["name"] is batch["name"]
    expected = reference.averaged(LABELS, PARTNERS)
    for key, factor in (("images", 1), ("labels", 1), ("targets", 2)):
        np.testing.assert_array_equal(to_numpy(mixed[key]), factor * expected)
    for key, value in before.items():
        np.testing.assert_array_equal(batch[key], value)


Batch = collections.namedtuple("Batch", ["image", "label"])


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: Batch(x, y),
        lambda x, y: collections.OrderedDict(labels=y, images=x),
        lambda x, y: ({"left": x, "right": (x, x)}, {"first": y, "second": [y]}),
        lambda x, y: {"images": {"left": x, "right": x}, "labels": y},
        lambda x, y: (x, y, None),
    ],
)
def test_the_structure_comes_out_as_it_went_in(make):
    batch = make(LABELS, LABELS)
    mixed = MixAvg().apply(batch, PARTNERS)
    assert type(mixed) is type(batch)
    keras.tree.assert_same_structure(mixed, batch)
    expected = reference.averaged(LABELS, PARTNERS)
    for leaf in keras.tree.flatten(mixed):
        if leaf is not None:
            np.testing.assert_array_equal(to_numpy(leaf), expected)


def test_the_input_arrays_are_never_changed(rng):
    batch = (rng.normal(size=(6, 3)).astype("float32"), LABELS.copy(), np.ones(6))
    before = [array.copy() for array in batch]
    MixAvg(rate=1.0)(batch)
    for array, copy in zip(batch, before, strict=True):
        np.testing.assert_array_equal(array, copy)


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
    x = rng.normal(size=(samples, 3)).astype("float32")
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
@pytest.mark.parametrize(
    "name, first",
    [("RandomFlip", "theirs"), ("RandomFlip", "ours"), ("RandAugment", "theirs")],
)
def test_it_works_beside_keras_cv_layers_in_one_map(rng, name, first):
    """Averages of flips and flips of averages; the ids do not change."""
    keras_cv = pytest.importorskip("keras_cv")
    arguments = {"value_range": (0, 255)} if name == "RandAugment" else {"seed": 1}
    theirs = getattr(keras_cv.layers, name)(**arguments)
    ours = MixAvg(rate=1.0, num_classes=4, seed=1)
    layers = [theirs, ours] if first == "theirs" else [ours, theirs]
    numbers = rng.integers(0, 4, size=8)
    flat = rng.integers(0, 255, size=(8, 1, 1, 3))  # flips do not show: colours do
    batch = {
        "images": np.broadcast_to(flat, (8, 6, 6, 3)).astype("float32"),
        # KerasCV's RandAugment itself takes no integer labels.
        "labels": np.eye(4, dtype="float32")[numbers],
    }
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(8)
    dataset = dataset.map(lambda b: layers[1](layers[0](b)))
    (result,) = batches_of(dataset)
    assert result["images"].shape == (8, 6, 6, 3)
    labels = result["labels"]
    assert labels.dtype == "float32"
    np.testing.assert_allclose(labels.sum(axis=0), batch["labels"].sum(axis=0))
    if name == "RandomFlip":  # every image is the average of two flat ones
        for image, label in zip(result["images"], labels, strict=True):
            pairs = [
                (i, j)
                for i in range(8)
                for j in range(i)
                if np.allclose(image, (flat[i] + flat[j]) / 2)
                and np.allclose(label, (np.eye(4)[numbers[[i, j]]]).mean(axis=0))
            ]
            assert pairs


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


# --- Several heads --------------------------------------------------------------------

HEADS = {
    "root": np.array([0, 1, 2, 3, 0, 1]),
    "vowel": np.array([[0], [1], [0], [1], [0], [1]]),
    "age": np.array([[30], [41], [52], [63], [20], [17]]),
}
CLASSES = {"root": 4, "vowel": 2, "age": None}


def assert_heads(mixed):
    for head, classes in CLASSES.items():
        y = HEADS[head] if classes is None else reference.one_hot(HEADS[head], classes)
        np.testing.assert_array_equal(mixed[head], reference.averaged(y, PARTNERS))
        assert mixed[head].dtype == "float32"


def test_each_head_has_its_own_number_of_classes():
    layer = MixAvg(num_classes=CLASSES)
    _, mixed = layer.apply((LABELS, HEADS), PARTNERS)
    assert_heads(mixed)
    mixed = layer.apply({"images": LABELS, "labels": HEADS}, PARTNERS)
    assert_heads(mixed["labels"])


def test_heads_may_be_a_list_or_nested():
    layer = MixAvg(num_classes=[4, {"vowel": 2, "age": None}])
    nested = {key: HEADS[key] for key in ("vowel", "age")}
    for labels in ([HEADS["root"], nested], (HEADS["root"], nested)):
        _, (root, rest) = layer.apply((LABELS, labels), PARTNERS)
        assert_heads({"root": root, **rest})


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3), (6, 2, 2)])
@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_a_head_of_none_is_averaged_as_it_is(rng, shape, dtype):
    y = rng.integers(0, 9, size=shape).astype(dtype)
    _, mixed = MixAvg(num_classes={"a": None}).apply((LABELS, {"a": y}), PARTNERS)
    np.testing.assert_array_equal(mixed["a"], reference.averaged(y, PARTNERS))


def test_heads_in_a_dataset_and_its_map():
    data = tf.data.Dataset.from_tensors((LABELS, HEADS))
    layer = MixAvg(rate=0.0, num_classes=CLASSES)
    for mapped in (data.map(layer), data.apply(layer)):
        ((_, mixed),) = batches_of(mapped)
        for head, classes in CLASSES.items():
            own = HEADS[head]
            own = own if classes is None else reference.one_hot(own, classes)
            np.testing.assert_array_equal(mixed[head], own)


@pytest.mark.parametrize(
    "labels, num_classes, message",
    [
        (HEADS, 70, r"`y` has 3 heads.*num_classes=70 for all.*\{\"first\": 70"),
        (HEADS, {"root": 4}, r"keys of `num_classes`, \['root'\].*heads \['age', 'ro"),
        (
            NUMBERS,
            {"root": 4},
            r"must be a dict with the keys.*ndarray of shape \(6,\)",
        ),
        (HEADS, [4, 2, None], "must be a tuple or list of 3 heads.*a dict of 3"),
        ([NUMBERS], [4, 2], "must be a tuple or list of 2 heads.*a list of 1"),
        ({"a": {"b": NUMBERS}}, {"a": {"c": 4}}, r"`y\['a'\]` must be a dict"),
        (HEADS, None, "one number for each sample.*in a dict of several heads None"),
    ],
)
def test_heads_that_do_not_fit_are_refused(labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        MixAvg(num_classes=num_classes)(IMAGES, labels)


def test_one_hot_heads_need_no_numbers_of_classes():
    heads = {"first": LABELS, "second": LABELS}
    _, mixed = MixAvg(num_classes=4).apply((LABELS, heads), PARTNERS)
    for head in mixed.values():
        np.testing.assert_array_equal(head, reference.averaged(LABELS, PARTNERS))


# --- Token ids and categories ---------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, shape, nested",
    [
        ("int8", (6,), False),
        ("int16", (6, 1), True),
        ("int32", (6, 9), False),
        ("int64", (6, 3, 9), True),
        ("uint16", (6, 9), True),
    ],
)
def test_inputs_like_token_ids_bring_one_warning(dtype, shape, nested):
    ids = np.ones(shape, dtype)
    x = {"ids": ids, "image": IMAGES} if nested else ids
    layer = MixAvg()
    with pytest.warns(UserWarning, match="token ids.*average embeddings.*one-hot col"):
        layer(x, LABELS)
    layer(x, LABELS)  # an error here, where every warning is one
    with pytest.warns(UserWarning, match="cast them to float32"):
        tf.data.Dataset.from_tensors((x, LABELS)).apply(MixAvg())


@pytest.mark.parametrize(
    "dtype", ["uint8", "bool", "float32", "int32", "int16", "uint16"]
)
def test_images_and_quantities_bring_no_warning(dtype):
    MixAvg()(np.ones((6, 4, 4, 3), dtype), LABELS)
    if "16" in dtype:
        MixAvg()(np.ones((6, 4, 4), dtype), LABELS)
    elif dtype != "int32":
        MixAvg()(np.ones((6, 9), dtype), LABELS)


# --- Bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rate": -0.1}, r"`rate` must be a float in \[0, 1\].*rate=-0.1"),
        ({"rate": 1.5}, r"`rate` must be a float in \[0, 1\].*rate=1.5"),
        ({"rate": 10}, r"number of classes is `num_classes`.*rate=10"),
        ({"rate": float("nan")}, "`rate` must be.*rate=nan"),
        ({"rate": "half"}, "`rate` must be.*rate='half'"),
        ({"num_classes": 0}, "`num_classes` must be an integer.*num_classes=0"),
        ({"num_classes": 2.5}, "`num_classes` must be an integer.*num_classes=2.5"),
        ({"num_classes": True}, "`num_classes` must be an integer.*num_classes=True"),
        ({"num_classes": {"a": 0}}, "`num_classes` must be an integer.*num_classes=0"),
        ({"num_classes": [3, "b"]}, "`num_classes` must be an integer.*classes='b'"),
        ({"seed": 0.5}, r"`seed` must be an integer, or None.*seed=0.5"),
        ({"seed": "one"}, "`seed` must be an integer, or None.*seed='one'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MixAvg(**arguments)


BAD_BATCHES = {
    "integers without num_classes": (
        (IMAGES, NUMBERS),
        {},
        r"for each sample, shape \(6,\) .* pass `num_classes` to MixAvg",
    ),
    "a column without num_classes": (
        (IMAGES, NUMBERS[:, None]),
        {},
        r"for each sample, shape \(6, 1\) .* pass `num_classes` to MixAvg",
    ),
    "labels of rank three": (
        (IMAGES, LABELS[:, None]),
        {"num_classes": 4},
        r"must have shape \(batch, num_classes\).*Received: shape \(6, 1, 4\)",
    ),
    "floats without num_classes": (
        (IMAGES, NUMBERS.astype("float32")),
        {},
        r"shape \(6,\) and dtype=float32.* pass `num_classes` to MixAvg",
    ),
    "floats too short to count the classes": (
        (IMAGES, NUMBERS.astype("float16")),
        {"num_classes": 4096},
        "`y` of dtype float16 cannot tell 4096 classes apart. Pass integers",
    ),
    "labels of another width": (
        (IMAGES, LABELS),
        {"num_classes": 7},
        r"num_classes=7\). Received: shape \(6, 4\). Set `num_classes` to 4",
    ),
    "batch axes that differ": (
        (IMAGES, LABELS[:5]),
        {},
        r"one size throughout. Received: `x` of shape \(6, 4, 4, 3\) and `y` of shape "
        r"\(5, 4\)",
    ),
    "weights of another batch": (
        (IMAGES, LABELS, np.ones(3)),
        {},
        r"`x` of shape \(6, 4, 4, 3\) and `w` of shape \(3,\)",
    ),
    "one image, number label": (
        (IMAGES[0], np.int64(3)),
        {"num_classes": 4},
        r"`y` must have a leading batch axis.*call `dataset.batch\(...\)`",
    ),
    "one image, one-hot label": (
        (IMAGES[0], LABELS[0]),
        {},
        r"`y` must have shape \(batch, num_classes\).*Batch the dataset before",
    ),
    "labels at each position": (
        (IMAGES, np.zeros((6, 4, 4, 3))),
        {},
        r"Received: shape \(6, 4, 4, 3\).*at each position, such as masks, are not",
    ),
    "one image in a dict": (
        {"images": IMAGES[0], "labels": NUMBERS},
        {"num_classes": 4},
        r"`images` of shape \(4, 4, 3\) and `labels` of shape \(6,\). Batch the",
    ),
    "no images": ({"labels": LABELS}, {}, r"keys `images` and `labels`.*\['labels'\]"),
    "no labels": ({"images": IMAGES}, {}, r"keys `images` and `labels`.*\['images'\]"),
    "boxes": (
        {"images": IMAGES, "labels": LABELS, "bounding_boxes": np.zeros((6, 2, 4))},
        {},
        "averages images and labels, not bounding_boxes",
    ),
    "masks": (
        {"images": IMAGES, "labels": LABELS, "segmentation_masks": IMAGES},
        {},
        "averages images and labels, not segmentation_masks",
    ),
    "images alone": ((IMAGES,), {}, "Received: tuple of length 1. The labels"),
    "four elements": ((IMAGES,) * 4, {}, "Received: tuple of length 4"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
@pytest.mark.parametrize("way", ["called", "mapped"])
def test_bad_batches_are_refused_with_what_to_do(case, way):
    batch, arguments, message = BAD_BATCHES[case]
    layer = MixAvg(**arguments)
    with pytest.raises(ValueError, match=message):
        if way == "called":
            layer(batch)
        else:
            one = tf.data.Dataset.from_tensors(batch)
            one.map(lambda *b: layer(b if isinstance(batch, tuple) else b[0]))


def test_a_bare_tensor_is_refused():
    with pytest.raises(ValueError, match="must be called on.*so pass both"):
        MixAvg()(IMAGES)
    with pytest.raises(
        ValueError, match="must be called on .*Received: tuple of length 0"
    ):
        MixAvg()()


@pytest.mark.parametrize(
    "wrong, shape", [(-1, (6,)), (4, (6, 1)), (300, (6,)), (0.5, (6, 1))]
)
def test_labels_outside_the_classes_are_refused(wrong, shape):
    y = np.array([0, 1, wrong, 3, 0, 1]).reshape(shape)
    message = r"whole numbers in \[0, num_classes\) = \[0, 4\).*largest label plus"
    with pytest.raises(ValueError, match=rf"{message}.*labels=\[{wrong}.*\]"):
        MixAvg(num_classes=4)(IMAGES, y)
    # In a compiled map the values are known at run time only.
    dataset = tf.data.Dataset.from_tensors((IMAGES, y)).map(MixAvg(num_classes=4))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(dataset)


@pytest.mark.parametrize(
    "batch, message",
    [
        (
            lambda: (tf.ragged.constant([[1.0], [2.0, 3.0]]), np.eye(2)),
            "`x` must be a dense tensor. Received: a RaggedTensor",
        ),
        (
            lambda: (np.eye(2), tf.sparse.from_dense(np.eye(2))),
            "`y` must be a dense tensor. Received: a SparseTensor",
        ),
        (
            lambda: (tf.constant([["a"], ["b"]]), np.eye(2)),
            "`x` must be numbers. Received: dtype=string",
        ),
        (
            lambda: (np.array([["a"], ["b"]]), np.eye(2)),
            "`x` must be numbers. Received: dtype=str",
        ),
        (
            lambda: {"images": np.eye(2), "labels": tf.constant(["a", "b"])},
            "`labels` must be numbers. Received: dtype=string",
        ),
    ],
)
def test_strings_ragged_and_sparse_tensors_are_refused(batch, message):
    with pytest.raises(TypeError, match=message):
        MixAvg()(batch())
    with pytest.raises(TypeError, match=message.replace("=str$", "=string")):
        tf.data.Dataset.from_tensors(batch()).map(MixAvg())


class Frame:
    """Like a DataFrame: a shape, no dtype, and a long `repr`."""

    shape = (6, 2)

    def __repr__(self):
        return "\n".join(["1.0   2.0"] * 1000)


LONG = list(range(100_000))


@pytest.mark.parametrize(
    "batch, message",
    [
        ((IMAGES, LONG), r"`y` must be .*a list of 100000, with int \(0\)"),
        ((LONG, NUMBERS), r"`x` must be .*a list of 100000, with int \(0\)"),
        ((Frame(), NUMBERS), r"`x` must be .*a Frame of shape \(6, 2\)\. Convert"),
        ((IMAGES, Frame()), r"`y` must be .*a Frame of shape \(6, 2\)\. Convert"),
        ((IMAGES, NUMBERS, LONG), "`w` must be .*a list of 100000"),
        (({"a": Frame(), "b": IMAGES}, NUMBERS), "`x` .*a dict of 2, with Frame"),
        ({"images": "x" * 9999, "labels": NUMBERS}, "`images` must be .*str"),
        (LONG, "Received: list of length 100000"),
        ({f"column {i}": IMAGES for i in range(9999)}, "keys `images` and `labels`"),
        (Frame(), "must be called on.*Received: Frame"),
    ],
)
def test_what_is_no_array_is_refused_in_few_words(batch, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        MixAvg(num_classes=4)(batch)
    assert len(str(error.value)) < 400


def test_class_numbers_out_of_range_do_not_print_the_batch():
    with pytest.raises(ValueError, match="whole numbers in") as error:
        MixAvg(num_classes=4)(np.zeros((999, 5)), np.arange(999))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("arguments", [{"rate": LONG}, {"num_classes": "x" * 9999}])
def test_messages_about_arguments_are_short(arguments):
    with pytest.raises(ValueError, match="must be") as error:
        MixAvg(**arguments)
    assert len(str(error.value)) < 400


def test_unknown_ranks_are_refused():
    dataset = tf.data.Dataset.from_tensors((IMAGES, LABELS)).map(
        lambda x, y: (tf.numpy_function(lambda x: x, [x], "float32"), y)
    )
    with pytest.raises(ValueError, match="`x` must have a known number of axes"):
        dataset.map(MixAvg())
