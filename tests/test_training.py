"""The whole method: `model.fit` against the NumPy training of reference.py."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from small_models import (
    CLASSES,
    FEATURES,
    Tables,
    averaged_batches,
    dataset_of,
    fit,
    fresh,
    linear_model,
)
from tolerances import assert_close, close

from keras_mixavg import GlobalSoftLabel, MixAvg, SoftLabelCrossentropy
from keras_mixavg.soft_label_table import numpy_of

pytestmark = [pytest.mark.core, pytest.mark.numerical]

CASES = {
    "as it is": {},
    "from probabilities": {"from_logits": False},
    "with sample weights": {"weighted": True},
    "from all samples, weighted, heavy weight": {
        "collect": "all",
        "weighted": True,
        "weight": 0.9,
    },
    "batches of one": {"sizes": (1, 1, 1, 1)},
}
ONCE = {  # of equation (8), which NumPy solves
    "with a class that never appears": {"classes": (0, 1, 3)},
    "with a heavy prior": {"prior_count": 50.0},
    "without a prior": {"prior_count": 0.0},
    "from all samples": {"collect": "all"},
}
MORE_CASES = [pytest.param(case, marks=pytest.mark.once) for case in ONCE]


@pytest.mark.parametrize("case", [*CASES, *MORE_CASES])
def test_the_tables_of_three_epochs_equal_the_reference(rng, case):
    settings = {
        "from_logits": True,
        "weight": 0.25,
        "prior_count": 1.0,
        "collect": "correct",
        **(CASES | ONCE)[case],
    }
    data = {k: settings[k] for k in ("weighted", "classes", "sizes") if k in settings}
    batches = averaged_batches(rng, **data)
    kernel = rng.normal(size=(FEATURES, CLASSES)) * 0.3
    choice = {k: settings[k] for k in ("prior_count", "collect")}

    model = fresh(kernel, settings["from_logits"], global_weight=settings["weight"])
    callback = GlobalSoftLabel(**choice)
    tables = Tables(callback)
    validation = dataset_of(averaged_batches(rng))  # must leave no trace
    history = fit(model, batches, 3, [callback, tables], validation_data=validation)
    for variable in (model.loss.table.cross, model.loss.table.gram):
        np.testing.assert_array_equal(numpy_of(variable), 0)

    expected = reference.Training(
        kernel.astype("float32"), 0.1, settings["weight"], **choice
    )
    for epoch in range(3):
        loss = expected.epoch(batches)
        assert_close(tables.seen[epoch], expected.table, trained=True)
        assert_close(tables.seen[epoch].sum(axis=1), 1)
        logged = {key: values[epoch] for key, values in history.history.items()}
        assert logged["loss"] == close(loss, trained=True)
        confidence = np.trace(expected.table) / CLASSES
        assert logged["soft_label_confidence"] == close(confidence, trained=True)
        positive = np.where(expected.table > 0, expected.table, 1)
        entropy = -np.sum(expected.table * np.log(positive)) / CLASSES
        assert logged["soft_label_entropy"] == close(entropy, trained=True)
    assert_close(model.get_weights()[0], expected.kernel, trained=True)
    if "classes" in settings:
        assert_close(callback.table[2], np.eye(CLASSES)[2])


@pytest.mark.once
@pytest.mark.parametrize("prior_count", [0.0, 1.0])
def test_pairs_that_never_separate_share_what_they_show(rng, prior_count):
    x = rng.normal(size=(20, FEATURES)).astype("float32")
    pairs = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], "float32")
    batches = [(x[i : i + 5], pairs[rng.integers(0, 2, 5)], None) for i in (0, 5, 10)]
    kernel = rng.normal(size=(FEATURES, CLASSES))
    model = fresh(kernel)
    callback = GlobalSoftLabel(prior_count, collect="all")
    fit(model, batches, 3, [callback])
    expected = reference.Training(
        kernel.astype("float32"), 0.1, prior_count=prior_count, collect="all"
    )
    for _ in range(3):
        expected.epoch(batches)
    assert_close(callback.table, expected.table, trained=True)


@pytest.mark.once
def test_online_label_smoothing_is_a_special_case(rng):
    """arXiv 2011.12562: S_c is the mean softmax output of the correct samples of class
    c in the last epoch, and the loss the mean of those on hard and soft labels.

    Ours adds 1e-6 of the mean class count, which the tolerance below leaves room for as
    long as the classes have about as many correct samples each.
    """
    numbers = np.arange(40) % CLASSES
    centres = 4 * np.eye(CLASSES, FEATURES)
    x = (centres[numbers] + rng.normal(size=(40, FEATURES))).astype("float32")
    numbers[[0, 13, 27]] = [1, 2, 0]  # labels that the model will get wrong
    batches = [
        (x[i : i + 10], np.eye(CLASSES, dtype="float32")[numbers[i : i + 10]], None)
        for i in range(0, 40, 10)
    ]
    kernel = (centres.T * 0.1).astype("float32")
    model = fresh(kernel)  # whose weight is 0.5
    model.optimizer.learning_rate = 0.05
    callback = GlobalSoftLabel(prior_count=0, collect="correct", fade_out=0)
    tables = Tables(callback)
    history = fit(model, batches, 4, [callback, tables]).history

    kernel = kernel.astype("float64")
    soft_labels = np.eye(CLASSES)
    for epoch in range(4):
        sums, counts = np.zeros((CLASSES, CLASSES)), np.zeros(CLASSES)
        losses = []
        for xs, ys, _ in batches:
            z = xs @ kernel
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            true = ys.argmax(axis=1)
            hard = -np.log(p[range(10), true])
            soft = -(soft_labels[true] * np.log(p)).sum(axis=1)
            losses.append(np.mean(0.5 * hard + 0.5 * soft))
            for c, row in zip(true, p, strict=True):
                if row.argmax() == c:
                    sums[c] += row
                    counts[c] += 1
            goal = 0.5 * ys + 0.5 * soft_labels[true]
            kernel -= 0.05 * xs.T @ (p - goal) / 10
        assert counts.min() >= 7 and counts.sum() < 40
        soft_labels = sums / counts[:, None]
        assert_close(tables.seen[epoch], soft_labels, trained=True)
        assert history["loss"][epoch] == close(np.mean(losses), trained=True)


def test_val_loss_is_plain_crossentropy_before_during_and_after_fit(rng):
    model = fresh(rng.normal(size=(FEATURES, CLASSES)), global_weight=0.9)
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    x, y, _ = averaged_batches(rng, sizes=(32,))[0]

    def expected():
        return float(plain(y, model.predict_on_batch(x)))

    during = []

    class Expect(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            during.append((logs["val_loss"], expected()))

    def evaluated(**kwargs):
        return model.evaluate(x, y, batch_size=32, verbose=0, **kwargs)

    assert evaluated() == close(expected())
    callback = GlobalSoftLabel()
    batches = averaged_batches(rng)
    fit(model, batches, 2, [callback, Expect()], validation_data=(x, y))
    assert len(during) == 2 and np.abs(callback.table - np.eye(CLASSES)).max() > 0.05
    for one, other in during:
        assert one == close(other)
    table = callback.table
    assert evaluated() == close(expected())
    assert evaluated(callbacks=[callback]) == close(expected())
    model.predict(x, verbose=0, callbacks=[callback])
    np.testing.assert_array_equal(callback.table, table)
    assert float(model.test_on_batch(x, y)) == close(expected())


def test_the_method_learns_from_class_numbers_through_a_pipeline(rng):
    centres = 4 * rng.normal(size=(CLASSES, FEATURES))
    numbers = rng.integers(0, CLASSES, size=256)
    x = (centres[numbers] + rng.normal(size=(256, FEATURES))).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, numbers))
    train = data.shuffle(256, seed=0).batch(32).map(MixAvg(num_classes=CLASSES, seed=0))
    model = linear_model(np.zeros((FEATURES, CLASSES)))
    model.compile(
        keras.optimizers.SGD(0.2),
        SoftLabelCrossentropy(from_logits=True),
    )
    callback = GlobalSoftLabel()
    model.fit(train, epochs=4, callbacks=[callback], verbose=0, shuffle=False)
    predicted = model.predict(x, verbose=0).argmax(axis=1)
    assert np.mean(predicted == numbers) > 0.95
    assert np.all(callback.table.argmax(axis=1) == range(CLASSES))


def test_masked_positions_leave_no_evidence_in_fit(rng):
    ids = rng.integers(0, 4, size=(20, 6))  # 0 is padding
    labels = rng.dirichlet(np.ones(CLASSES), size=(20, 6)).astype("float32")
    weights = rng.uniform(size=(20, 6)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Embedding(4, FEATURES, mask_zero=True),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), loss=SoftLabelCrossentropy())
    callback = GlobalSoftLabel(collect="all")
    model.fit(
        *(ids, labels),
        sample_weight=weights,
        batch_size=8,
        callbacks=[callback],
        verbose=0,
    )
    counted = (ids != 0) * weights
    probabilities = model.predict(ids, verbose=0)
    n, m = reference.evidence(labels, probabilities, counted, "all")
    expected = reference.updated_table(np.eye(CLASSES), n, m, 1.0)
    assert_close(callback.table, expected, trained=True)
