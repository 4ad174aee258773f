"""Every floatx and policy: the loss equals Keras', the table that of float64."""

import keras
import numpy as np
import pytest
from scipy.special import softmax
from small_models import EAGERLY
from tolerances import assert_close, close

from keras_mixavg import GlobalSoftLabel, SoftLabelAccuracy, SoftLabelCrossentropy
from keras_mixavg.soft_label_table import SoftLabelTable, view_of

pytestmark = pytest.mark.numerical

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(12, 3))
ROWS = np.eye(4)[np.arange(12) % 4]
PAIRS = (ROWS + np.roll(ROWS, 1, axis=0)) / 2


@pytest.fixture
def floatx(request):
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    if BACKEND == "jax" and request.param == "float64":
        pytest.skip("JAX has float64 only when asked")
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


FLOATX = pytest.mark.parametrize(
    "floatx", ["float16", "bfloat16", "float64"], indirect=True
)


def trained(loss, callbacks, dtype, epochs=2):
    """A model with a constant kernel, and the losses of its epochs."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, dtype=dtype)])
    model.set_weights([np.eye(3, 4), np.zeros(4)])
    metrics = [SoftLabelAccuracy()]
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=metrics, run_eagerly=EAGERLY)
    x, y = X.astype(keras.config.floatx()), PAIRS.astype(keras.config.floatx())
    history = model.fit(x, y, len(x), epochs, 0, callbacks, shuffle=False)
    return model, [float(loss) for loss in history.history["loss"]]


def assert_right(dtype):
    loss = SoftLabelCrossentropy(from_logits=True)
    callback = GlobalSoftLabel(fade_out=0, collect="all")
    _, losses = trained(loss, [callback], dtype)
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    _, own = trained(plain, [], dtype, epochs=1)
    assert losses[0] == close(own[0], dtype.split("_")[-1])
    assert losses[0] != losses[1]
    logits = X @ np.eye(3, 4)
    table = np.eye(4)
    for _ in range(2):
        gram = PAIRS.T @ PAIRS
        k = 1 + 1e-6 * np.trace(gram) / 4
        table = np.linalg.solve(
            gram + k * np.eye(4), PAIRS.T @ softmax(logits, axis=-1) + k * table
        )
        table = np.maximum(table, 0)
        table /= table.sum(axis=1, keepdims=True)
    assert callback.table.dtype == "float32"
    half = dtype.split("_")[-1]
    computed_in = "float32" if half == "float64" else half  # the table is float32
    assert_close(callback.table, table, computed_in)


@FLOATX
def test_the_loss_is_that_of_keras_and_the_table_that_of_float64(floatx):
    assert_right(floatx)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["", "mixed_"])
def test_policies_of_half_precision_train_the_table_too(half, kind):
    assert_right(kind + half)


@FLOATX
def test_counters_are_float32_and_count_beyond_half_precision(floatx):
    table = SoftLabelTable()
    table.build(2)
    table.switch.turn_on(0.5)
    labels = np.full((70_001, 2), np.nan, "float32")
    table.add_batch(labels, labels, np.ones(70_001, "float32"))
    good = np.tile(np.eye(2, dtype="float32"), (35_000, 1))
    table.add_batch(good, good, np.ones(70_000, "float32"))
    counted = (table.cross, table.gram, table.steps, table.left_out)
    variables = (table.switch.variable, *counted)
    assert {variable.dtype for variable in variables} == {"float32"}
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(table.gram), 35_000 * np.eye(2)
    )
    assert float(table.steps.numpy()) == 2
    assert table.end_epoch(1.0) == 70_001


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("floatx", ["float64"], indirect=True)
def test_mixed_policies_where_the_floatx_is_float64(floatx, half):
    """Weights are float32 there, the loss is float64, and the logits are of a half."""
    keras.config.set_dtype_policy(f"mixed_{half}")
    assert_right(f"mixed_{half}")


class Gram(keras.callbacks.Callback):
    """M of the epoch, before GlobalSoftLabel updates the table."""

    def on_epoch_end(self, epoch, logs=None):
        self.value = view_of(self.model.loss.table.gram)


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"], indirect=True)
def test_the_evidence_of_an_epoch_grows_beyond_what_float16_holds(floatx):
    """More samples of a class than 65,504, and than bfloat16 can count by ones."""
    size = 2 * 80_000
    numbers = np.arange(size) % 2
    x = np.eye(2)[numbers].astype(floatx)
    kernel = np.array([[1.0, 0.0], [0.0, 2.0]])
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    model.set_weights([kernel])
    model.compile(keras.optimizers.SGD(0.0), SoftLabelCrossentropy(from_logits=True))
    gram, callback = Gram(), GlobalSoftLabel()
    history = model.fit(
        x, numbers, batch_size=20_000, verbose=0, callbacks=[gram, callback]
    )
    assert np.isfinite(float(history.history["loss"][0]))
    np.testing.assert_array_equal(gram.value, 80_000 * np.eye(2))
    k = 1 + 1e-6 * 80_000
    expected = (80_000 * softmax(kernel, axis=-1) + k * np.eye(2)) / (80_000 + k)
    assert_close(callback.table, expected, floatx)
