"""Every kind of label from a loader works, or the error shows the line that works.

With and without `num_classes`, on arrays and on a dataset; then in the loss.
"""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from tolerances import assert_close

from keras_mixavg import GlobalSoftLabel, MixAvg, SoftLabelCrossentropy

NUMBERS = np.array([0, 3, 1, 2])
PARTNERS = [1, 2, 3, 0]
X = np.zeros((4, 2), "float32")
ROWS = np.eye(4, dtype="float32")[NUMBERS]
BINARY = np.array([0, 1, 1, 0])
MULTI_HOT = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])

SAY_CLASSES = "pass `num_classes` to MixAvg.*`num_classes=1`"
NO_CLASS = "whole numbers in .*largest label plus one"
NOT_0_OR_1 = "must be 0 or 1. One-hot encode"
WIDTH = "must have shape .batch, num_classes="
AT_EACH_POSITION = "at each position, such as masks, are not averaged"

# A kind: the labels, then what comes without `num_classes`, with 1, and with 4: rows
# to average, or a message.
KINDS = {
    "ints": (NUMBERS, SAY_CLASSES, NUMBERS[:, None], ROWS),
    "ints, one column": (NUMBERS[:, None], SAY_CLASSES, NUMBERS[:, None], ROWS),
    "bytes": (NUMBERS.astype("uint8"), SAY_CLASSES, NUMBERS[:, None], ROWS),
    "floats": (NUMBERS.astype("float32"), SAY_CLASSES, NUMBERS[:, None], ROWS),
    "floats, one column": (
        NUMBERS[:, None].astype("float32"),
        SAY_CLASSES,
        NUMBERS[:, None],
        ROWS,
    ),
    "half floats, one column": (
        NUMBERS[:, None].astype("float16"),
        SAY_CLASSES,
        NUMBERS[:, None],
        ROWS,
    ),
    "0 and 1 as floats, one column": (
        BINARY[:, None].astype("float32"),
        SAY_CLASSES,
        BINARY[:, None],
        np.eye(4)[BINARY],
    ),
    "bools": (BINARY == 1, SAY_CLASSES, BINARY[:, None], np.eye(4)[BINARY]),
    "bools, one column": (
        BINARY[:, None] == 1,
        SAY_CLASSES,
        BINARY[:, None],
        np.eye(4)[BINARY],
    ),
    "fractions": (NUMBERS + 0.5, SAY_CLASSES, NUMBERS[:, None] + 0.5, NO_CLASS),
    "one too large": (NUMBERS + 1, SAY_CLASSES, NUMBERS[:, None] + 1, NO_CLASS),
    "strings": (NUMBERS.astype(str), *["must be numbers. Received: dtype=str"] * 3),
    "one-hot": (ROWS, ROWS, WIDTH, ROWS),
    "one-hot ints": (ROWS.astype("int32"), ROWS, WIDTH, ROWS),
    "one-hot bools": (ROWS == 1, ROWS, WIDTH, ROWS),
    "multi-hot": (MULTI_HOT, MULTI_HOT, WIDTH, MULTI_HOT),
    "soft": (ROWS * 0.7 + 0.075, ROWS * 0.7 + 0.075, WIDTH, ROWS * 0.7 + 0.075),
    "one-hot bytes of 255": (
        (255 * ROWS).astype("uint8"),
        NOT_0_OR_1,
        WIDTH,
        NOT_0_OR_1,
    ),
    "class numbers at four positions": (
        np.tile(NUMBERS, (4, 1)),
        NOT_0_OR_1,
        WIDTH,
        NOT_0_OR_1,
    ),
    "masks": (np.zeros((4, 3, 3), int), *[AT_EACH_POSITION] * 3),
}


@pytest.mark.parametrize("num_classes", [None, 1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_label_is_averaged_as_what_it_is_or_refused(kind, num_classes):
    labels, *outcomes = KINDS[kind]
    if labels.dtype == "float64" and keras.backend.backend() == "jax":
        labels = labels.astype("float32")
    expected = outcomes[[None, 1, 4].index(num_classes)]
    layer = MixAvg(num_classes=num_classes)
    dataset = tf.data.Dataset.from_tensors((X, labels))
    if isinstance(expected, str):
        errors = (ValueError, TypeError, tf.errors.InvalidArgumentError)
        with pytest.raises(errors, match=expected):
            layer((X, labels))
        with pytest.raises(errors, match=expected):
            list(dataset.apply(layer))
        return
    _, mixed = layer.apply((X, labels), PARTNERS)
    expected = reference.averaged(expected, PARTNERS)
    assert_close(mixed, expected)
    for _, mixed in MixAvg(0.0, num_classes)(dataset):
        whole = reference.averaged(outcomes[[None, 1, 4].index(num_classes)], range(4))
        assert_close(mixed, whole)


@pytest.mark.one_backend
def test_ragged_labels_are_refused():
    ragged = tf.ragged.constant([[0], [1, 2], [3], [0]])
    with pytest.raises(TypeError, match="`y` must be a dense tensor.*to_tensor"):
        MixAvg(num_classes=4)((X, ragged))


@pytest.mark.one_backend
@pytest.mark.parametrize("num_classes", [None, 4])
def test_labels_of_unknown_width_are_refused(num_classes):
    """Rows and a column of class numbers look alike there."""
    spec = tuple(tf.TensorSpec((None, size), "float32") for size in (3, None))
    data = tf.data.Dataset.from_generator(lambda: iter([]), output_signature=spec)
    layer = MixAvg(num_classes=num_classes)
    with pytest.raises(ValueError, match=r"known width.*tf.ensure_shape\(labels"):
        layer(data)
    told = data.map(lambda x, y: (x, tf.ensure_shape(y, (None, 4))))
    assert layer(told).element_spec[1].shape.as_list() == [None, 4]


# --- The loss -------------------------------------------------------------------------

LOGITS = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "float16"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_the_loss_takes_whole_numbers_of_any_dtype_for_classes(dtype, shape):
    loss = SoftLabelCrossentropy(from_logits=True)
    expected = keras.losses.CategoricalCrossentropy(from_logits=True)(ROWS, LOGITS)
    given = loss(NUMBERS.astype(dtype).reshape(shape), LOGITS)
    assert_close(given, expected)


@pytest.mark.one_backend  # elsewhere shapes are known before a step runs
@pytest.mark.parametrize("labels", [NUMBERS[:, None], ROWS], ids=["numbers", "rows"])
@pytest.mark.parametrize("shape", [None, (None, None)])
def test_the_loss_takes_labels_whose_shape_tensorflow_learns_when_it_runs(
    labels, shape
):
    loss = SoftLabelCrossentropy(from_logits=True)
    step = tf.function(lambda y: loss(y, tf.constant(LOGITS)))
    found = step.get_concrete_function(tf.TensorSpec(shape, "float32"))
    expected = keras.losses.CategoricalCrossentropy(from_logits=True)(ROWS, LOGITS)
    given = found(tf.constant(labels, "float32"))
    assert_close(given, expected)


@pytest.mark.one_backend  # elsewhere shapes are known before a step runs
@pytest.mark.parametrize(
    "labels, metrics",
    [(NUMBERS[:, None], None), (ROWS, ["categorical_accuracy"])],
    ids=["numbers", "rows"],
)
def test_a_model_trains_on_labels_of_unknown_shape(labels, metrics):
    spec = tuple(tf.TensorSpec((None, size), "float32") for size in (4, None))
    data = tf.data.Dataset.from_generator(
        lambda: iter([(LOGITS, labels.astype("float32"))]), output_signature=spec
    ).apply(tf.data.experimental.assert_cardinality(1))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile("sgd", SoftLabelCrossentropy(from_logits=True), metrics=metrics)
    callback = GlobalSoftLabel()
    model.fit(data, callbacks=[callback], shuffle=False, verbose=0)
    assert_close(callback.table.sum(axis=1), 1)


@pytest.mark.one_backend  # elsewhere shapes are known before a step runs
@pytest.mark.parametrize("num_classes", [None, 4])
def test_predictions_of_unknown_width_are_refused_with_the_callback(num_classes):
    class Widthless(keras.layers.Layer):
        def call(self, x):
            return tf.raw_ops.PlaceholderWithDefault(input=x, shape=(None, None))

    model = keras.Sequential([keras.layers.Dense(4), Widthless()])
    model.compile("sgd", SoftLabelCrossentropy(num_classes, from_logits=True))
    model.fit(LOGITS, ROWS, verbose=0)
    with pytest.raises(ValueError, match=r"number of classes.*\(None, None\)"):
        model.fit(LOGITS, ROWS, callbacks=[GlobalSoftLabel()], verbose=0)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_the_loss_of_a_number_that_is_no_class_is_not_finite(shape):
    loss = SoftLabelCrossentropy(from_logits=True, reduction=None)
    labels = np.array([0, 4.5, 0.5, 2], "float32").reshape(shape)
    values = keras.ops.convert_to_numpy(loss(labels, LOGITS))
    np.testing.assert_array_equal(np.isnan(values), [False, True, True, False])
