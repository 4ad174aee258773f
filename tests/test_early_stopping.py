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


def compiled_model(kernel, global_weight=0.5):
    model = linear_model(kernel)
    loss = SoftLabelCrossentropy(global_weight=global_weight, from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=EAGERLY)
    return model


def epochs_of(callbacks, epochs, weight=0.5, logs=None, initial_epoch=0):
    """The hooks of `fit`, without training: how many epochs there are."""
    model = compiled_model(np.zeros((FEATURES, CLASSES)), weight)
    loop = keras.callbacks.CallbackList(callbacks, model=model, epochs=epochs)
    model.stop_training = False
    loop.on_train_begin()
    done = initial_epoch
    while done < epochs and not model.stop_training:
        loop.on_epoch_begin(done)
        loop.on_epoch_end(done, dict(logs or {"loss": 1.0}))
        done += 1
    loop.on_train_end()
    return done


def test_an_end_before_the_weight_has_faded_is_said_once_with_what_to_do():
    message = (
        "after epoch 4 of 10, .* 100% of their weight.*epochs=2, callbacks="
        r"\[GlobalSoftLabel\(fade_out=1.0\)\].*GlobalSoftLabel\(fade_on_stop=True\)"
    )
    with pytest.warns(UserWarning, match=message) as warned:
        epochs_of([GlobalSoftLabel(), Stop(4)], 10)
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="after epoch 9 of 10, .* 67% of their weight"):
        epochs_of([GlobalSoftLabel(), Stop(9)], 10)


def test_an_end_as_planned_is_not_remarked_upon():
    """Any warning is an error here."""
    assert epochs_of([GlobalSoftLabel()], 4) == 4
    assert epochs_of([GlobalSoftLabel()], 1) == 1
    assert epochs_of([GlobalSoftLabel(fade_out=0), Stop(2)], 9) == 2
    for weight in (0.0, lambda epoch: 0.5):
        assert epochs_of([GlobalSoftLabel(), Stop(2)], 9, weight) == 2
    for epoch in range(3):  # an epoch at a time
        epochs_of([GlobalSoftLabel()], epoch + 1, initial_epoch=epoch)
    epochs_of([GlobalSoftLabel()], 3, initial_epoch=3)  # no epoch at all


@pytest.mark.parametrize(
    "stop, epochs, total",
    [(7, 100, 10), (2, 9, 3), (1, 100, 2), (7, 9, 9), (9, 10, 10), (10, 10, 10)],
)
def test_a_stop_is_put_off_until_the_weight_has_faded(stop, epochs, total):
    """The weights are those of a training that was to have so many epochs."""
    weights, planned = Weights(), Weights()
    callbacks = [Stop(stop), GlobalSoftLabel(fade_on_stop=True), weights]
    assert epochs_of(callbacks, epochs) == total
    epochs_of([GlobalSoftLabel(), planned], total)
    assert weights.seen == planned.seen


def test_the_weight_falls_from_the_stop_on():
    weights = Weights()
    callback = GlobalSoftLabel(fade_out=0.5, fade_on_stop=True)
    for _ in range(2):  # the second training starts anew
        epochs_of([Stop(4), callback, weights], 50)
        expected = [1, 1, 1, 1, 1, 3 / 4, 1 / 2, 1 / 4]
        np.testing.assert_allclose(weights.seen, expected, rtol=1e-12)


def test_a_weight_that_falls_from_the_first_epoch_on_falls_as_planned():
    weights = Weights()
    callback = GlobalSoftLabel(fade_out=1.0, fade_on_stop=True)
    epochs_of([Stop(1), callback, weights], 4)
    np.testing.assert_allclose(weights.seen, [1, 3 / 4, 1 / 2, 1 / 4], rtol=1e-12)


def test_early_stopping_restores_the_best_weights_of_all_epochs(rng):
    batches = averaged_batches(rng)
    x, y, _ = batches[0]
    stopping = keras.callbacks.EarlyStopping(
        patience=1, min_delta=0.1, restore_best_weights=True
    )
    model = compiled_model(0.3 * rng.normal(size=(FEATURES, CLASSES)))
    callbacks = [stopping, GlobalSoftLabel(fade_on_stop=True)]
    history = fit(model, batches, 60, callbacks, validation_data=(x, y)).history
    assert stopping.stopped_epoch < len(history["loss"]) < 60
    assert stopping.best_epoch < len(history["loss"])
    best = history["val_loss"][stopping.best_epoch]
    assert model.evaluate(x, y, verbose=0) == pytest.approx(best, rel=1e-6)


def test_a_callback_that_stops_comes_before():
    callbacks = [GlobalSoftLabel(fade_on_stop=True), Stop(4)]
    with pytest.warns(UserWarning, match="fade_on_stop=True.*, in this order"):
        assert epochs_of(callbacks, 10) == 4


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_training_at_once(loss):
    callbacks = [Stop(1), GlobalSoftLabel(fade_on_stop=True)]
    assert epochs_of(callbacks, 10, logs={"loss": loss}) == 1  # and no warning


def test_a_fade_on_a_stop_without_a_fade_is_refused():
    with pytest.raises(ValueError, match="`fade_on_stop` needs a `fade_out` above 0"):
        GlobalSoftLabel(fade_out=0, fade_on_stop=True)
    with pytest.raises(ValueError, match="not both.*fade_on_stop=True. Leave it out"):
        epochs_of([GlobalSoftLabel(fade_on_stop=True)], 5, lambda epoch: 0.5)
