"""The ablations: each part that they change, against arithmetic."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

for package in ("sklearn", "scipy", "matplotlib", "tensorflow_datasets"):
    pytest.importorskip(package)

import grid  # noqa: E402
from ablations import ABLATIONS  # noqa: E402
from training.batches import Epoch  # noqa: E402

# Of TFDS and protobuf.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LABELS = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]], "float32")


def method(name, classes=3, **options):
    options = {"smoke": True, "out": "not/there", "method": name, **options}
    _, args = grid.arguments(options)
    return ABLATIONS[name](args, classes)


def fitted(method, rng, epochs=2, steps=1):
    """A linear model after `fit` without learning: its logits stay as they are."""
    x = rng.normal(size=(4, 5)).astype("float32")
    network = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model = method.model(network)
    model.compile(keras.optimizers.SGD(0.0), method.loss())
    data = tf.data.Dataset.from_tensors((x, LABELS)).repeat(steps)
    callbacks = method.callbacks()
    history = model.fit(
        data, epochs=epochs, callbacks=callbacks, verbose=0, shuffle=False
    )
    logits = np.asarray(network.predict(x, verbose=0), "float64")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    table = callbacks[0].table if callbacks else None
    return history.history["loss"], log_p, table


SOFT = {"global-weight": 1, "fade-out": 0, "collect": "all"}


def test_pairs_go_off_for_the_last_fifth_of_the_epochs():
    pairs = method("pairs_off_at_the_end", rate=1, classes=8)
    pairs.args.epochs = 10
    epoch = Epoch()
    batches = tf.data.Dataset.from_tensor_slices((np.ones((8, 2)), np.arange(8)))
    batches = pairs.mix(batches.batch(4), epoch.number)
    for number in range(10):
        epoch.on_epoch_begin(number)
        largest = {y.max() for _, y in batches.as_numpy_iterator()}
        assert largest == ({0.5} if number < 8 else {1.0}), number


def test_rows_by_division_are_the_mean_prediction_of_each_class(rng):
    options = {**SOFT, "prior-count": 0}
    losses, log_p, table = fitted(method("rows_by_division", **options), rng)
    for number in range(3):
        expected = np.average(np.exp(log_p), axis=0, weights=LABELS[:, number])
        np.testing.assert_allclose(table[number], expected, atol=1e-4)
    targets = LABELS @ table
    expected = -(targets * log_p).sum(axis=1).mean()
    assert losses[1] == pytest.approx(expected, rel=1e-4)


def test_a_fixed_mass_goes_to_the_other_classes_as_the_table_says(rng):
    options = {**SOFT, "global-weight": 0.25, "prior-count": 0}
    losses, log_p, table = fitted(method("fixed_mass", **options), rng)
    others = table * (1 - np.eye(3))
    others /= others.sum(axis=1, keepdims=True)
    targets = 0.75 * LABELS + 0.25 * LABELS @ others
    assert losses[0] == pytest.approx(-(LABELS * log_p).sum(axis=1).mean(), rel=1e-5)
    assert losses[1] == pytest.approx(-(targets * log_p).sum(axis=1).mean(), rel=1e-5)


def test_the_table_changes_within_an_epoch(rng):
    """Two changes an epoch, each after 13 equal steps, and none at its end."""
    _, log_p, table = fitted(method("every_13_steps", **SOFT), rng, epochs=1, steps=26)
    p, expected = np.exp(log_p), np.eye(3)
    for _ in range(2):
        cross, gram = 13 * LABELS.T @ p, 13 * LABELS.T @ LABELS
        expected = reference.updated_table(expected, cross, gram, 1.0)
    np.testing.assert_allclose(table, expected, atol=1e-5)


def test_the_teacher_is_the_moving_average_of_the_network(rng):
    teacher = method("moving_average_teacher", **{"global-weight": 0.25})
    inputs = keras.Input((5,))
    hidden = keras.layers.BatchNormalization()(inputs)
    network = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    model = teacher.model(network)
    model.compile(keras.optimizers.SGD(0.5), teacher.loss())
    x = rng.normal(size=(4, 5)).astype("float32")
    trained = [w.trainable for w in network.weights]  # the others change in the call
    means = network.get_weights()
    for _ in range(3):
        before = network.get_weights()
        loss = model.train_on_batch(x, LABELS)
        seen = [
            was if learns else now
            for was, now, learns in zip(
                before, network.get_weights(), trained, strict=True
            )
        ]
        means = [0.99 * m + 0.01 * w for m, w in zip(means, seen, strict=True)]
    for mean, found in zip(means, model.average.get_weights(), strict=True):
        np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-7)
    network.set_weights(before)
    log_p = keras.ops.log_softmax(network(x, training=True))
    predicted = keras.ops.softmax(model.average(x, training=False))
    targets = 0.75 * LABELS + 0.25 * np.array(predicted)
    expected = -(targets * np.array(log_p)).sum(axis=1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(model.test_on_batch(x, LABELS)) > 0
