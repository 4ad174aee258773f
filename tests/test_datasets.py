"""MixAvg called on a `tf.data.Dataset`. Every sample has its own label."""

import keras
import numpy as np
import processes
import pytest
import reference
import tensorflow as tf
from tolerances import assert_close

from keras_mixavg import MixAvg, draws

# Called on a dataset, the layer computes with TensorFlow whatever the backend.
pytestmark = [pytest.mark.core, pytest.mark.one_backend]
SAMPLES = 50


def batches(size=16, drop_remainder=False):
    numbers = np.arange(SAMPLES)
    data = tf.data.Dataset.from_tensor_slices((numbers.astype("float32"), numbers))
    return data.batch(size, drop_remainder)


def pairs(dataset):
    """The averaged labels of one epoch, which identify the samples of each pair."""
    return np.concatenate([labels for _, labels in dataset.as_numpy_iterator()])


def make(seed=1, **arguments):
    return MixAvg(num_classes=SAMPLES, seed=seed, **arguments)


def assert_epochs_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_all_differ(epochs):
    assert len({epoch.tobytes() for epoch in epochs}) == len(epochs)


# --- What comes out -------------------------------------------------------------------


@pytest.mark.parametrize("drop_remainder, size", [(True, 16), (False, None)])
def test_structure_shapes_and_length_are_those_of_a_map(drop_remainder, size):
    dataset = batches(drop_remainder=drop_remainder).apply(make())
    assert isinstance(dataset, tf.data.Dataset)
    assert dataset.cardinality() == (3 if drop_remainder else 4)
    x, y = dataset.element_spec
    assert x == tf.TensorSpec((size,), "float32")
    assert y == tf.TensorSpec((size, SAMPLES), "float32")


@pytest.mark.parametrize(
    "dtype, labels, rate",
    [
        ("float32", "numbers", 0.0),
        ("float32", "soft", 0.5),
        ("uint8", "numbers", 0.5),
        ("uint8", "soft", 1.0),
        ("float16", "numbers", 1.0),
        ("float64", "soft", 0.5),
    ],
)
def test_batches_are_averages_of_their_own_pairs(dtype, labels, rate):
    numbers = np.arange(21)
    x = np.random.default_rng(0).integers(0, 256, (21, 3, 2)).astype(dtype)
    one_hot = np.eye(21, dtype="float32")
    batch = {
        "images": {"left": x, "right": x.astype("float32")},
        "labels": numbers if labels == "numbers" else one_hot,
        "sample_weights": one_hot * 2,
        "id": numbers,
    }
    data = tf.data.Dataset.from_tensor_slices(batch).batch(8)
    mixed = list(data.apply(MixAvg(rate, 21, seed=4)).as_numpy_iterator())
    assert [len(b["id"]) for b in mixed] == [8, 8, 5]
    for b in mixed:
        own = b["id"] - b["id"][0]
        pair = [np.flatnonzero(row) - b["id"][0] for row in b["labels"]]
        partners = [
            next((p for p in members if p != i), i)
            for i, members in zip(own, pair, strict=True)
        ]
        assert b["labels"].dtype == "float32" and b["id"].dtype == "int64"
        whole = {key: batch[key][b["id"]] for key in ("sample_weights",)}
        np.testing.assert_array_equal(
            b["labels"], reference.averaged(one_hot[b["id"]], partners)
        )
        np.testing.assert_array_equal(
            b["sample_weights"],
            reference.averaged(whole["sample_weights"], partners),
        )
        expected = reference.averaged(x[b["id"]], partners)
        assert_close(b["images"]["right"], expected)
        left = b["images"]["left"]
        assert left.dtype == dtype
        expected = np.floor(expected + 0.5) if dtype == "uint8" else expected
        np.testing.assert_allclose(left, expected, rtol=1e-3 * (dtype == "float16"))


def test_every_pairing_is_one_circle_and_all_are_about_equally_often():
    """All six cycles of four samples, over 1000 keys: chi-square, p = 0.001."""
    drawn = tf.function(lambda key: draws.from_key(draws.Key(key, 1.0), 4))
    counts: dict = {}
    for number in range(1000):
        partners = tuple(drawn(tf.constant([3, number], "int64")).numpy())
        counts[partners] = counts.get(partners, 0) + 1
    for partners in counts:
        sample, visited = 0, set()
        for _ in range(4):
            visited.add(sample)
            sample = partners[sample]
        assert sample == 0 and len(visited) == 4
    assert len(counts) == 6
    assert sum((n - 1000 / 6) ** 2 / (1000 / 6) for n in counts.values()) < 20.5


@pytest.mark.parametrize("rate", [0.2, 0.9])
def test_the_averaged_share_is_the_rate(rate):
    dataset = batches(25).repeat(100).apply(make(rate=rate))
    averaged = np.sum(pairs(dataset).max(axis=1) < 1)
    total = 100 * SAMPLES
    assert abs(averaged - total * rate) <= 4 * np.sqrt(total * rate * (1 - rate))


def test_without_training_only_the_labels_are_encoded():
    dataset = make(rate=1.0)(batches(), training=False)
    np.testing.assert_array_equal(pairs(dataset), np.eye(SAMPLES))


def test_a_lone_sample_and_an_empty_batch_stay_as_they_are():
    dataset = tf.data.Dataset.from_generator(
        lambda: ((np.full(n, 7.0), np.full(n, 2)) for n in (1, 0, 1)),
        output_signature=(tf.TensorSpec([None]), tf.TensorSpec([None], "int64")),
    )
    sizes = []
    for x, y in dataset.apply(make(rate=1.0)):
        np.testing.assert_array_equal(x, np.full(len(x), 7.0))
        np.testing.assert_array_equal(y, np.eye(SAMPLES)[np.full(len(x), 2)])
        sizes.append(len(x))
    assert sizes == [1, 0, 1]


def test_unbatched_and_bad_datasets_are_refused_when_they_are_built():
    unbatched = batches().unbatch()
    with pytest.raises(ValueError, match=r"leading batch axis.*`dataset.batch\(...\)`"):
        unbatched.apply(make())
    with pytest.raises(ValueError, match="pass `num_classes` to MixAvg"):
        batches().apply(MixAvg())
    with pytest.raises(ValueError, match="`rng` is for a single batch"):
        make()(batches(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="`epoch` is for a `tf.data.Dataset`"):
        make()(np.zeros(3), np.zeros(3, int), epoch=3)
    for epoch in (3, "3"):
        with pytest.raises(ValueError, match="`epoch` must be a .*CurrentEpoch.*'?3"):
            make()(batches(), epoch=epoch)


def test_class_numbers_out_of_range_are_refused_when_it_runs():
    data = batches().map(lambda x, y: (x, y + 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="largest label plus one"):
        list(data.apply(make()))


# --- What a seed guarantees -----------------------------------------------------------


def test_a_seed_repeats_the_run_and_every_epoch_differs():
    one, other, third = (batches().apply(make(seed)) for seed in (1, 1, 2))
    run = [pairs(one) for _ in range(2)]
    assert_epochs_equal(run, [pairs(other) for _ in range(2)])
    assert_all_differ([*run, pairs(third)])
    within = batches().take(1).repeat(8).apply(make())
    assert_all_differ([y for _, y in within.as_numpy_iterator()])


def test_without_a_seed_runs_and_epochs_differ():
    layer = make(None)
    dataset = batches().apply(layer)
    others = batches().apply(layer), batches().apply(make(None))
    assert_all_differ([pairs(d) for d in (dataset, dataset, *others)])


def test_the_seed_of_keras_repeats_a_run_without_a_seed():
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        dataset = batches().apply(make(None))
        runs.append([pairs(dataset) for _ in range(2)])
    assert_epochs_equal(*runs)


def test_the_pairs_do_not_depend_on_what_runs_in_parallel():
    def run(calls, deterministic):
        options = tf.data.Options()
        options.autotune.enabled = calls != 1
        options.threading.private_threadpool_size = calls
        options.deterministic = deterministic
        data = batches(4).with_options(options).apply(make()).prefetch(2)
        return [sorted(map(bytes, pairs(data))) for _ in range(2)]

    expected = run(1, True)
    assert run(8, True) == expected
    assert run(8, False) == expected  # out of order perhaps, but the same pairs


def test_datasets_of_one_layer_are_alike_and_count_for_themselves():
    layer = make()
    one, other = batches().apply(layer), batches().apply(layer)
    first = pairs(one)
    iterators = [iter(one), iter(other)]  # its second epoch, and the other's first
    drawn = [np.concatenate([y for _, y in iterator]) for iterator in iterators]
    np.testing.assert_array_equal(drawn[1], first)
    assert np.any(drawn[0] != first)


def test_repeat_goes_on_to_the_next_epoch():
    one, other = batches().apply(make()), batches().apply(make())
    repeated = pairs(one.repeat(3)).reshape(3, SAMPLES, SAMPLES)
    assert_epochs_equal(list(repeated), [pairs(other) for _ in range(3)])


# --- Resuming -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told():
    """The pairs of four epochs, each set by a variable."""
    epoch = tf.Variable(0, dtype="int64")
    dataset = make()(batches(), epoch=epoch)
    return [pairs(dataset) for e in range(4) if epoch.assign(e) is not None]


def test_a_variable_says_which_epoch_an_iteration_is(told):
    assert_all_differ(told)
    epoch, short = tf.Variable(0, dtype="int64"), tf.Variable(0, dtype="int32")
    dataset = make()(batches(), epoch=epoch)
    for number in (2, 2, 0):
        epoch.assign(number)
        np.testing.assert_array_equal(pairs(dataset), told[number])
    short.assign(1)
    np.testing.assert_array_equal(pairs(make()(batches(), epoch=short)), told[1])
    without_seed = make(None)(batches(), epoch=epoch)
    assert_all_differ([pairs(without_seed) for _ in range(2)])


@pytest.mark.once
def test_all_epochs_may_be_one_dataset(told):
    layer = make()
    rest = tf.data.Dataset.range(2, 4).flat_map(lambda e: layer(batches(), epoch=e))
    np.testing.assert_array_equal(pairs(rest), np.concatenate(told[2:]))


def test_inside_a_function_the_epoch_must_be_said():
    layer = make()
    with pytest.raises(ValueError, match="same pairs each time.*Pass the epoch"):
        tf.data.Dataset.range(3).flat_map(lambda e: layer(batches()))


@pytest.mark.once
def test_an_iterator_saved_amid_an_epoch_goes_on_with_the_same_pairs(tmp_path):
    def dataset():
        return batches(4).apply(make()).prefetch(1)

    data = dataset()
    pairs(data)  # the first epoch; the second is saved in the middle
    iterator = iter(data)
    for _ in range(3):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(tmp_path / "iterator")
    rest = [y.numpy() for _, y in iterator]
    other = iter(dataset())
    tf.train.Checkpoint(iterator=other).restore(path)
    assert_epochs_equal(rest, [y.numpy() for _, y in other])


def test_the_whole_dataset_can_be_serialized():
    for seed in (1, None):
        dataset = batches().apply(make(seed))
        graph = tf.raw_ops.DatasetToGraphV2(
            input_dataset=tf.data.experimental.to_variant(dataset),
            external_state_policy=2,  # fail
        )
        assert len(graph.numpy()) > 1000


def go_on_in_a_new_process():
    dataset, again = make()(batches(), epoch=tf.constant(2)), batches().apply(make())
    np.save("resumed.npy", [pairs(dataset), pairs(again), pairs(again)])

    tf.config.experimental.enable_op_determinism()

    def two_epochs(calls):
        mapped = batches(2).map(make(), num_parallel_calls=calls)
        return [pairs(mapped) for _ in range(2)]

    first, second = two_epochs(tf.data.AUTOTUNE), two_epochs(None)
    np.testing.assert_array_equal(first, second)
    assert np.any(first[0] != first[1])


@pytest.mark.new_process
@pytest.mark.once
def test_a_new_process_goes_on_pair_for_pair(tmp_path, told):
    """Op determinism, set for a whole process, fixes the pairs of a parallel map."""
    processes.run(go_on_in_a_new_process, folder=tmp_path)
    dataset = batches().apply(make())
    run = [pairs(dataset) for _ in range(2)]
    assert_epochs_equal(list(np.load(tmp_path / "resumed.npy")), [told[2], *run])


# --- A rate that changes --------------------------------------------------------------


def shares(rate, epochs):
    """The share of averaged samples in each of these epochs."""
    epoch = tf.Variable(0)
    dataset = make(rate=rate)(batches(25), epoch=epoch)
    return [
        np.mean(pairs(dataset).max(axis=1) < 1)
        for e in epochs
        if epoch.assign(e) is not None
    ]


def test_the_rate_may_be_a_function_of_any_epoch():
    asked = []

    def rate(epoch):
        asked.append(epoch)
        return 1.0 if epoch % 3 else 0.0

    assert shares(rate, [0, 1, 3, 10_000, 2**31 - 3]) == [0, 1, 0, 1, 1]
    assert asked == [0, 1, 3, 10_000, 2**31 - 3]  # no other is asked


def test_a_schedule_of_keras_may_be_the_rate():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], [1.0, 0.5, 0.0]
    )
    first, second, third = shares(schedule, range(3))
    assert first == 1 and 0.2 < second < 0.8 and third == 0
    copy = MixAvg.from_config(make(rate=schedule).get_config())
    assert copy.rate(0) == 1.0 and copy.rate(2) == 0.0


def test_a_rate_of_the_epoch_is_refused_where_no_epoch_is_known():
    layer = make(rate=lambda epoch: 0.5)
    x, y = np.zeros(3, "float32"), np.arange(3)
    for call in (
        lambda: layer(x, y),
        lambda: batches().map(layer),
        lambda: batches().apply(layer),
    ):
        with pytest.raises(ValueError, match="needs the epoch.*CurrentEpoch()"):
            call()
    np.testing.assert_array_equal(layer(x, y, training=False)[1], np.eye(3, SAMPLES))


@pytest.mark.parametrize(
    "rate, message",
    [
        (lambda epoch: 1.5, r"`rate\(1\)` must be a float.*=1.5"),
        ([0.5].__getitem__, r"any epoch. Received: rate\(1\), which raised IndexError"),
        (lambda epoch: next(iter(())), r"rate\(1\), which raised StopIteration"),
    ],
)
def test_a_rate_that_is_none_is_refused(rate, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        shares(rate, [1])


# --- tf.data service ------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("mode", ["parallel_epochs", "distributed_epoch"])
@pytest.mark.parametrize("place", ["after", "on the workers, without a seed"])
def test_two_workers_of_tf_data_service_do_not_repeat_each_other(mode, place):
    tf.random.set_seed(None)  # or it would be that of all workers
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    config = service.WorkerConfig(dispatcher_address=address)
    workers = [service.WorkerServer(config) for _ in range(2)]
    distribute = service.distribute(mode, dispatcher.target)
    data = batches(10)
    if place == "after":
        data = data.apply(distribute).apply(make(rate=1.0))
    else:
        data = data.apply(make(None, rate=1.0)).apply(distribute)
    copies = 2 if mode == "parallel_epochs" else 1  # each worker does a whole epoch
    drawn = []
    for _ in range(2):
        labels = [y for _, y in data.as_numpy_iterator()]
        np.testing.assert_allclose(sum(y.sum(axis=0) for y in labels), copies)
        drawn += labels
    assert_all_differ([y for y in drawn if len(y) == 10])  # few pairs of three differ
    assert len(workers) == 2
