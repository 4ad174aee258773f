"""Subclasses of SoftLabelCrossentropy that override `call`, on every backend."""

import keras
import numpy as np
import pytest
from scipy.special import softmax
from small_models import EAGERLY
from tolerances import assert_close

from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy

pytestmark = pytest.mark.numerical

WEIGHT = 0.5
X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
NUMBERS = np.arange(12) % 4
ROWS = np.eye(4, dtype="float32")[NUMBERS]
PAIRS = (ROWS + np.roll(ROWS, 1, axis=0)) / 2


class Focal(SoftLabelCrossentropy):
    def call(self, y_true, y_pred):
        return keras.losses.categorical_focal_crossentropy(
            y_true, y_pred, alpha=1.0, gamma=2.0, from_logits=self.from_logits
        )


class Poly1(SoftLabelCrossentropy):
    def call(self, y_true, y_pred):
        probability = keras.ops.sum(y_true * keras.ops.softmax(y_pred), axis=-1)
        return super().call(y_true, y_pred) + 2.0 * (1.0 - probability)


class Temperature(SoftLabelCrossentropy):
    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred / 2.0)


class Asymmetric(SoftLabelCrossentropy):
    def call(self, y_true, y_pred):
        p = keras.ops.softmax(y_pred)
        others = (1.0 - y_true) * p**4 * keras.ops.log(1.0 - p)
        return super().call(y_true, y_pred) - keras.ops.sum(others, axis=-1)


def expected(kind, goals, logits):
    """The mean of the losses, from their formulas."""
    p = softmax(logits / 2 if kind is Temperature else logits, axis=-1)
    losses = -goals * np.log(p)
    if kind is Focal:
        losses = losses * (1 - p) ** 2
    if kind is Poly1:
        losses = losses + 2 * (0.25 - goals * p)
    if kind is Asymmetric:
        losses = losses - (1 - goals) * p**4 * np.log(1 - p)
    return losses.sum(axis=-1).mean()


@pytest.mark.parametrize("kind", [Focal, Poly1, Temperature, Asymmetric])
@pytest.mark.parametrize("numbers", [False, True])
def test_call_of_a_subclass_gets_the_combined_targets(kind, numbers):
    """The learning rate is 0, so that only the table changes the loss."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    loss = kind(4, WEIGHT, from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=EAGERLY)  # four steps
    callback = GlobalSoftLabel(fade_out=0, collect="all")
    rows = ROWS if numbers else PAIRS
    logs = model.fit(
        X,
        NUMBERS if numbers else PAIRS,
        batch_size=12,
        epochs=2,
        validation_data=(X, NUMBERS if numbers else PAIRS),
        callbacks=[callback],
        verbose=0,
    ).history
    logits = keras.ops.convert_to_numpy(model(X)).astype("float64")
    assert_close(logs["loss"][0], expected(kind, rows, logits), trained=True)
    # The evidence is the same in both epochs; the first table is that of epoch 0.
    p, gram = softmax(logits, axis=-1), rows.T @ rows
    k = 1 + 1e-6 * np.trace(gram) / 4
    table = np.linalg.solve(gram + k * np.eye(4), rows.T @ p + k * np.eye(4))
    table = np.maximum(table, 0)
    table /= table.sum(axis=1, keepdims=True)
    goals = (1 - WEIGHT) * rows + WEIGHT * rows @ table
    assert abs(goals - rows).max() > 0.05
    assert_close(logs["loss"][1], expected(kind, goals, logits), trained=True)
    for value in logs["val_loss"]:
        assert_close(value, expected(kind, rows, logits), trained=True)
