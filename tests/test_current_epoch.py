"""The batches of each epoch of `fit`, however it is called. Exact on all backends.

Reading the dataset would prove nothing, since Keras makes extra iterators. So the
metrics of each model record its batches.
"""

import copy
import functools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import two_replicas

from keras_mixavg import CurrentEpoch, MixAvg

SAMPLES, STEPS = 12, 3
# Whole, so that sums are exact in any order.
WEIGHTS = np.random.default_rng(1).integers(1, 2**16, (4, SAMPLES)).astype("float32")
PAGE = Path(__file__).parent.parent / "docs/seeds.md"
BACKEND = keras.backend.backend()

pytestmark = [
    pytest.mark.core,
    pytest.mark.filterwarnings("ignore:.*shuffle=True"),
    pytest.mark.filterwarnings("ignore:.*ran out of data"),
]


def share(labels, predictions):
    """The share of averaged samples."""
    return keras.ops.cast(keras.ops.max(labels, axis=-1) < 0.9, "float32")


def code(labels, predictions):
    """A number that identifies the pairs of a batch."""
    return keras.ops.sum(keras.ops.multiply(labels, WEIGHTS))


def new_model(steps_per_execution=1):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(SAMPLES)])
    model.compile(
        "sgd", "mse", metrics=[share, code], steps_per_execution=steps_per_execution
    )
    return model


model = functools.cache(new_model)
# After a `fit` that fails JAX gives nothing back.
model_that_fails = new_model if BACKEND == "jax" else model


def raw():
    numbers = np.arange(SAMPLES)
    x = np.zeros((SAMPLES, 1), "float32")
    return tf.data.Dataset.from_tensor_slices((x, numbers)).batch(4)


def generated(make):
    return tf.data.Dataset.from_generator(
        lambda: make().as_numpy_iterator(), output_signature=raw().element_spec
    )


def rate(epoch):
    return 1.0 if epoch in (0, 1, 3) else 0.0


def mix(dataset, epoch, rate=rate, seed=1):
    return MixAvg(rate, SAMPLES, seed=seed)(dataset, epoch=epoch)


def trained(make, evaluates=False, model=model, **arguments):
    """The history of a `fit` of three epochs on `make(epoch)`."""
    epoch = CurrentEpoch()
    data = make(epoch)
    callbacks = [epoch]
    if evaluates:
        evaluate = lambda e, logs: model().evaluate(data, verbose=0)  # noqa: E731
        callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=evaluate))
        arguments["validation_data"] = data
    arguments = {"epochs": 3, "verbose": 0, "callbacks": callbacks, **arguments}
    return model().fit(data, **arguments).history


RIGHT = [1, 1, 0]
FROM_EPOCH_3 = {"initial_epoch": 3, "epochs": 5}
WAYS = {
    "the dataset": ({}, lambda e: mix(raw(), e)),
    "`prefetch` after it": ({}, lambda e: mix(raw(), e).prefetch(8)),
    "validation and `evaluate` on the same dataset": (
        {"evaluates": True},
        lambda e: mix(raw(), e).prefetch(8),
    ),
    "`initial_epoch=3`": (FROM_EPOCH_3, lambda e: mix(raw(), e)),
    "a generator": ({}, lambda e: mix(generated(raw), e).prefetch(8)),
    "`repeat` before it, `steps_per_epoch`": (
        {"steps_per_epoch": 4},
        lambda e: mix(raw().repeat(), e).prefetch(8),
    ),
    "the same with `initial_epoch=3`": (
        {"steps_per_epoch": 2, **FROM_EPOCH_3},
        lambda e: mix(raw().repeat(), e).prefetch(8),
    ),
    "an endless generator, `steps_per_epoch`": (
        {"steps_per_epoch": 4},
        lambda e: mix(generated(raw().repeat), e).prefetch(8),
    ),
    "`steps_per_epoch` of all batches": (
        {"steps_per_epoch": STEPS},
        lambda e: mix(raw(), e).prefetch(8),
    ),
}
if BACKEND != "torch":  # where Keras refuses it
    two = {"model": lambda: model(2)}
    WAYS["`steps_per_execution`"] = (two, lambda e: mix(raw(), e))
    WAYS["the same, `repeat` before it, `steps_per_epoch`"] = (
        {**two, "steps_per_epoch": 4},
        lambda e: mix(raw().repeat(), e).prefetch(8),
    )


@pytest.mark.parametrize("way", WAYS)
def test_each_epoch_of_fit_has_its_own_rate(way):
    arguments, make = WAYS[way]
    right = [1, 0] if "initial_epoch" in arguments else RIGHT
    assert trained(make, **arguments)["share"] == right


REFUSED = {
    "`repeat` after it, `steps_per_epoch`": (
        {"steps_per_epoch": STEPS},
        lambda e: mix(raw(), e).repeat().prefetch(8),
        "a second iteration of the dataset in epoch 0.*repeat the dataset before",
    ),
    "`steps_per_epoch` of some batches": (
        {"steps_per_epoch": 1},
        lambda e: mix(raw(), e),
        "1 steps for 3 batches.*repeat the dataset before",
    ),
    "`take` after it": ({}, lambda e: mix(raw(), e).take(2), "after `take`"),
    "`cache` after it": (
        {},
        lambda e: mix(raw(), e).cache(),
        "no iteration of its datasets began in epoch.*`cache` before",
    ),
    "an iterator": (
        {"steps_per_epoch": STEPS},
        lambda e: (batch for batch in mix(raw().repeat(), e)),
        "began in epoch 0. Give `fit` the dataset itself",
    ),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_hides_the_epoch_is_refused(way):
    arguments, make, message = REFUSED[way]
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        trained(make, model=model_that_fails, **arguments)


@pytest.mark.once
def test_the_docs_name_every_way():
    page = PAGE.read_text()
    for way in WAYS:
        assert f"| {way} | as `fit` counts" in page, way
    for way in REFUSED:
        assert f"| {way} | refused" in page, way


@pytest.mark.parametrize("seed", [1, None])
def test_a_constant_rate_has_other_pairs_in_each_epoch_without_a_callback(seed):
    keras.utils.set_random_seed(3)
    # The first `fit` of a model iterates once more.
    model().fit(raw().apply(MixAvg(num_classes=SAMPLES)), verbose=0)
    runs = []
    for _ in range(2):
        data = raw().apply(MixAvg(num_classes=SAMPLES, seed=seed)).prefetch(2)
        runs.append(model().fit(data, epochs=3, verbose=0).history["code"])
    assert len(set(runs[0])) == 3
    assert (runs[0] == runs[1]) == (seed is not None)


@pytest.mark.parametrize("repeated", [False, True])
def test_a_resumed_run_goes_on_with_the_pairs_of_its_epoch(repeated):
    def make(epoch):
        data = raw().repeat() if repeated else raw()
        return mix(data, epoch, 0.5).prefetch(2)

    arguments = {"steps_per_epoch": STEPS} if repeated else {}
    whole = trained(make, **arguments)["code"]
    rest = trained(make, initial_epoch=1, **arguments)["code"]
    assert len(set(whole)) == 3
    assert rest == whole[1:]
    if repeated:  # the same pairs as of one iteration an epoch
        assert trained(lambda e: mix(raw(), e, 0.5))["code"] == whole


def test_a_run_restored_from_a_backup_goes_on_with_the_pairs_of_its_epoch(tmp_path):
    def make(epoch):
        return mix(raw(), epoch, 0.5)

    class Killed(Exception):
        pass

    def kill(epoch, logs):
        if epoch == 1:
            raise Killed

    def run(*more):
        epoch = CurrentEpoch()
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        callbacks = [backup, epoch, *more]
        data = make(epoch)
        # Keras keeps the restored epoch in the model.
        fit = new_model().fit(data, epochs=3, verbose=0, callbacks=callbacks)
        return fit.history["code"]

    with pytest.raises(Killed):
        run(keras.callbacks.LambdaCallback(on_epoch_begin=kill))
    assert run() == trained(make)["code"][1:]


def test_a_second_fit_begins_with_the_epoch_it_says():
    epoch = CurrentEpoch()
    data = mix(raw(), epoch)
    for first, last in [(0, 1), (1, 3), (2, 3), (0, 3)]:
        fit = model().fit(
            data, initial_epoch=first, epochs=last, verbose=0, callbacks=[epoch]
        )
        assert fit.history["share"] == RIGHT[first:last]


def test_a_copy_of_the_callback_tells_the_same_dataset():
    """KerasTuner copies the callbacks of each trial."""
    epoch = CurrentEpoch()
    data = mix(raw(), epoch)
    callbacks = copy.deepcopy([epoch])
    fit = model().fit(data, epochs=3, verbose=0, callbacks=callbacks)
    assert fit.history["share"] == RIGHT


def test_several_datasets_may_have_one_callback():
    epoch = CurrentEpoch()
    mix(raw(), epoch)  # another fold of a cross-validation, never read
    fit = model().fit(mix(raw(), epoch), epochs=3, verbose=0, callbacks=[epoch])
    assert fit.history["share"] == RIGHT
    both = tf.data.Dataset.zip(mix(raw(), epoch), mix(raw(), epoch))
    data = both.map(lambda one, other: other)
    fit = model().fit(data, epochs=3, verbose=0, callbacks=[epoch])
    assert fit.history["share"] == RIGHT


def test_a_fit_after_one_that_failed_counts_its_own_epochs():
    epoch = CurrentEpoch()

    def fail(step, logs):
        raise RuntimeError("interrupted")

    failing = keras.callbacks.LambdaCallback(on_train_batch_end=fail)
    data = mix(raw(), epoch)
    with pytest.raises(RuntimeError, match="interrupted"):
        model_that_fails().fit(
            data, initial_epoch=1, epochs=3, callbacks=[epoch, failing], verbose=0
        )
    fit = model().fit(data, epochs=3, verbose=0, callbacks=[epoch])
    assert fit.history["share"] == RIGHT


@pytest.mark.one_backend
def test_a_callback_that_no_fit_has_is_warned_of():
    epoch = CurrentEpoch()
    data = mix(raw(), epoch)
    list(data), list(data)
    with pytest.warns(UserWarning, match=r"pairs and the rate of epoch 0.*callbacks="):
        list(data)
    fit = model().fit(data, epochs=3, verbose=0, callbacks=[epoch])
    assert fit.history["share"] == RIGHT


@pytest.mark.one_backend
def test_any_number_of_epochs_is_known_and_every_rate_checked_when_fit_begins():
    rates = np.linspace(0, 1, 2000)
    epoch = CurrentEpoch()
    data = mix(raw(), epoch, lambda e: float(rates[e]))
    callbacks = keras.callbacks.CallbackList([epoch], model=model(), epochs=2000)
    callbacks.on_train_begin()
    for number, expected in ((0, 0), (1999, 1)):
        callbacks.on_epoch_begin(number)
        labels = np.concatenate([y for _, y in data.as_numpy_iterator()])
        assert np.mean(labels.max(axis=1) < 1) == expected
        callbacks.on_epoch_end(number)
    callbacks.on_train_end()
    with pytest.raises((tf.errors.InvalidArgumentError), match=r"rate\(2000\), which"):
        model_that_fails().fit(data, epochs=2001, verbose=0, callbacks=[epoch])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
@pytest.mark.once
@pytest.mark.parametrize(
    "way", ["`prefetch` after it", "`repeat` before it, `steps_per_epoch`"]
)
def test_each_epoch_has_its_own_rate_on_replicas(way):
    arguments, make = WAYS[way]
    with two_replicas().scope():
        replicated = keras.Sequential([keras.Input((1,)), keras.layers.Dense(SAMPLES)])
        replicated.compile("sgd", "mse", metrics=[share], jit_compile=False)
    history = trained(make, model=lambda: replicated, **arguments)
    assert history["share"] == RIGHT
