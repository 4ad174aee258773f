"""Training that another callback stops, and the weight that fades over its end."""

import keras
import numpy as np
import pytest
from small_models import CLASSES, EAGERLY, FEATURES, averaged_batches, fit, linear_model

from keras_mixavg import GlobalSoftLabel, SoftLabelCrossentropy

pytestmark = pytest.mark.once  # what it decides is plain Python


class Stop(keras.callbacks.Callback):
    """Stop after so many epochs, and at each later one, as EarlyStopping does."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 >= self.after:
            self.model.stop_training = True


class Weights(keras.callbacks.Callback):
    """What part of its weight the loss has in each epoch, after a GlobalSoftLabel."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(self.model.loss.table._weight / 0.5)


@pytest.fixture
def batches(rng):
    return averaged_batches(rng)


@pytest.fixture
def kernel(rng):
    return (0.3 * rng.normal(size=(FEATURES, CLASSES))).astype("float32")


def compiled_model(kernel, global_weight=0.5):
    model = linear_model(kernel)
    loss = SoftLabelCrossentropy(global_weight=global_weight, from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=EAGERLY)
    return model


def of_not_faded(warned):
    return [w for w in warned if "Training ended after" in str(w.message)]


def test_an_end_before_the_weight_has_faded_is_said_once_with_what_to_do(
    batches, kernel
):
    message = (
        "after epoch 4 of 10, .* 100% of their weight.*epochs=2, callbacks="
        r"\[GlobalSoftLabel\(fade_out=1.0\)\].*GlobalSoftLabel\(fade_on_stop=True\)"
    )
    with pytest.warns(UserWarning, match=message) as warned:
        fit(compiled_model(kernel), batches, 10, [GlobalSoftLabel(), Stop(4)])
    assert len(of_not_faded(warned)) == 1
    with pytest.warns(UserWarning, match="after epoch 9 of 10, .* 67% of their weight"):
        fit(compiled_model(kernel), batches, 10, [GlobalSoftLabel(), Stop(9)])


def test_an_end_as_planned_is_not_remarked_upon(batches, kernel):
    """Any warning is an error here."""
    fit(compiled_model(kernel), batches, 4, [GlobalSoftLabel()])
    fit(compiled_model(kernel), batches, 9, [GlobalSoftLabel(fade_out=0), Stop(2)])
    for weight in (0.0, lambda epoch: 0.5):
        model = compiled_model(kernel, weight)
        fit(model, batches, 9, [GlobalSoftLabel(), Stop(2)])
    model = compiled_model(kernel)
    for epoch in range(3):  # an epoch at a time
        callback = GlobalSoftLabel()
        fit(model, batches, epoch + 1, [callback], initial_epoch=epoch)
    fit(model, batches, 3, [GlobalSoftLabel()], initial_epoch=3)  # no epoch at all


@pytest.mark.parametrize(
    "stop, epochs, total",
    [(7, 100, 10), (2, 9, 3), (1, 100, 2), (7, 9, 9), (9, 10, 10), (10, 10, 10)],
)
def test_a_stop_is_put_off_until_the_weight_has_faded(
    batches, kernel, stop, epochs, total
):
    """As if the fit had been for as many epochs as it became."""
    kernels, weights = [], Weights()
    model = compiled_model(kernel)
    callback = GlobalSoftLabel(fade_on_stop=True)
    fit(model, batches, epochs, [Stop(stop), callback, weights])
    assert len(weights.seen) == total
    kernels.append(model.get_weights()[0])
    model = compiled_model(kernel)
    fit(model, batches, total, [GlobalSoftLabel()])
    np.testing.assert_array_equal(kernels[0], model.get_weights()[0])


def test_the_weight_falls_from_the_stop_on(batches, kernel):
    weights = Weights()
    callback = GlobalSoftLabel(fade_out=0.5, fade_on_stop=True)
    model = compiled_model(kernel)
    for _ in range(2):  # the second fit starts anew
        fit(model, batches, 50, [Stop(4), callback, weights])
        expected = [1, 1, 1, 1, 1, 3 / 4, 1 / 2, 1 / 4]
        np.testing.assert_allclose(weights.seen, expected, rtol=1e-12)


def test_a_weight_that_falls_from_the_first_epoch_on_falls_as_planned(batches, kernel):
    weights = Weights()
    callback = GlobalSoftLabel(fade_out=1.0, fade_on_stop=True)
    fit(compiled_model(kernel), batches, 4, [Stop(1), callback, weights])
    np.testing.assert_allclose(weights.seen, [1, 3 / 4, 1 / 2, 1 / 4], rtol=1e-12)


def test_early_stopping_restores_the_best_weights_of_all_epochs(batches, kernel):
    x, y, _ = batches[0]
    stopping = keras.callbacks.EarlyStopping(
        patience=1, min_delta=0.05, restore_best_weights=True
    )
    model = compiled_model(kernel)
    callbacks = [stopping, GlobalSoftLabel(fade_on_stop=True)]
    history = fit(model, batches, 60, callbacks, validation_data=(x, y)).history
    assert stopping.stopped_epoch < len(history["loss"]) < 60
    best = history["val_loss"][stopping.best_epoch]
    assert model.evaluate(x, y, verbose=0) == pytest.approx(best, rel=1e-6)


def test_a_callback_that_stops_comes_before(batches, kernel):
    callbacks = [GlobalSoftLabel(fade_on_stop=True), Stop(4)]
    with pytest.warns(UserWarning, match="fade_on_stop=True.*, in this order"):
        fit(compiled_model(kernel), batches, 10, callbacks)


@pytest.mark.filterwarnings("ignore:[0-9]+ samples were left out")
def test_a_loss_that_is_not_finite_ends_training_at_once(batches, kernel):
    bad = [(np.full_like(x, np.nan), y, w) for x, y, w in batches]
    callbacks = [keras.callbacks.TerminateOnNaN(), GlobalSoftLabel(fade_on_stop=True)]
    with pytest.warns(UserWarning, match="Training ended after epoch 1 of 10"):
        history = fit(compiled_model(kernel), bad, 10, callbacks).history
    assert len(history["loss"]) == 1


def test_a_fade_on_a_stop_without_a_fade_is_refused(batches, kernel):
    with pytest.raises(ValueError, match="`fade_on_stop` needs a `fade_out` above 0"):
        GlobalSoftLabel(fade_out=0, fade_on_stop=True)
    model = compiled_model(kernel, lambda epoch: 0.5)
    with pytest.raises(ValueError, match="not both.*fade_on_stop=True. Leave it out"):
        fit(model, batches, 5, [GlobalSoftLabel(fade_on_stop=True)])
