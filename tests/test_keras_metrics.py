"""Which of Keras' metrics work with which labels: the table of docs/metrics.md."""

import functools
from pathlib import Path

import keras
import numpy as np
import pytest
from small_models import EAGERLY
from small_models import fit as fit_batches
from tolerances import TOLERANCES, close

from keras_mixavg import (
    GlobalSoftLabel,
    SoftLabelAccuracy,
    SoftLabelCrossentropy,
    SoftLabelTopKAccuracy,
)

PAGE = Path(__file__).parent.parent / "docs/metrics.md"
CLASSES, SAMPLES = 6, 60
ONCE = pytest.mark.once
OWN = {
    "SoftLabelAccuracy()": SoftLabelAccuracy,
    "SoftLabelTopKAccuracy(k)": lambda: SoftLabelTopKAccuracy(2),
}
METRICS = {
    **OWN,
    '"accuracy"': lambda: "accuracy",
    "CategoricalAccuracy()": keras.metrics.CategoricalAccuracy,
    "SparseCategoricalAccuracy()": keras.metrics.SparseCategoricalAccuracy,
    "TopKCategoricalAccuracy(k)": lambda: keras.metrics.TopKCategoricalAccuracy(2),
    "SparseTopKCategoricalAccuracy(k)": (
        lambda: keras.metrics.SparseTopKCategoricalAccuracy(2)
    ),
    "CategoricalCrossentropy()": keras.metrics.CategoricalCrossentropy,
    "SparseCategoricalCrossentropy()": keras.metrics.SparseCategoricalCrossentropy,
    "KLDivergence()": keras.metrics.KLDivergence,
    "MeanSquaredError()": keras.metrics.MeanSquaredError,
    "CosineSimilarity()": keras.metrics.CosineSimilarity,
    "AUC()": keras.metrics.AUC,
    "AUC(multi_label=True)": (
        lambda: keras.metrics.AUC(multi_label=True, num_labels=CLASSES)
    ),
    "Precision(top_k=k)": lambda: keras.metrics.Precision(top_k=2),
    "Recall(top_k=k)": lambda: keras.metrics.Recall(top_k=2),
    'F1Score(average="macro")': lambda: keras.metrics.F1Score(average="macro"),
    "OneHotMeanIoU(classes)": lambda: keras.metrics.OneHotMeanIoU(CLASSES),
}


class Labels:
    """The same samples with labels of each kind, and predictions for them."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.numbers = np.arange(SAMPLES) % CLASSES
        self.one_hot = np.eye(CLASSES, dtype="float32")[self.numbers]
        self.pairs = (self.one_hot + np.roll(self.one_hot, 1, axis=0)) / 2
        odds = 0.5 * self.pairs + random.uniform(size=self.pairs.shape)
        self.predictions = (odds / odds.sum(axis=1, keepdims=True)).astype("float32")


LABELS = Labels()


def identity_model(metric):
    """A model whose predictions are its inputs, with an unused trainable weight."""
    model = keras.Sequential(
        [keras.Input((CLASSES,)), keras.layers.Rescaling(1.0), Nothing()]
    )
    loss = SoftLabelCrossentropy()
    model.compile("sgd", loss, metrics=[metric], run_eagerly=EAGERLY)
    return model


class Nothing(keras.layers.Layer):
    def build(self, input_shape):
        self.weight = self.add_weight(shape=(), initializer="zeros")

    def call(self, inputs):
        return inputs + 0.0 * self.weight


@functools.cache
def value(name, kind, renamed=False):
    """The value of the metric on labels of this kind; None if it fails.

    `renamed`: with the classes in the reverse order, in labels and in predictions.
    """
    x, y = LABELS.predictions, getattr(LABELS, kind)
    if renamed:
        x, y = x[:, ::-1].copy(), y[:, ::-1].copy()
    metric = METRICS[name]()
    try:
        if metric == "accuracy":  # Keras chooses which
            model = identity_model(metric)
            return model.evaluate(x, y, batch_size=SAMPLES, verbose=0)[1]
        metric.update_state(y, x)
        return float(metric.result())
    except (AttributeError, NameError, Warning):
        raise
    except Exception:  # of each backend its own
        return None


def word(right, result):
    return "fails" if result is None else "yes" if right else "wrong"


def approx(expected):
    """Sums in another order; None if Keras fails."""
    if expected is None:
        return None
    return pytest.approx(expected, rel=TOLERANCES["float32"][True])


def on_rows(name, kind):
    """Right if renumbering the classes does not change it."""
    result = value(name, kind)
    return word(result == approx(value(name, kind, True)), result)


def twin(name):
    """The value of Keras' counterpart on one-hot labels."""
    return approx(value(name.removeprefix("Sparse"), "one_hot"))


def on_numbers(name):
    """Right if it equals Keras' counterpart for one-hot labels."""
    result = value(name, "numbers")
    return word(result == twin(name), result)


def one_then_the_other(name):
    """Training on pairs and validation on class numbers, as in the recipes."""
    model = identity_model(METRICS[name]())
    x, data = LABELS.predictions, (LABELS.predictions, LABELS.numbers)
    try:
        history = fit_batches(
            model, [(x, LABELS.pairs, None)], 1, [], validation_data=data
        ).history
    except (AttributeError, NameError, Warning):
        raise
    except Exception:
        return "fails"
    (key,) = (n for n in history if n.startswith("val_") and n != "val_loss")
    result = history[key][0]
    return word(result == twin(name) and on_rows(name, "pairs") == "yes", result)


def row(name):
    return (
        on_rows(name, "pairs"),
        on_rows(name, "one_hot"),
        on_numbers(name),
        one_then_the_other(name),
    )


def rows_of_the_page():
    """`{metric: cells}` of the first table of docs/metrics.md."""
    lines = [line.split(" | ") for line in PAGE.read_text().splitlines()]
    cells = [[cell.strip("| `") for cell in line] for line in lines if len(line) == 5]
    return {name: tuple(more) for name, *more in cells if name in METRICS}


@pytest.mark.once  # the same on each backend
@pytest.mark.parametrize("name", METRICS)
def test_the_table_of_the_page_on_metrics_is_what_keras_does(name):
    assert rows_of_the_page()[name] == row(name)


ON_EVERY_BACKEND = ("SoftLabelAccuracy()", '"accuracy"', "TopKCategoricalAccuracy(k)")


@pytest.mark.parametrize(
    "name",
    [n if n in ON_EVERY_BACKEND else pytest.param(n, marks=ONCE) for n in METRICS],
)
def test_metrics_that_do_not_fit_the_validation_labels_are_named_with_the_remedy(name):
    """The callback refuses exactly those that the page calls wrong or failing."""
    make = METRICS[name]
    fits = rows_of_the_page()[name][2] == "yes"  # class numbers
    model = identity_model(make())
    batches = [(LABELS.predictions, LABELS.one_hot, None)]
    validation = (LABELS.predictions, LABELS.numbers)

    def train():
        fit_batches(model, batches, 1, [GlobalSoftLabel()], validation_data=validation)

    if name.startswith("Sparse"):
        if not EAGERLY:
            pytest.skip("JAX and torch try the metrics before the loss")
        with pytest.raises(ValueError, match="takes class numbers.*in training. Comp"):
            train()
    elif fits and make() != "accuracy":
        train()
    else:
        remedy = {"Cate": "SoftLabelAccuracy|One-hot", "TopK": "SoftLabelTopKAccuracy"}
        remedy = remedy.get(name[:4], "accuracy|One-hot encode")
        with pytest.raises(ValueError, match=f"takes one-hot.*evaluation.*({remedy})"):
            train()


def two_headed_model(metrics):
    """One head has global soft labels, the other always class numbers."""
    inputs = keras.Input((CLASSES,))
    outputs = {
        name: keras.layers.Dense(CLASSES, name=name)(inputs)
        for name in ("own", "other")
    }
    model = keras.Model(inputs, outputs)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = {"own": SoftLabelCrossentropy(from_logits=True), "other": plain}
    model.compile("sgd", loss, metrics=metrics, run_eagerly=EAGERLY)
    return model


@pytest.mark.once
def test_metrics_of_another_output_are_left_alone():
    x, numbers = LABELS.predictions, LABELS.numbers
    train = {"own": LABELS.pairs, "other": numbers}
    validation = (x, {"own": numbers, "other": numbers})

    def fit(own):
        model = two_headed_model({"own": own, "other": ["accuracy"]})
        callbacks = [GlobalSoftLabel()]
        arguments = {"validation_data": validation, "verbose": 0}
        return model.fit(x, train, callbacks=callbacks, **arguments)

    history = fit([SoftLabelAccuracy()]).history
    assert history["val_own_accuracy"] and history["val_other_accuracy"]
    with pytest.raises(ValueError, match="'accuracy', a CategoricalAccuracy"):
        fit(["accuracy"])


class OwnTestStep(keras.Sequential):
    """One-hot labels for the loss, class numbers for the metrics."""

    def test_step(self, data):
        x, numbers = data
        y_pred = self(x, training=False)
        one_hot = keras.ops.one_hot(numbers, CLASSES)
        self._loss_tracker.update_state(self.compute_loss(x, one_hot, y_pred))
        return self.compute_metrics(x, numbers, y_pred)


@pytest.mark.one_backend
def test_metrics_of_a_model_with_steps_of_its_own_are_left_alone():
    model = OwnTestStep([keras.Input((CLASSES,)), keras.layers.Dense(CLASSES)])
    metric = keras.metrics.SparseCategoricalAccuracy()
    loss = SoftLabelCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[metric], run_eagerly=EAGERLY)
    x, numbers = LABELS.predictions, LABELS.numbers
    model.fit(x, numbers, callbacks=[GlobalSoftLabel()], verbose=0)
    result = model.evaluate(x, numbers, verbose=0, return_dict=True)
    expected = np.mean(model.predict(x, verbose=0).argmax(axis=1) == numbers)
    assert result["sparse_categorical_accuracy"] == close(expected)


def test_metrics_of_another_model_with_the_same_loss_are_left_alone():
    loss = SoftLabelCrossentropy(from_logits=True)

    def compiled(metric):
        layers = [keras.Input((CLASSES,)), keras.layers.Dense(CLASSES)]
        model = keras.Sequential(layers)
        model.compile("sgd", loss, metrics=[metric], run_eagerly=EAGERLY)
        return model

    x = LABELS.predictions
    first, second = compiled("accuracy"), compiled(SoftLabelAccuracy())
    first.fit(x, LABELS.numbers, callbacks=[GlobalSoftLabel()], verbose=0)
    second.fit(x, LABELS.one_hot, validation_data=(x, LABELS.pairs), verbose=0)
    second.evaluate(x, LABELS.pairs, verbose=0)
